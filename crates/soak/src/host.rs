//! Host applications: sockets that never wait.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt,
};
use vsock_testkit::host::port_path;

use crate::wire::{Given, Taken};

/// The longest answer to CONNECT.
const ANSWER_LEN: usize = 16;

/// A host application's end of a connection.
#[derive(Debug)]
pub(crate) struct HostSocket {
    stream: UnixStream,
    /// The answer to CONNECT so far, while it is not whole.
    answer: Option<Vec<u8>>,
}

/// How far a CONNECT got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dialing {
    /// No answer so far.
    Waits,
    /// The guest has accepted.
    Done,
    /// The device hung up.
    Refused,
}

impl HostSocket {
    fn new(stream: UnixStream, answer: Option<Vec<u8>>) -> Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, answer })
    }

    /// Asks for `port` of a guest, and says `more` at once. `None` when nobody lets it in.
    pub(crate) fn dial(uds: &Path, port: u32, more: &[u8]) -> Result<Option<Self>> {
        let Some(mut stream) = connect_to(uds)? else {
            return Ok(None);
        };
        let line = [format!("CONNECT {port}\n").as_bytes(), more].concat();
        match stream.write(&line) {
            Ok(written) if written == line.len() => Self::new(stream, Some(Vec::new())).map(Some),
            Ok(written) => anyhow::bail!("a new socket took {written} of {} bytes", line.len()),
            // It was dismissed at once.
            Err(_) => Ok(None),
        }
    }

    /// Asks the kernel for a small buffer for what is written.
    pub(crate) fn shrink(&self, bytes: usize) -> Result<()> {
        Ok(sockopt::set_socket_send_buffer_size(&self.stream, bytes)?)
    }

    /// Reads the answer to CONNECT as far as it has come.
    pub(crate) fn dialing(&mut self) -> Dialing {
        let Some(answer) = &mut self.answer else {
            return Dialing::Done;
        };
        let mut byte = [0];
        loop {
            match self.stream.read(&mut byte) {
                Ok(1) if byte == *b"\n" => break,
                Ok(1) if answer.len() < ANSWER_LEN => answer.push(byte[0]),
                Ok(_) => return Dialing::Refused,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Dialing::Waits,
                Err(_) => return Dialing::Refused,
            }
        }
        let is_ok = answer.starts_with(b"OK ");
        self.answer = None;
        if is_ok {
            Dialing::Done
        } else {
            Dialing::Refused
        }
    }

    pub(crate) fn read(&mut self, most: usize) -> Given {
        let mut bytes = vec![0; most];
        match self.stream.read(&mut bytes) {
            Ok(0) => Given::End,
            Ok(count) => {
                bytes.truncate(count);
                Given::Bytes(bytes)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Given::Nothing,
            Err(error) => Given::Error(error.to_string()),
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Taken {
        match self.stream.write(bytes) {
            Ok(count) => Taken::Bytes(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Taken::Bytes(0),
            Err(error) => Taken::Error(error.to_string()),
        }
    }

    pub(crate) fn half_close(&self) {
        // It fails when the other end is gone, which shows elsewhere.
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}

/// Connects without waiting; `None` when that is refused.
fn connect_to(path: &Path) -> Result<Option<UnixStream>> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .context("make a socket")?;
    let connected = connect(&socket, &SocketAddrUnix::new(path)?);
    Ok(connected.is_ok().then(|| socket.into()))
}

/// A host server at a guest's port.
#[derive(Debug)]
pub(crate) struct Service {
    listener: UnixListener,
    path: PathBuf,
}

impl Service {
    pub(crate) fn start(uds: &Path, port: u32) -> Result<Self> {
        let path = port_path(uds, port);
        let listener =
            UnixListener::bind(&path).with_context(|| format!("listen at {}", path.display()))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path })
    }

    /// Somebody who has connected.
    pub(crate) fn accept(&self) -> Result<Option<HostSocket>> {
        match self.listener.accept() {
            Ok((stream, _)) => HostSocket::new(stream, None).map(Some),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("accept a guest's connection"),
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Whoever replaces the socket binds its path.
        let _ = std::fs::remove_file(&self.path);
    }
}
