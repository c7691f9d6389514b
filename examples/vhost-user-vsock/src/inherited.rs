//! A listening socket that the parent process left open for us (`--fd`).

#![allow(unsafe_code)] // A descriptor's number can be turned into a descriptor in no other way.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::io::Errno;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use thiserror::Error;

/// Why a number is of no use as a listening socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub(crate) enum InheritedError {
    /// No such descriptor is open.
    #[error("is not an open descriptor; let the parent process leave a listening socket open")]
    NotOpen,
    /// It is something else, or a socket of another kind or state.
    #[error("is not a listening UNIX stream socket; bind and listen before starting this program")]
    NotListening,
    /// The system has none to spare.
    #[error("cannot be duplicated: {0}; close other descriptors or raise the limit")]
    Duplicate(Errno),
}

/// The listening socket with descriptor number `number`, as a duplicate.
///
/// # Errors
///
/// [`InheritedError`] for whatever does not listen for UNIX streams.
pub(crate) fn listener(number: u64) -> Result<UnixListener, InheritedError> {
    let fd = duplicate(number)?;
    let listens = socket_domain(&fd) == Ok(AddressFamily::UNIX)
        && socket_type(&fd) == Ok(SocketType::STREAM)
        && socket_acceptconn(&fd) == Ok(true);
    if listens {
        Ok(UnixListener::from(fd))
    } else {
        Err(InheritedError::NotListening)
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
    use std::os::unix::net::UnixStream;

    use super::*;

    fn number(fd: &impl AsRawFd) -> u64 {
        u64::try_from(fd.as_raw_fd()).unwrap()
    }

    #[test]
    fn takes_a_listening_unix_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let theirs = UnixListener::bind(&path).unwrap();
        let ours = listener(number(&theirs)).unwrap();
        drop(theirs);
        let client = UnixStream::connect(&path).unwrap();
        let (_accepted, _) = ours.accept().unwrap();
        drop(client);
    }

    #[test]
    fn refuses_whatever_does_not_listen_for_unix_streams() {
        let file = File::open("/dev/null").unwrap();
        let (stream, _peer) = UnixStream::pair().unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        for number in [number(&file), number(&stream), number(&tcp)] {
            assert_eq!(listener(number).unwrap_err(), InheritedError::NotListening);
        }
    }

    #[test]
    fn refuses_numbers_that_are_no_descriptor() {
        for number in [1_000_000, i32::MAX as u64, 1 << 32, u64::MAX] {
            assert_eq!(listener(number).unwrap_err(), InheritedError::NotOpen);
        }
    }
}
