//! The guests of a process.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use thiserror::Error;
use vsock_packet::GuestCid;
use vsock_router::{HostSockets, JoinError, Router, Routers, Siblings, Switch};

use crate::config::{GuestConfig, VhostUserSocket};
use crate::counters::CounterValues;
use crate::guest::Guest;
use crate::unix_socket;
use crate::worker::{SetupError, Worker};

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
    switch: Arc<Switch>,
}

impl Server {
    /// A server without guests.
    pub fn new() -> Self {
        Self::default()
    }

    /// The guests as siblings.
    pub fn switch(&self) -> &Arc<Switch> {
        &self.switch
    }

    /// Serves one more guest. Its connections to the host go to the sockets beside its
    /// `uds_path`, those to siblings through the [switch](Self::switch). Both its own
    /// sockets are there when this returns.
    ///
    /// # Errors
    ///
    /// [`AddError`], with nothing left behind.
    pub fn add(&mut self, config: GuestConfig) -> Result<(), AddError> {
        let host = HostSockets::new(&config.uds_path).with_cids(config.host_cids.iter().copied());
        let siblings = Siblings(Arc::clone(&self.switch));
        self.add_with(
            config,
            Arc::new(Routers::default().then(host).then(siblings)),
        )
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
        let mut paths = vec![uds_path];
        let worker =
            Worker::new(&config, clients, router, &self.switch).map_err(|error| match error {
                SetupError::Io(source) => AddError::Setup { cid, source },
                SetupError::Join(JoinError(cid)) => AddError::CidTaken(cid),
            })?;
        let seat = Seat {
            switch: Arc::clone(&self.switch),
            cid,
        };
        let frontends = match config.socket {
            VhostUserSocket::Listener(listener) => listener,
            VhostUserSocket::Path(path) => {
                let (listener, place) = listen(&path)?;
                paths.push(place);
                listener
            }
        };
        let guest = Guest::start(cid, worker, size, frontends, paths, seat)
            .map_err(|source| AddError::Setup { cid, source })?;
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

impl Drop for Server {
    fn drop(&mut self) {
        // All at once, so that none waits for another.
        for guest in self.guests.values() {
            guest.ask_to_end();
        }
    }
}

/// A guest's place at a switch, free when this is dropped.
pub(crate) struct Seat {
    switch: Arc<Switch>,
    cid: GuestCid,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.switch.leave(self.cid, Instant::now());
    }
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
