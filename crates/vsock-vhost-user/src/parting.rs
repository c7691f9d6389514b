//! Host sockets on the point of being closed.
//!
//! To close a socket, and to wake the application behind it, takes longer than all else that a
//! connection's end is to the worker. The guest that waits for its RST is told first.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::net::{RecvFlags, Shutdown};

/// Sockets that may wait: they hold descriptors.
const AT_ONCE: usize = 16;

/// The most that is read from a socket before it is closed, in bytes: what it holds.
const SOCKET_HOLDS: usize = 1 << 20;

/// A socket that nobody needs any more. Dropped, it is closed: the application gets what was
/// written, then the end.
///
/// What the application sent and nobody read would turn that end into an error (ECONNRESET), so
/// it is read first, as much of it as a socket holds.
#[derive(Debug)]
pub(crate) struct Parting(OwnedFd);

impl From<OwnedFd> for Parting {
    fn from(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl Drop for Parting {
    fn drop(&mut self) {
        let mut scrap = [MaybeUninit::uninit(); 4096];
        let mut left = SOCKET_HOLDS;
        while let Ok((_, read @ 1..)) =
            rustix::net::recv(&self.0, &mut scrap[..], RecvFlags::DONTWAIT)
        {
            if left == SOCKET_HOLDS {
                // There is more to read now, but it has an end.
                let _ = rustix::net::shutdown(&self.0, Shutdown::Both);
            }
            left = left.saturating_sub(read);
            if left == 0 {
                return;
            }
        }
    }
}

/// Sockets to be closed when the guest has been told.
#[derive(Debug, Default)]
pub(crate) struct Partings(Vec<Parting>);

impl Partings {
    /// One more, for which the others may have to go.
    pub(crate) fn add(&mut self, parting: Parting) {
        if self.0.len() == AT_ONCE {
            self.close();
        }
        self.0.push(parting);
    }

    /// Closes all of them.
    pub(crate) fn close(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_nobody_read_is_no_error_to_the_application() {
        let (mut application, socket) = UnixStream::pair().unwrap();
        application.write_all(b"unread").unwrap();
        drop(Parting::from(OwnedFd::from(socket)));
        assert_eq!(application.read(&mut [0; 10]).unwrap(), 0);
    }

    #[test]
    fn few_wait_and_the_others_are_closed() {
        let mut partings = Partings::default();
        let mut applications = Vec::new();
        for _ in 0..=AT_ONCE {
            let (application, socket) = UnixStream::pair().unwrap();
            application.set_nonblocking(true).unwrap();
            partings.add(OwnedFd::from(socket).into());
            applications.push(application);
        }
        let mut has_ended = || {
            let ended = |application: &mut UnixStream| match application.read(&mut [0]) {
                Ok(0) => true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => false,
                other => panic!("{other:?}"),
            };
            applications
                .iter_mut()
                .filter_map(|it| ended(it).then_some(()))
                .count()
        };
        assert_eq!(has_ended(), AT_ONCE);
        partings.close();
        assert_eq!(has_ended(), AT_ONCE + 1);
    }
}
