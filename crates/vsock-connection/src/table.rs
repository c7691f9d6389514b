//! The connections of one guest.

use std::collections::{BTreeSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

use hashbrown::HashTable;
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
    /// Those of no connection: both have the same CID and port.
    const NONE: Self = Self { host: 0, guest: 0 };

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

/// The connections of packets, as they were when [found](Table::find_all).
#[derive(Clone, Debug)]
pub struct Found {
    ids: [Option<ConnectionId>; Self::AT_MOST],
    len: usize,
    /// See [`Table::changes`].
    changes: u64,
}

impl Found {
    /// Packets of which there may be the connections in it.
    pub const AT_MOST: usize = 32;
}

/// So many connections are many. The index of fewer stays in a core's own caches.
const MANY: usize = 256;

/// The connections of one guest: found by their ends, by what they have for the guest,
/// and by their timers.
#[derive(Debug)]
pub struct Table<H> {
    entries: Slab<Entry<H>>,
    by_ends: HashTable<(Ends, ConnectionId)>,
    /// The one found last: packets come in runs.
    latest: Option<(Ends, ConnectionId)>,
    /// Changes of what is found by what ends, modulo 2^64.
    changes: u64,
    /// Guests choose their ports, and must not be able to choose where they lie.
    hasher: RandomState,
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
            by_ends: HashTable::new(),
            latest: None,
            changes: 0,
            hasher: RandomState::new(),
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
        self.set_found(ends, id);
        Ok(id)
    }

    /// Has the connection with these ends be this one.
    fn set_found(&mut self, ends: Ends, id: ConnectionId) {
        let hasher = &self.hasher;
        let rehash = |(ends, _): &(Ends, ConnectionId)| hasher.hash_one(ends);
        self.by_ends
            .entry(hasher.hash_one(ends), |(other, _)| *other == ends, rehash)
            .and_modify(|(_, found)| *found = id)
            .or_insert((ends, id));
        self.note_change();
    }

    fn note_change(&mut self) {
        self.latest = None;
        self.changes = self.changes.wrapping_add(1);
    }

    fn find_hashed(&self, hash: u64, ends: Ends) -> Option<ConnectionId> {
        let found = self.by_ends.find(hash, |(other, _)| *other == ends);
        found.map(|(_, id)| *id)
    }

    /// The connection that a packet of the guest's belongs to.
    pub fn find(&mut self, header: &Header) -> Option<ConnectionId> {
        let ends = Ends::new(header.dst, header.src);
        if let Some((latest, id)) = self.latest
            && latest == ends
        {
            return Some(id);
        }
        let id = self.find_ends(header.dst, header.src)?;
        self.latest = Some((ends, id));
        Some(id)
    }

    /// The connections that packets of the guest's belong to, which go from and to these ends, if
    /// to any. Among many connections most of the time to find one is that of fetching it
    /// from memory; here those of several are fetched at the same time. Of further packets than
    /// [`Found::AT_MOST`], and among few connections, it finds none.
    pub fn find_all(&self, packets: impl Iterator<Item = Option<(VsockAddr, VsockAddr)>>) -> Found {
        let mut found = Found {
            ids: [None; Found::AT_MOST],
            len: 0,
            changes: self.changes,
        };
        if self.by_ends.len() < MANY {
            return found;
        }
        let mut wanted = [(Ends::NONE, 0); Found::AT_MOST];
        let mut last = (Ends::NONE, 0);
        for (wanted, packet) in wanted.iter_mut().zip(packets) {
            let ends = packet.map_or(Ends::NONE, |(from, to)| Ends::new(to, from));
            if last.0 != ends {
                last = (ends, self.hasher.hash_one(ends));
            }
            *wanted = last;
            found.len += 1;
        }
        for (id, (ends, hash)) in found.ids.iter_mut().zip(&wanted[..found.len]) {
            *id = self.find_hashed(*hash, *ends);
        }
        found
    }

    /// The connection that a packet of the guest's belongs to: the one of this index when all
    /// were [found](Self::find_all), or, if there are others since, [now](Self::find).
    pub fn find_again(
        &mut self,
        found: &Found,
        index: usize,
        header: &Header,
    ) -> Option<ConnectionId> {
        if index < found.len && found.changes == self.changes {
            found.ids[index]
        } else {
            self.find(header)
        }
    }

    /// The connection between these ends.
    pub fn find_ends(&self, host: VsockAddr, guest: VsockAddr) -> Option<ConnectionId> {
        let ends = Ends::new(host, guest);
        self.find_hashed(self.hasher.hash_one(ends), ends)
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
        let is_meant = |found: &(Ends, ConnectionId)| *found == (ends, id);
        let hash = self.hasher.hash_one(ends);
        if let Ok(found) = self.by_ends.find_entry(hash, is_meant) {
            found.remove();
            self.note_change();
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
    fn finds_those_of_several_packets_at_once_and_what_has_become_of_them() {
        let many = MANY as u32;
        let mut table = Table::new(2 * MANY);
        let insert = |table: &mut Table<()>, port| {
            table.insert(connection(port, Instant::now()), ()).unwrap()
        };
        let ids: Vec<_> = (0..many).map(|port| insert(&mut table, port)).collect();
        let packets: Vec<_> = [5, 7, 7, many, 9].map(packet).into();
        let find_all = |table: &Table<()>| {
            table.find_all(packets.iter().map(|packet| Some((packet.src, packet.dst))))
        };
        let found_again = |table: &mut Table<()>, found: &Found| -> Vec<_> {
            let again = |(index, packet)| table.find_again(found, index, packet);
            packets.iter().enumerate().map(again).collect()
        };
        let [five, seven, nine] = [5, 7, 9].map(|port| Some(ids[port]));
        let found = find_all(&table);
        assert_eq!(found.len, packets.len());
        let all = [five, seven, seven, None, nine];
        assert_eq!(found_again(&mut table, &found), all);

        table.forget(ids[7]);
        let all = [five, None, None, None, nine];
        assert_eq!(found_again(&mut table, &found), all);
        let new = Some(insert(&mut table, many));
        let again = insert(&mut table, 5);
        let all = [Some(again), None, None, new, nine];
        assert_eq!(found_again(&mut table, &found), all);
        let found = find_all(&table);
        assert_eq!(found_again(&mut table, &found), all);

        let beyond = (0..2 * Found::AT_MOST as u32).map(packet);
        let found = table.find_all(beyond.map(|packet| Some((packet.src, packet.dst))));
        let last = Found::AT_MOST + 1;
        let found = table.find_again(&found, last, &packet(last as u32));
        assert_eq!(found, Some(ids[last]));
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
