//! Host applications that dial a guest.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::Error;
use crate::host::{HostStream, failed};

/// A host application that dials a guest.
///
/// ```no_run
/// # fn main() -> Result<(), vsock_testkit::Error> {
/// use vsock_testkit::host::Client;
///
/// let client = Client::dial("/run/vm3.vsock".as_ref(), 1234)?;
/// // ... here the guest accepts ...
/// let (mut stream, host_port) = client.accepted()?;
/// stream.write_all(b"hello")?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Client {
    stream: HostStream,
}

impl Client {
    /// Connects, and says nothing yet.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when nobody listens.
    pub fn connect(uds_path: &Path) -> Result<Self, Error> {
        let stream = UnixStream::connect(uds_path).map_err(Error::io("connect to a device"))?;
        Ok(Self {
            stream: HostStream::new(stream)?,
        })
    }

    /// Connects, and asks for a port of the guest. The answer waits until
    /// [`Self::accepted`].
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when nobody listens.
    pub fn dial(uds_path: &Path, port: u32) -> Result<Self, Error> {
        let mut client = Self::connect(uds_path)?;
        client.say(format!("CONNECT {port}\n").as_bytes())?;
        Ok(client)
    }

    /// Writes any bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the device hung up.
    pub fn say(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stream.write_all(bytes)
    }

    /// Waits for `OK <host port>`: the stream from there on, and the port.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when the device hangs up, [`Error::Device`] for another answer.
    pub fn accepted(mut self) -> Result<(HostStream, u32), Error> {
        let line = self.read_line()?;
        let port = line
            .strip_prefix("OK ")
            .and_then(|port| port.strip_suffix('\n'));
        match port.and_then(|port| port.parse().ok()) {
            Some(port) => Ok((self.stream, port)),
            None if line.is_empty() => Err(Error::Refused { port: 0 }),
            None => Err(Error::Device(format!("it answered {line:?} to CONNECT"))),
        }
    }

    /// Waits until the device hangs up without a word.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`], or [`Error::Device`] for any answer.
    pub fn expect_refusal(mut self, time: Duration) -> Result<(), Error> {
        self.stream.expect_end_within(time)
    }

    /// Reads no byte beyond the line's end.
    fn read_line(&mut self) -> Result<String, Error> {
        let mut line = String::new();
        let mut byte = [0];
        while !line.ends_with('\n') {
            match self.stream.stream.read(&mut byte) {
                Ok(0) => break,
                Ok(_) => line.push(char::from(byte[0])),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(error) => {
                    return Err(failed("an answer to CONNECT", "read from a device")(error));
                }
            }
        }
        Ok(line)
    }
}
