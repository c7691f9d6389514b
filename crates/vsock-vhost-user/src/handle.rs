//! How other threads see a guest, and change it, while it is served.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use vsock_packet::{Cid, GuestCid};
use vsock_router::{ConnectionId, Limits, Member, Router};

use crate::backend::lock;
use crate::config::{Changes, GuestConfig, VhostUserSocket};
use crate::counters::Counters;
use crate::inbox::Inbox;
use crate::status::{ConnectionStatus, Gauges, GuestStatus};
use crate::worker::Worker;

/// A guest, for other threads.
pub(crate) struct Handle {
    pub(crate) cid: GuestCid,
    socket: Option<PathBuf>,
    pub(crate) uds_path: PathBuf,
    queue_size: u16,
    /// Its router is the caller's, not the server's.
    pub(crate) has_own_router: bool,
    settings: Mutex<Settings>,
    counters: Arc<Counters>,
    gauges: Arc<Gauges>,
    member: Arc<Member>,
    inbox: Arc<Inbox>,
}

/// What can be changed.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) groups: Vec<String>,
    pub(crate) host_cids: Vec<Cid>,
    pub(crate) tx_buffer_size: u32,
    pub(crate) max_connections: usize,
    max_backlog: usize,
    pub(crate) max_buffered: usize,
    pub(crate) max_handshakes: usize,
    pub(crate) max_bytes_per_second: Option<u64>,
    pub(crate) max_requests_per_second: Option<u64>,
}

impl Settings {
    pub(crate) fn of(config: &GuestConfig) -> Self {
        Self {
            groups: config.groups.clone(),
            host_cids: config.host_cids.clone(),
            tx_buffer_size: config.tx_buffer_size,
            max_connections: config.max_connections,
            max_backlog: config.max_backlog,
            max_buffered: config.max_buffered,
            max_handshakes: config.max_handshakes,
            max_bytes_per_second: config.max_bytes_per_second,
            max_requests_per_second: config.max_requests_per_second,
        }
    }

    /// These with changes.
    pub(crate) fn changed(&self, changes: &Changes) -> Self {
        let or = |change: Option<usize>, value| change.unwrap_or(value);
        let groups = changes.groups.as_ref().unwrap_or(&self.groups);
        let host_cids = changes.host_cids.as_ref().unwrap_or(&self.host_cids);
        Self {
            groups: groups.clone(),
            host_cids: host_cids.clone(),
            tx_buffer_size: changes.tx_buffer_size.unwrap_or(self.tx_buffer_size),
            max_connections: or(changes.max_connections, self.max_connections),
            max_backlog: or(changes.max_backlog, self.max_backlog),
            max_buffered: or(changes.max_buffered, self.max_buffered),
            max_handshakes: or(changes.max_handshakes, self.max_handshakes),
            max_bytes_per_second: changes
                .max_bytes_per_second
                .unwrap_or(self.max_bytes_per_second),
            max_requests_per_second: changes
                .max_requests_per_second
                .unwrap_or(self.max_requests_per_second),
        }
    }

    /// Whether to a guest with these settings `other` is a sibling and the host at once.
    pub(crate) fn mistakes_for_host(&self, other: GuestCid, its: &Self) -> bool {
        self.host_cids.contains(&other.cid())
            && self.groups.iter().any(|group| its.groups.contains(group))
    }

    /// What it may have among its siblings.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            connections: self.max_connections,
            backlog: self.max_backlog,
        }
    }
}

impl Handle {
    pub(crate) fn new(config: &GuestConfig, worker: &Worker, has_own_router: bool) -> Self {
        let socket = match &config.socket {
            VhostUserSocket::Path(path) => Some(path.clone()),
            VhostUserSocket::Listener(_) => None,
        };
        Self {
            cid: config.cid,
            socket,
            uds_path: config.uds_path.clone(),
            queue_size: config.queue_size,
            has_own_router,
            settings: Mutex::new(Settings::of(config)),
            counters: Arc::clone(&worker.counters),
            gauges: Arc::clone(&worker.gauges),
            member: Arc::clone(&worker.member),
            inbox: Arc::clone(&worker.inbox),
        }
    }

    /// Its settings, which do not change while they are looked at.
    pub(crate) fn settings(&self) -> MutexGuard<'_, Settings> {
        lock(&self.settings)
    }

    pub(crate) fn status(&self) -> GuestStatus {
        let Settings {
            groups,
            host_cids,
            tx_buffer_size,
            max_connections,
            max_backlog,
            max_buffered,
            max_handshakes,
            max_bytes_per_second,
            max_requests_per_second,
        } = self.settings().clone();
        GuestStatus {
            cid: self.cid,
            socket: self.socket.clone(),
            uds_path: self.uds_path.clone(),
            groups,
            host_cids,
            queue_size: self.queue_size,
            tx_buffer_size,
            max_connections,
            max_backlog,
            max_buffered,
            max_handshakes,
            max_bytes_per_second,
            max_requests_per_second,
            state: self.gauges.state(),
            connections: self.gauges.connections() + self.member.connections(),
            counters: self.counters.values(self.member.counters()),
        }
    }

    /// The guest's connections, those with siblings included.
    pub(crate) fn connections(&self) -> Vec<ConnectionStatus> {
        let mut list = self
            .inbox
            .ask(|worker| worker.connections.list())
            .unwrap_or_default();
        list.extend(self.member.list().into_iter().map(ConnectionStatus::from));
        list
    }

    /// `false` when the guest has no such connection.
    pub(crate) fn kill(&self, id: ConnectionId) -> bool {
        let own = move |worker: &mut Worker| {
            let connections = &mut worker.connections;
            connections.withdraw(|_, record| record.id() == id) > 0
        };
        self.member.kill(id, Instant::now()) || self.inbox.ask(own) == Some(true)
    }

    /// Applies what concerns the worker; of its routes, what `router` is to say from now
    /// on. `false` when the worker did not come to it: then all is as before.
    pub(crate) fn apply(&self, settings: Settings, router: Option<Arc<dyn Router>>) -> bool {
        let wanted = settings.clone();
        let done = self.inbox.ask(move |worker| {
            if let Some(router) = router {
                worker.router = router;
                let is_host = |cid| cid == Cid::HOST || wanted.host_cids.contains(&cid);
                worker
                    .connections
                    .withdraw(|connection, _| !is_host(connection.host().cid));
            }
            worker.set_limits(&wanted);
        });
        if done.is_some() {
            *lock(&self.settings) = settings;
        }
        done.is_some()
    }
}
