//! The connections of one guest.

use std::collections::hash_map;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Instant;

use slab::Slab;
use thiserror::Error;
use vsock_packet::{Header, VsockAddr};

use crate::Connection;

/// Names an entry of a [`Table`], and no later entry in the same place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnectionId {
    index: u32,
    generation: u32,
}

impl ConnectionId {
    /// The id as a number, for those who carry ids through numbers. Its uppermost bit is
    /// zero.
    pub fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The id of this number.
    pub const fn from_u64(value: u64) -> Self {
        Self {
            index: value as u32,
            generation: (value >> 32) as u32,
        }
    }
}

/// The table has as many connections as it may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the limit of {0} connections is reached")]
pub struct TableFull(pub usize);

/// A connection and what its owner keeps for the host's end.
#[derive(Debug)]
pub struct Entry<H> {
    /// The connection.
    pub connection: Connection,
    /// The host's end.
    pub host: H,
    generation: u32,
    ready: bool,
    scheduled: Option<Instant>,
}

/// Generations wrap one bit early: see [`ConnectionId::to_u64`].
const MAX_GENERATION: u32 = u32::MAX >> 1;

/// What a packet says of its connection, each end as one number: it is stored, hashed and
/// compared as such. A processor that reads as one what it has just stored in pieces waits for
/// all that it was to do before, other look-ups included.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Ends {
    host: u64,
    guest: u64,
}

impl Ends {
    fn new(host: VsockAddr, guest: VsockAddr) -> Self {
        let number = |end: VsockAddr| u64::from(end.cid) << 32 | u64::from(end.port.value());
        Self {
            host: number(host),
            guest: number(guest),
        }
    }

    fn of(connection: &Connection) -> Self {
        Self::new(connection.host(), connection.guest())
    }
}

/// The connections of one guest: found by their ends, by what they have for the guest,
/// and by their timers.
#[derive(Debug)]
pub struct Table<H> {
    entries: Slab<Entry<H>>,
    by_ends: HashMap<Ends, ConnectionId>,
    /// The one found last: packets come in runs.
    latest: Option<(Ends, ConnectionId)>,
    ready: VecDeque<ConnectionId>,
    timers: BTreeSet<(Instant, ConnectionId)>,
    limit: usize,
    generation: u32,
}

impl<H> Table<H> {
    /// An empty table for at most `limit` connections, those included that the guest has
    /// forgotten and the host's application has not read to the end.
    pub fn new(limit: usize) -> Self {
        Self {
            entries: Slab::new(),
            by_ends: HashMap::new(),
            latest: None,
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            limit,
            generation: 0,
        }
    }

    /// The connections there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether there is no room for one more.
    pub fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    /// Allows `limit` connections from now on. Those beyond it stay.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// All ids.
    pub fn ids(&self) -> Vec<ConnectionId> {
        self.entries
            .iter()
            .map(|(index, entry)| id(index, entry.generation))
            .collect()
    }

    /// Adds a connection. One with the same ends is no longer found by them.
    ///
    /// # Errors
    ///
    /// [`TableFull`] at the limit.
    pub fn insert(&mut self, connection: Connection, host: H) -> Result<ConnectionId, TableFull> {
        if self.is_full() {
            return Err(TableFull(self.limit));
        }
        self.generation = self.generation.wrapping_add(1) & MAX_GENERATION;
        let ends = Ends::of(&connection);
        let generation = self.generation;
        let entry = Entry {
            connection,
            host,
            generation,
            ready: false,
            scheduled: None,
        };
        let id = id(self.entries.insert(entry), generation);
        self.by_ends.insert(ends, id);
        self.latest = None;
        Ok(id)
    }

    /// The connection that a packet of the guest's belongs to.
    pub fn find(&mut self, header: &Header) -> Option<ConnectionId> {
        let ends = Ends::new(header.dst, header.src);
        if let Some((latest, id)) = self.latest
            && latest == ends
        {
            return Some(id);
        }
        let id = *self.by_ends.get(&ends)?;
        self.latest = Some((ends, id));
        Some(id)
    }

    /// The connection between these ends.
    pub fn find_ends(&self, host: VsockAddr, guest: VsockAddr) -> Option<ConnectionId> {
        self.by_ends.get(&Ends::new(host, guest)).copied()
    }

    /// An entry; `None` when it was removed.
    pub fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Entry<H>> {
        self.entries
            .get_mut(id.index as usize)
            .filter(|entry| entry.generation == id.generation)
    }

    /// Makes the connection unknown to the guest: its ends may be used again. The entry
    /// stays until it is removed.
    pub fn forget(&mut self, id: ConnectionId) {
        let Some(entry) = self.get_mut(id) else {
            return;
        };
        let ends = Ends::of(&entry.connection);
        if let hash_map::Entry::Occupied(found) = self.by_ends.entry(ends)
            && *found.get() == id
        {
            found.remove();
            self.latest = None;
        }
    }

    /// Removes an entry.
    pub fn remove(&mut self, id: ConnectionId) -> Option<(Connection, H)> {
        self.get_mut(id)?;
        self.forget(id);
        let entry = self.entries.remove(id.index as usize);
        if let Some(at) = entry.scheduled {
            self.timers.remove(&(at, id));
        }
        Some((entry.connection, entry.host))
    }

    /// Notes that a connection may have something for the guest. It is then found by
    /// [`Self::next_ready`], once, in turn with the others.
    pub fn mark_ready(&mut self, id: ConnectionId) {
        if let Some(entry) = self.get_mut(id)
            && !entry.ready
        {
            entry.ready = true;
            self.ready.push_back(id);
        }
    }

