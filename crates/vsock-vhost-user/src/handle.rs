//! How other threads see a guest, and change it, while it is served.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
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
    tx_buffer_size: u32,
    max_connections: usize,
    max_backlog: usize,
}

impl Settings {
    pub(crate) fn of(config: &GuestConfig) -> Self {
        Self {
            groups: config.groups.clone(),
            host_cids: config.host_cids.clone(),
            tx_buffer_size: config.tx_buffer_size,
            max_connections: config.max_connections,
            max_backlog: config.max_backlog,
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
        }
    }

    /// Whether to a guest with these settings `other` is a sibling and the host at once.
    pub(crate) fn mistakes_for_host(&self, other: GuestCid, its: &Self) -> bool {
        self.host_cids.contains(&other.cid())
            && self.groups.iter().any(|group| its.groups.contains(group))
    }

    fn limits(&self) -> Limits {
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

    pub(crate) fn settings(&self) -> Settings {
        lock(&self.settings).clone()
    }

    pub(crate) fn status(&self) -> GuestStatus {
        let Settings {
            groups,
            host_cids,
            tx_buffer_size,
            max_connections,
            max_backlog,
        } = self.settings();
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
        let (buf_alloc, limits) = (settings.tx_buffer_size, settings.limits());
        let host_cids = settings.host_cids.clone();
        let done = self.inbox.ask(move |worker| {
            if let Some(router) = router {
                worker.router = router;
                let is_host = |cid| cid == Cid::HOST || host_cids.contains(&cid);
                worker
                    .connections
                    .withdraw(|connection, _| !is_host(connection.host().cid));
            }
            worker.connections.set_buf_alloc(buf_alloc);
            worker.connections.set_limit(limits.connections);
            worker.member.set_limits(limits);
        });
        if done.is_some() {
            *lock(&self.settings) = settings;
        }
        done.is_some()
    }
}
