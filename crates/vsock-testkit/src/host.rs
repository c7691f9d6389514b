//! Scripted hosts: the applications at the other end of a hybrid vsock socket.
//!
//! * [`HostListener`] is a host server step by step: the test accepts, reads and writes.
//! * [`Service`] is one that goes by itself, on a thread: echo, sink, source.
//! * [`Client`] dials the guest with `CONNECT port`.
//! * [`refuse`] and [`FullBacklog`] are servers that nobody can connect to.
//!
//! Every call that waits gives up after ten seconds, unless told otherwise.

use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Error;

mod client;
mod service;

pub use client::Client;
pub use service::Service;

/// How long a host waits before it fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// The path at which the host serves `port`: `<uds-path>_<port>`.
pub fn port_path(uds_path: &Path, port: u32) -> PathBuf {
    let mut path = OsString::from(uds_path);
    path.push(format!("_{port}"));
    path.into()
}

/// A socket at a port's path to which nobody listens: whoever connects is refused.
///
/// # Errors
///
/// [`Error::Io`] when the path is taken.
pub fn refuse(uds_path: &Path, port: u32) -> Result<(), Error> {
    let path = port_path(uds_path, port);
    UnixListener::bind(path)
        .map(drop)
        .map_err(Error::io("bind a host's socket"))
}

/// A host server, step by step.
#[derive(Debug)]
pub struct HostListener {
    listener: UnixListener,
    path: PathBuf,
}

impl HostListener {
    /// Listens at a port's path.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the path is taken.
    pub fn bind(uds_path: &Path, port: u32) -> Result<Self, Error> {
        let path = port_path(uds_path, port);
        let listener = UnixListener::bind(&path).map_err(Error::io("bind a host's socket"))?;
        Ok(Self { listener, path })
    }

    /// Waits for a connection.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`].
    pub fn accept(&self) -> Result<HostStream, Error> {
        if !self.has_connection(PATIENCE)? {
            let waited_for = format!("a connection to {}", self.path.display());
            return Err(timeout(waited_for, PATIENCE));
        }
        let (stream, _) = self.listener.accept().map_err(Error::io("accept"))?;
        HostStream::new(stream)
    }

    /// Whether a connection waits to be accepted, or comes within `time`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn has_connection(&self, time: Duration) -> Result<bool, Error> {
        let mut fds = [PollFd::new(&self.listener, PollFlags::IN)];
        let timeout = Timespec::try_from(time).ok();
        let count = poll(&mut fds, timeout.as_ref()).map_err(Error::io("poll"))?;
        Ok(count > 0)
    }
}

impl Drop for HostListener {
    fn drop(&mut self) {
        // Nothing depends on it: the directory is the test's.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A server whose backlog is full: whoever connects without blocking is told to try again.
#[derive(Debug)]
pub struct FullBacklog {
    _listener: OwnedFd,
    _waiting: Vec<OwnedFd>,
}

impl FullBacklog {
    /// Listens at a port's path and fills the backlog.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the path is taken.
    pub fn bind(uds_path: &Path, port: u32) -> Result<Self, Error> {
        let address = SocketAddrUnix::new(port_path(uds_path, port))
            .map_err(Error::io("make a socket's address"))?;
        let listener = nonblocking_socket()?;
        bind(&listener, &address).map_err(Error::io("bind a host's socket"))?;
        listen(&listener, 0).map_err(Error::io("listen"))?;
        let mut waiting = Vec::new();
        loop {
            let socket = nonblocking_socket()?;
            match connect(&socket, &address) {
                Ok(()) => waiting.push(socket),
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => return Err(Error::io("connect")(error)),
            }
        }
        Ok(Self {
            _listener: listener,
            _waiting: waiting,
        })
    }
}

fn nonblocking_socket() -> Result<OwnedFd, Error> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(Error::io("socket"))
}

/// A host application's end of a connection.
#[derive(Debug)]
pub struct HostStream {
    stream: UnixStream,
}

impl HostStream {
    fn new(stream: UnixStream) -> Result<Self, Error> {
        let this = Self { stream };
        this.set_patience(PATIENCE)?;
        Ok(this)
    }

