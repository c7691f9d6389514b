//! A vhost-user socket that the parent process left open for us (`--fd`): one that listens,
//! or one whose other end the VMM has already.

#![allow(unsafe_code)] // A descriptor's number can be turned into a descriptor in no other way.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::io::Errno;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType, getpeername};
use thiserror::Error;

use crate::relay::Relay;

/// Why a number is of no use as a vhost-user socket.
#[derive(Debug, Error)]
pub(crate) enum InheritedError {
    /// No such descriptor is open.
    #[error("is not an open descriptor")]
    NotOpen,
    /// It is something else, or a socket of another kind or state.
    #[error("is no UNIX stream socket that listens or is connected")]
    Useless,
    /// The system has none to spare.
    #[error("cannot be duplicated: {0}")]
    Duplicate(Errno),
    /// It is connected, and the relay for it cannot be made.
    #[error("cannot be relayed: {0}")]
    Relay(io::Error),
}

impl InheritedError {
    /// What to do about it.
    pub(crate) fn remedy(&self) -> &'static str {
        match self {
            Self::NotOpen => "let the parent process leave a socket open",
            Self::Useless => "listen or connect before starting this program",
            Self::Duplicate(_) => "close other descriptors or raise the limit",
            Self::Relay(_) => "set TMPDIR to a directory that can be written",
        }
    }
}

/// The socket with descriptor number `number`, as a duplicate that listens. For a connected
/// one there is a relay, whose end waits to be accepted.
///
/// # Errors
///
/// [`InheritedError`] for whatever is of no use to a frontend.
pub(crate) fn listener(number: u64) -> Result<(UnixListener, Option<Relay>), InheritedError> {
    let fd = duplicate(number)?;
    let is_stream =
        socket_domain(&fd) == Ok(AddressFamily::UNIX) && socket_type(&fd) == Ok(SocketType::STREAM);
    if is_stream && socket_acceptconn(&fd) == Ok(true) {
        Ok((UnixListener::from(fd), None))
    } else if is_stream && getpeername(&fd).is_ok() {
        let (relay, listener) = Relay::new(UnixStream::from(fd)).map_err(InheritedError::Relay)?;
        Ok((listener, Some(relay)))
    } else {
        Err(InheritedError::Useless)
    }
}

fn duplicate(number: u64) -> Result<OwnedFd, InheritedError> {
    let number = i32::try_from(number).map_err(|_| InheritedError::NotOpen)?;
    // SAFETY: the number is not negative, and the borrow ends with this expression; this
    // is start-up, with one thread, so nothing closes the descriptor meanwhile. If it
    // isn't open the duplication fails with EBADF, and nothing else was done with it.
    let duplicate = rustix::io::fcntl_dupfd_cloexec(unsafe { BorrowedFd::borrow_raw(number) }, 3);
    duplicate.map_err(|errno| match errno {
        Errno::BADF => InheritedError::NotOpen,
        errno => InheritedError::Duplicate(errno),
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn number(fd: &impl AsRawFd) -> u64 {
        u64::try_from(fd.as_raw_fd()).unwrap()
    }

    #[test]
    fn takes_a_listening_unix_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let theirs = UnixListener::bind(&path).unwrap();
        let (ours, relay) = listener(number(&theirs)).unwrap();
        assert!(relay.is_none());
        drop(theirs);
        let client = UnixStream::connect(&path).unwrap();
        let (_accepted, _) = ours.accept().unwrap();
        drop(client);
    }

    #[test]
    fn relays_a_connected_unix_socket() {
        let (frontend, _peer) = UnixStream::pair().unwrap();
        let (ours, relay) = listener(number(&frontend)).unwrap();
        assert!(relay.is_some());
        let (_accepted, _) = ours.accept().unwrap();
    }

    #[test]
    fn refuses_whatever_neither_listens_nor_is_connected() {
        let file = File::open("/dev/null").unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (datagram, _peer) = UnixDatagram::pair().unwrap();
        let unconnected =
            rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        for number in [
            number(&file),
            number(&tcp),
            number(&datagram),
            number(&unconnected),
        ] {
            let error = listener(number).unwrap_err();
            assert!(matches!(error, InheritedError::Useless), "{error}");
        }
    }

    #[test]
    fn refuses_numbers_that_are_no_descriptor() {
        for number in [1_000_000, i32::MAX as u64, 1 << 32, u64::MAX] {
            let error = listener(number).unwrap_err();
            assert!(matches!(error, InheritedError::NotOpen), "{error}");
        }
    }
}
