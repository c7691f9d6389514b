//! The guests of a process.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use thiserror::Error;
use vsock_packet::{Cid, GuestCid};
use vsock_router::{
    ConnectionId, Groups, HostSockets, JoinError, Observer, Recorder, Router, Routers, Siblings,
    Switch,
};

use crate::backend::lock;
use crate::config::{Changes, GuestConfig, VhostUserSocket};
use crate::cores::Cores;
use crate::counters::CounterValues;
use crate::events::{Event, Events, Hub};
use crate::guest::Guest;
use crate::handle::{Handle, Settings};
use crate::status::{ConnectionStatus, GuestStatus};
use crate::unix_socket::{self, SocketAccess};
use crate::worker::{SetupError, Worker};

/// Why a guest could not be added. Nothing is left behind.
#[derive(Debug, Error)]
pub enum AddError {
    /// There are as many guests as there may be.
    #[error("there are {0} guests already: remove one, or allow more")]
    TooMany(usize),
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
    /// A sibling that the guest reaches would have a CID that means the host.
    #[error(transparent)]
    TwoMeanings(#[from] TwoMeanings),
    /// Threads, epoll or timers could not be made.
    #[error("cannot set up guest {cid}: {source}")]
    Setup {
        /// The guest.
        cid: GuestCid,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a guest could not be changed. It is as it was.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ChangeError {
    /// There is no such guest.
    #[error("no guest has CID {0}")]
    NoSuchGuest(GuestCid),
    /// A sibling that the guest reaches would have a CID that means the host.
    #[error(transparent)]
    TwoMeanings(#[from] TwoMeanings),
    /// `host_cids` are not this server's to change.
    #[error("CID {0} was added with a router of its own: have that one changed")]
    OwnRouter(GuestCid),
    /// The guest's worker did not come to it within a second.
    #[error("the worker of CID {0} does not answer: try again, or remove the guest")]
    Stuck(GuestCid),
}

/// A CID would mean the host and a sibling.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error(
    "CID {sibling} would mean the host to CID {guest}, and is a guest in a group of its: \
     choose another host CID, or other groups"
)]
pub struct TwoMeanings {
    /// The guest to which it means the host.
    pub guest: GuestCid,
    /// The guest that has it.
    pub sibling: GuestCid,
}

/// The guests of this process, each served on threads of its own. They may be added,
/// changed and removed from any thread at any time; no guest is disturbed by what happens
/// to another.
pub struct Server {
    guests: Mutex<BTreeMap<GuestCid, Guest>>,
    /// Held while what guests there may be is looked at and changed.
    plans: Mutex<()>,
    switch: Arc<Switch>,
    hub: Arc<Hub>,
    cores: Cores,
    max_guests: usize,
}

impl Default for Server {
    fn default() -> Self {
        Self::new()
    }
}

impl Server {
    /// The guests there may be at once, unless somebody chose another number: each takes a
    /// thread, three while its VMM is connected, and about a dozen descriptors.
    pub const DEFAULT_MAX_GUESTS: usize = 1024;

    /// A server without guests.
    pub fn new() -> Self {
        let hub = Arc::new(Hub::default());
        let observer: Arc<dyn Observer> = Arc::<Hub>::clone(&hub);
        let recorder = Arc::new(Recorder::observed_by(observer));
        Self {
            guests: Mutex::default(),
            plans: Mutex::default(),
            switch: Arc::new(Switch::default().with_recorder(recorder)),
            hub,
            cores: Cores::default(),
            max_guests: Self::DEFAULT_MAX_GUESTS,
        }
    }

    /// The same with another bound of the guests there may be at once.
    #[must_use]
    pub fn with_max_guests(mut self, max_guests: usize) -> Self {
        self.max_guests = max_guests;
        self
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
    pub fn add(&self, config: GuestConfig) -> Result<(), AddError> {
        let router = self.router(config.uds_path.clone(), &config.host_cids);
        self.serve(config, router, false)
    }

    /// Serves one more guest, whose connections go where `router` says.
    ///
    /// # Errors
    ///
    /// [`AddError`], with nothing left behind.
    pub fn add_with(&self, config: GuestConfig, router: Arc<dyn Router>) -> Result<(), AddError> {
        self.serve(config, router, true)
    }

    fn router(&self, uds_path: PathBuf, host_cids: &[Cid]) -> Arc<dyn Router> {
        let host = HostSockets::new(uds_path).with_cids(host_cids.iter().copied());
        let siblings = Siblings(Arc::clone(&self.switch));
        Arc::new(Routers::default().then(host).then(siblings))
    }

    fn serve(
        &self,
        config: GuestConfig,
        router: Arc<dyn Router>,
        is_own: bool,
    ) -> Result<(), AddError> {
        let _plans = lock(&self.plans);
        let cid = config.cid;
        let guests = lock(&self.guests);
        if guests.contains_key(&cid) {
            return Err(AddError::CidTaken(cid));
        }
        if guests.len() >= self.max_guests {
            return Err(AddError::TooMany(self.max_guests));
        }
        drop(guests);
        let size = config.queue_size;
        if !size.is_power_of_two() || size > GuestConfig::MAX_QUEUE_SIZE {
            return Err(AddError::QueueSize(size));
        }
        self.refuse_two_meanings(cid, &Settings::of(&config))?;
        let (clients, uds_path) = listen(&config.uds_path, config.access)?;
        let mut paths = vec![uds_path];
        let worker = Worker::new(
            &config,
            clients,
            router,
            &self.switch,
            &self.hub,
            &self.cores,
        )
        .map_err(|error| match error {
            SetupError::Io(source) => AddError::Setup { cid, source },
            SetupError::Join(JoinError(cid)) => AddError::CidTaken(cid),
        })?;
        let seat = Seat {
            switch: Arc::clone(&self.switch),
            cid,
        };
        let handle = Arc::new(Handle::new(&config, &worker, is_own));
        let frontends = match config.socket {
            VhostUserSocket::Listener(listener) => listener,
            VhostUserSocket::Path(path) => {
                let (listener, place) = listen(&path, config.access)?;
                paths.push(place);
                listener
            }
        };
        let guest = Guest::start(handle, worker, size, frontends, paths, seat)
            .map_err(|source| AddError::Setup { cid, source })?;
        lock(&self.guests).insert(cid, guest);
        self.hub.publish(|| Event::GuestAdded { cid });
        Ok(())
    }

    /// A CID that means the host to a guest is that of no sibling which it reaches:
    /// neither could be told from the other.
    fn refuse_two_meanings(&self, cid: GuestCid, settings: &Settings) -> Result<(), TwoMeanings> {
        let guests = lock(&self.guests);
        let others = guests.values().map(|guest| &guest.handle);
        for other in others.filter(|other| other.cid != cid) {
            let its = other.settings();
            if settings.mistakes_for_host(other.cid, &its) {
                let (guest, sibling) = (cid, other.cid);
                return Err(TwoMeanings { guest, sibling });
            }
            if its.mistakes_for_host(cid, settings) {
                let (guest, sibling) = (other.cid, cid);
                return Err(TwoMeanings { guest, sibling });
            }
        }
        Ok(())
    }

    /// Stops serving a guest: its connections end, its threads are joined and its
    /// sockets removed. `false` when there is no such guest.
    pub fn remove(&self, cid: GuestCid) -> bool {
        // Out of the list first, so that nobody waits for its end but the caller.
        let guest = lock(&self.guests).remove(&cid);
        let found = guest.is_some();
        drop(guest);
        if found {
            self.hub.publish(|| Event::GuestRemoved { cid });
        }
        found
    }

    /// Changes a guest while it is served: all that is asked for, or nothing.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; the guest is as it was.
    pub fn change(&self, cid: GuestCid, changes: &Changes) -> Result<(), ChangeError> {
        let _plans = lock(&self.plans);
        let handle = self.handle(cid).ok_or(ChangeError::NoSuchGuest(cid))?;
        let before = handle.settings().clone();
        let after = before.changed(changes);
        self.refuse_two_meanings(cid, &after)?;
        let reroutes = after.host_cids != before.host_cids;
        if reroutes && handle.has_own_router {
            return Err(ChangeError::OwnRouter(cid));
        }
        let router = reroutes.then(|| self.router(handle.uds_path.clone(), &after.host_cids));
        let regroups = after.groups != before.groups;
        let groups = Groups::from_iter(after.groups.iter().cloned());
        if !handle.apply(after, router) {
            let is_there = self.handle(cid).is_some();
            return Err(match is_there {
                true => ChangeError::Stuck(cid),
                false => ChangeError::NoSuchGuest(cid),
            });
        }
        if regroups {
            self.switch.set_groups(cid, groups, Instant::now());
        }
        self.hub.publish(|| Event::GuestChanged { cid });
        Ok(())
    }

    fn handle(&self, cid: GuestCid) -> Option<Arc<Handle>> {
        let guests = lock(&self.guests);
        guests.get(&cid).map(|guest| Arc::clone(&guest.handle))
    }

    fn handles(&self) -> Vec<Arc<Handle>> {
        let guests = lock(&self.guests);
        guests
            .values()
            .map(|guest| Arc::clone(&guest.handle))
            .collect()
    }

    /// A guest as it is now; `None` when there is no such guest.
    pub fn guest(&self, cid: GuestCid) -> Option<GuestStatus> {
        self.handle(cid).map(|handle| handle.status())
    }

    /// All guests as they are now, by their CIDs.
    pub fn guests(&self) -> Vec<GuestStatus> {
        self.handles()
            .iter()
            .map(|handle| handle.status())
            .collect()
    }

    /// A guest's counters; `None` when there is no such guest.
    pub fn counters(&self, cid: GuestCid) -> Option<CounterValues> {
        self.guest(cid).map(|guest| guest.counters)
    }

    /// The connections of one guest, or of all, by their numbers.
    pub fn connections(&self, cid: Option<GuestCid>) -> Vec<ConnectionStatus> {
        let handles = match cid {
            Some(cid) => self.handle(cid).into_iter().collect(),
            None => self.handles(),
        };
        let by_number = |connection: ConnectionStatus| (connection.id, connection);
        // Siblings list the same connection both.
        let connections: BTreeMap<_, _> = handles
            .iter()
            .flat_map(|handle| handle.connections())
            .map(by_number)
            .collect();
        connections.into_values().collect()
    }

    /// Resets a connection at both ends. `false` when there is no such connection.
    pub fn kill(&self, id: ConnectionId) -> bool {
        self.handles().iter().any(|handle| handle.kill(id))
    }

    /// What happens from now on.
    pub fn events(&self) -> Events {
        self.hub.subscribe()
    }

    /// Ends all guests, like [`Self::remove`] for each. Dropping the server does the same.
    pub fn shutdown(self) {}
}

impl Drop for Server {
    fn drop(&mut self) {
        // All at once, so that none waits for another.
        for guest in lock(&self.guests).values() {
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
            .field("guests", &lock(&self.guests).keys())
            .finish_non_exhaustive()
    }
}

fn listen(
    path: &Path,
    access: SocketAccess,
) -> Result<(std::os::unix::net::UnixListener, unix_socket::SocketPath), AddError> {
    unix_socket::listen(path, access).map_err(|source| AddError::Listen {
        path: path.to_owned(),
        source,
    })
}
