//! The guests of a process.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use vsock_packet::GuestCid;
use vsock_router::{HostSockets, Router};

use crate::config::{GuestConfig, VhostUserSocket};
use crate::counters::{CounterValues, Counters};
use crate::guest::Guest;
use crate::unix_socket;
use crate::worker::Worker;

/// Why a guest could not be added. Nothing is left behind.
#[derive(Debug, Error)]
pub enum AddError {
    /// The CID is taken.
    #[error("CID {0} is taken by another guest: choose another, or remove that guest first")]
    CidTaken(GuestCid),
    /// A ring of this size can't be served.
    #[error("a queue size of {0} can't be served: choose a power of two up to 1024")]
    QueueSize(u16),
    /// A socket could not be bound.
    #[error("cannot listen on {}: {source}", path.display())]
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
#[derive(Default)]
pub struct Server {
    guests: HashMap<GuestCid, Guest>,
}

impl Server {
    /// A server without guests.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves one more guest, whose connections to the host go to the sockets beside its
    /// `uds_path`. Both its own sockets are there when this returns.
    ///
    /// # Errors
    ///
    /// [`AddError`], with nothing left behind.
    pub fn add(&mut self, config: GuestConfig) -> Result<(), AddError> {
        let router = Arc::new(HostSockets::new(&config.uds_path));
        self.add_with(config, router)
    }

    /// Serves one more guest, whose connections go where `router` says.
    ///
    /// # Errors
    ///
    /// [`AddError`], with nothing left behind.
    pub fn add_with(
        &mut self,
        config: GuestConfig,
        router: Arc<dyn Router>,
    ) -> Result<(), AddError> {
        let cid = config.cid;
        if self.guests.contains_key(&cid) {
            return Err(AddError::CidTaken(cid));
        }
        let size = config.queue_size;
        if !size.is_power_of_two() || size > GuestConfig::MAX_QUEUE_SIZE {
            return Err(AddError::QueueSize(size));
        }
        let (clients, uds_path) = listen(&config.uds_path)?;
        let setup = |source| AddError::Setup { cid, source };
        let counters = Arc::new(Counters::default());
        let worker = Worker::new(&config, clients, router, counters).map_err(setup)?;
        let mut paths = vec![uds_path];
        let frontends = match config.socket {
            VhostUserSocket::Listener(listener) => listener,
            VhostUserSocket::Path(path) => {
                let (listener, place) = listen(&path)?;
                paths.push(place);
                listener
            }
        };
        let guest = Guest::start(cid, worker, size, frontends, paths).map_err(setup)?;
        self.guests.insert(cid, guest);
        Ok(())
    }

    /// Stops serving a guest: its connections end, its threads are joined and its
    /// sockets removed. `false` when there is no such guest.
    pub fn remove(&mut self, cid: GuestCid) -> bool {
        self.guests.remove(&cid).is_some()
    }

    /// A guest's counters; `None` when there is no such guest.
    pub fn counters(&self, cid: GuestCid) -> Option<CounterValues> {
        self.guests.get(&cid).map(Guest::counters)
    }

    /// Ends all guests, like [`Self::remove`] for each. Dropping the server does the same.
    pub fn shutdown(self) {}
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("guests", &self.guests.keys())
            .finish()
    }
}

fn listen(
    path: &Path,
) -> Result<(std::os::unix::net::UnixListener, unix_socket::SocketPath), AddError> {
    unix_socket::listen(path).map_err(|source| AddError::Listen {
        path: path.to_owned(),
        source,
    })
}