    /// The connection whose turn it is.
    pub fn next_ready(&mut self) -> Option<ConnectionId> {
        while let Some(id) = self.ready.pop_front() {
            if let Some(entry) = self.get_mut(id) {
                entry.ready = false;
                return Some(id);
            }
        }
        None
    }

    /// Puts a connection back whose turn could not be used: it is the next again.
    pub fn return_ready(&mut self, id: ConnectionId) {
        if let Some(entry) = self.get_mut(id)
            && !entry.ready
        {
            entry.ready = true;
            self.ready.push_front(id);
        }
    }

    /// Whether [`Self::next_ready`] may find one.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Follows a connection's deadline, which may have changed.
    pub fn reschedule(&mut self, id: ConnectionId) {
        let Some(entry) = self.get_mut(id) else {
            return;
        };
        let (old, new) = (entry.scheduled, entry.connection.deadline());
        if old == new {
            return;
        }
        entry.scheduled = new;
        if let Some(at) = old {
            self.timers.remove(&(at, id));
        }
        if let Some(at) = new {
            self.timers.insert((at, id));
        }
    }

    /// When the next timer fires.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// A connection whose timer has fired by `now`; its timer is gone until it is
    /// rescheduled.
    pub fn next_expired(&mut self, now: Instant) -> Option<ConnectionId> {
        let (at, id) = *self.timers.first()?;
        if at > now {
            return None;
        }
        self.timers.pop_first();
        if let Some(entry) = self.get_mut(id) {
            entry.scheduled = None;
        }
        Some(id)
    }
}

fn id(index: usize, generation: u32) -> ConnectionId {
    ConnectionId {
        index: index as u32,
        generation,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vsock_packet::{Cid, Op};

    use super::*;
    use crate::Timeouts;

    fn ends(port: u32) -> (VsockAddr, VsockAddr) {
        (
            VsockAddr::new(Cid::HOST, 80),
            VsockAddr::new(Cid::new(3), port),
        )
    }

    fn connection(port: u32, now: Instant) -> Connection {
        let (host, guest) = ends(port);
        Connection::requested(host, guest, 4096, Timeouts::default(), now)
    }

    fn packet(port: u32) -> Header {
        let (host, guest) = ends(port);
        Header::new(Op::Rw, guest, host)
    }

    #[test]
    fn finds_a_connection_by_its_packets_until_it_is_forgotten() {
        let mut table = Table::new(10);
        let id = table.insert(connection(1, Instant::now()), ()).unwrap();
        assert_eq!(table.find(&packet(1)), Some(id));
        assert_eq!(table.find(&packet(2)), None);
        assert_eq!(table.find(&packet(1)), Some(id), "found again at once");
        table.forget(id);
        assert_eq!(table.find(&packet(1)), None);
        assert!(table.get_mut(id).is_some());
    }

    #[test]
    fn forgetting_an_old_connection_leaves_a_new_one_with_the_same_ends() {
        let mut table = Table::new(10);
        let old = table.insert(connection(1, Instant::now()), ()).unwrap();
        assert_eq!(table.find(&packet(1)), Some(old));
        let new = table.insert(connection(1, Instant::now()), ()).unwrap();
        assert_eq!(table.find(&packet(1)), Some(new));
        table.remove(old);
        assert_eq!(table.find(&packet(1)), Some(new));
    }

    #[test]
    fn an_id_never_names_a_later_entry() {
        let mut table = Table::new(10);
        let old = table.insert(connection(1, Instant::now()), ()).unwrap();
        table.remove(old);
        let new = table.insert(connection(1, Instant::now()), ()).unwrap();
        assert_ne!(old, new);
        assert!(table.get_mut(old).is_none());
        assert_eq!(ConnectionId::from_u64(new.to_u64()), new);
    }

    #[test]
    fn refuses_more_than_its_limit() {
        let mut table = Table::new(1);
        table.insert(connection(1, Instant::now()), ()).unwrap();
        assert_eq!(
            table.insert(connection(2, Instant::now()), ()),
            Err(TableFull(1))
        );
    }

    #[test]
    fn takes_ready_connections_in_turn_and_once() {
        let mut table = Table::new(10);
        let ids: Vec<_> = (0..3)
            .map(|port| table.insert(connection(port, Instant::now()), ()).unwrap())
            .collect();
        for id in [ids[1], ids[0], ids[1], ids[2]] {
            table.mark_ready(id);
        }
        table.remove(ids[0]);
        assert_eq!(table.next_ready(), Some(ids[1]));
        table.return_ready(ids[1]);
        assert_eq!(table.next_ready(), Some(ids[1]));
        assert_eq!(table.next_ready(), Some(ids[2]));
        assert_eq!(table.next_ready(), None);
    }

    #[test]
    fn follows_the_timers() {
        let mut table = Table::new(10);
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let first = table.insert(connection(1, now), ()).unwrap();
        let second = table.insert(connection(2, later), ()).unwrap();
        table.reschedule(second);
        table.reschedule(first);
        let timeout = Timeouts::default().request;
        assert_eq!(table.next_timeout(), Some(now + timeout));
        assert_eq!(table.next_expired(now), None);
        assert_eq!(table.next_expired(now + timeout), Some(first));
        assert_eq!(table.next_expired(now + timeout), None);
        table.remove(second);
        assert_eq!(table.next_timeout(), None);
    }
}