    /// How long reads and writes wait before they fail.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] for no time at all.
    pub fn set_patience(&self, time: Duration) -> Result<(), Error> {
        let step = Error::io("set a socket's timeout");
        let set = |stream: &UnixStream| {
            stream.set_read_timeout(Some(time))?;
            stream.set_write_timeout(Some(time))
        };
        set(&self.stream).map_err(step)
    }

    /// The socket itself.
    pub fn socket(&self) -> &UnixStream {
        &self.stream
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`], or [`Error::Io`] when the other end is gone.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stream
            .write_all(bytes)
            .map_err(failed("the device to read", "write to a host's end"))
    }

    /// Writes until the device reads no more; tells how many bytes it took.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the other end is gone.
    pub fn write_until_blocked(&mut self, bytes: &[u8], time: Duration) -> Result<usize, Error> {
        self.stream
            .set_write_timeout(Some(time))
            .map_err(Error::io("set a socket's timeout"))?;
        let mut written = 0;
        while written < bytes.len() {
            match self.stream.write(&bytes[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // A process that was stopped for a while finds its waits interrupted.
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(error) => return Err(Error::io("write to a host's end")(error)),
            }
        }
        self.set_patience(PATIENCE).map(|()| written)
    }

    /// Reads `len` bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`], or [`Error::Io`] when the other end is gone.
    pub fn read_exact(&mut self, len: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; len];
        let result = self.stream.read_exact(&mut bytes);
        result.map_err(failed(
            format!("{len} bytes from the guest"),
            "read from a host's end",
        ))?;
        Ok(bytes)
    }

    /// Reads to the end.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`], or [`Error::Io`] when the connection was reset.
    pub fn read_to_end(&mut self) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let result = self.stream.read_to_end(&mut bytes);
        result.map_err(failed("the end of the stream", "read from a host's end"))?;
        Ok(bytes)
    }

    /// Waits for the end of the stream, with nothing to read before it, for `time`.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`], or [`Error::Device`] when there is something to read.
    pub fn expect_end_within(&mut self, time: Duration) -> Result<(), Error> {
        self.set_patience(time)?;
        let start = Instant::now();
        let result = self.stream.read_exact(&mut [0; 1]);
        self.set_patience(PATIENCE)?;
        match result {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
            Ok(()) => Err(Error::Device(
                "it delivered data, where the end was due".into(),
            )),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                Err(timeout("the end of the stream".into(), start.elapsed()))
            }
            Err(error) => Err(Error::io("read from a host's end")(error)),
        }
    }

    /// Says that the host will send no more.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the other end is gone.
    pub fn shutdown_write(&self) -> Result<(), Error> {
        self.stream
            .shutdown(Shutdown::Write)
            .map_err(Error::io("shutdown"))
    }

    /// Says that the host will receive no more.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the other end is gone.
    pub fn shutdown_read(&self) -> Result<(), Error> {
        self.stream
            .shutdown(Shutdown::Read)
            .map_err(Error::io("shutdown"))
    }
}

fn failed(
    waited_for: impl Into<String>,
    step: &'static str,
) -> impl FnOnce(std::io::Error) -> Error {
    move |error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => timeout(waited_for.into(), PATIENCE),
        _ => Error::io(step)(error),
    }
}

fn timeout(waited_for: String, after: Duration) -> Error {
    Error::Timeout {
        waited_for,
        after,
        state: "at the host".into(),
    }
}

/// Lets this process open as many files as the system allows it: for thousands of
/// connections.
///
/// # Errors
///
/// [`Error::Io`].
pub fn raise_file_limit() -> Result<(), Error> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).map_err(Error::io("setrlimit"))
}
