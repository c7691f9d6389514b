//! The guests of a process (stub).

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use vsock_packet::GuestCid;

use crate::GuestConfig;

/// Why a guest could not be added. Nothing is left behind.
#[derive(Debug, Error)]
pub enum AddError {
    /// The CID is taken.
    #[error("CID {0} is taken by another guest")]
    CidTaken(GuestCid),
    /// A socket could not be bound.
    #[error("cannot listen on {path}: {source}")]
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Threads, epoll or timers could not be made.
    #[error("cannot set up guest {cid}: {source}")]
    Setup {
        /// The guest.
        cid: GuestCid,
        /// What the system said.
        source: io::Error,
    },
}

/// The guests of this process, each served on threads of its own.
#[derive(Debug, Default)]
pub struct Server {}

impl Server {
    /// A server without guests.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves one more guest. Both its sockets are there when this returns.
    ///
    /// # Errors
    ///
    /// [`AddError`], with nothing left behind.
    pub fn add(&mut self, _config: GuestConfig) -> Result<(), AddError> {
        Ok(())
    }

    /// Stops serving a guest: its connections end, its threads are joined and its
    /// sockets removed. `false` when there is no such guest.
    pub fn remove(&mut self, _cid: GuestCid) -> bool {
        false
    }

    /// Ends all guests, like [`Self::remove`] for each.
    pub fn shutdown(self) {}
}
