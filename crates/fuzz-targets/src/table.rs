//! The table of a guest's connections, beside lists that are searched from end to end.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use vsock_connection::{Cause, Connection, ConnectionId, Table, Timeouts};
use vsock_packet::{Cid, ShutdownFlags, VsockAddr};

use crate::steps::Steps;

const LIMIT: usize = 8;
const PORTS: usize = 4;

#[derive(Arbitrary, Debug)]
enum Step {
    Insert {
        port: u8,
        millis: u8,
    },
    Find(u8),
    Forget(u8),
    Remove(u8),
    MarkReady(u8),
    NextReady,
    ReturnReady(u8),
    /// The connection's deadline changes.
    Close(u8),
    End(u8),
    Reschedule(u8),
    Expire(u8),
}

/// An entry as the model has it.
struct Entry {
    id: ConnectionId,
    port: u32,
    scheduled: Option<Instant>,
}

struct Model {
    table: Table<u32>,
    entries: Vec<Entry>,
    gone: Vec<ConnectionId>,
    /// The connections that are found by their ends.
    by_port: [Option<ConnectionId>; PORTS],
    ready: VecDeque<ConnectionId>,
    now: Instant,
}

/// Runs an input.
pub(crate) fn run(data: &[u8]) {
    let mut model = Model {
        table: Table::new(LIMIT),
        entries: Vec::new(),
        gone: Vec::new(),
        by_port: [None; PORTS],
        ready: VecDeque::new(),
        now: Instant::now(),
    };
    let mut steps = Steps::new(data);
    while let Some(step) = steps.next::<Step>() {
        model.take(&step);
        model.check();
    }
}

fn ends(port: u32) -> (VsockAddr, VsockAddr) {
    (
        VsockAddr::new(Cid::HOST, 80),
        VsockAddr::new(Cid::new(3), port),
    )
}

impl Model {
    fn take(&mut self, step: &Step) {
        match *step {
            Step::Insert { port, millis } => self.insert(u32::from(port) % PORTS as u32, millis),
            Step::Find(port) => self.find(u32::from(port) % PORTS as u32),
            Step::Forget(which) => {
                let id = self.choose(which);
                self.table.forget(id);
                self.forget(id);
            }
            Step::Remove(which) => self.remove(which),
            Step::MarkReady(which) => {
                let id = self.choose(which);
                self.table.mark_ready(id);
                if self.is_there(id) && !self.ready.contains(&id) {
                    self.ready.push_back(id);
                }
            }
            Step::NextReady => assert_eq!(self.table.next_ready(), self.ready.pop_front()),
            Step::ReturnReady(which) => {
                let id = self.choose(which);
                self.table.return_ready(id);
                if self.is_there(id) && !self.ready.contains(&id) {
                    self.ready.push_front(id);
                }
            }
            Step::Close(which) => {
                let id = self.choose(which);
                if let Some(entry) = self.table.get_mut(id) {
                    entry.connection.reset(Cause::HostError);
                }
            }
            Step::End(which) => {
                let (id, now) = (self.choose(which), self.now);
                if let Some(entry) = self.table.get_mut(id) {
                    entry.connection.end_host(ShutdownFlags::all(), now);
                }
            }
            Step::Reschedule(which) => self.reschedule(which),
            Step::Expire(millis) => self.expire(millis),
        }
    }

    fn choose(&self, which: u8) -> ConnectionId {
        let which = usize::from(which);
        let all = self.entries.len() + self.gone.len();
        match which % all.max(1) {
            at if at < self.entries.len() => self.entries[at].id,
            at if at < all => self.gone[at - self.entries.len()],
            _ => ConnectionId::from_u64(which as u64),
        }
    }

    fn is_there(&self, id: ConnectionId) -> bool {
        self.entries.iter().any(|entry| entry.id == id)
    }

    fn insert(&mut self, port: u32, millis: u8) {
        let timeouts = Timeouts {
            request: Duration::from_millis(millis.into()),
            ..Timeouts::default()
        };
        let (host, guest) = ends(port);
        let connection = Connection::requested(host, guest, 4096, timeouts, self.now);
        match self.table.insert(connection, port) {
            Err(_) => assert_eq!(self.entries.len(), LIMIT),
            Ok(id) => {
                assert!(self.entries.len() < LIMIT);
                assert!(!self.is_there(id) && !self.gone.contains(&id));
                assert_eq!(ConnectionId::from_u64(id.to_u64()), id);
                assert_eq!(id.to_u64() >> 63, 0);
                self.by_port[port as usize] = Some(id);
                self.entries.push(Entry {
                    id,
                    port,
                    scheduled: None,
                });
            }
        }
    }

    fn find(&self, port: u32) {
        let (host, guest) = ends(port);
        let found = self.table.find_ends(host, guest);
        assert_eq!(found, self.by_port[port as usize]);
    }

    fn forget(&mut self, id: ConnectionId) {
        for found in &mut self.by_port {
            found.take_if(|found| *found == id);
        }
    }

    fn remove(&mut self, which: u8) {
        let id = self.choose(which);
        let removed = self.table.remove(id);
        let at = self.entries.iter().position(|entry| entry.id == id);
        assert_eq!(
            removed.map(|(_, port)| port),
            at.map(|at| self.entries[at].port)
        );
        if let Some(at) = at {
            self.entries.remove(at);
            self.forget(id);
            self.ready.retain(|ready| *ready != id);
            self.gone.push(id);
        }
    }

    fn reschedule(&mut self, which: u8) {
        let id = self.choose(which);
        self.table.reschedule(id);
        let deadline = self
            .table
            .get_mut(id)
            .map(|entry| entry.connection.deadline());
        for entry in &mut self.entries {
            if entry.id == id {
                entry.scheduled = deadline.flatten();
            }
        }
    }

    fn expire(&mut self, millis: u8) {
        self.now += Duration::from_millis(millis.into());
        while let Some(id) = self.table.next_expired(self.now) {
            let entry = self.entries.iter_mut().find(|entry| entry.id == id);
            let at = entry.and_then(|entry| entry.scheduled.take());
            assert!(at.is_some_and(|at| at <= self.now), "too early");
        }
    }

    fn check(&mut self) {
        assert_eq!(self.table.len(), self.entries.len());
        assert_eq!(self.table.is_full(), self.entries.len() == LIMIT);
        let timers = self.entries.iter().filter_map(|entry| entry.scheduled);
        assert_eq!(self.table.next_timeout(), timers.min());
        assert!(self.table.has_ready() || self.ready.is_empty());
        let mut ids: Vec<_> = self.entries.iter().map(|entry| entry.id).collect();
        let mut listed = self.table.ids();
        ids.sort_unstable();
        listed.sort_unstable();
        assert_eq!(ids, listed);
        for id in &self.gone {
            assert!(self.table.get_mut(*id).is_none());
        }
    }
}
