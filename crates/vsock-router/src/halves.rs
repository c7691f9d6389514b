//! The halves that lead to a member, found by their ends.
//!
//! ```text
//!   index: hash of the ends ─▶ place      places: halves that lie as they are
//!   ┌────┬────┬────┬────┐                ┌────────┬────────┬────────┬────────┐
//!   │    │  2 │    │  0 │ ─────────────▶ │ flow 0 │ flow 1 │ flow 2 │  free  │
//!   └────┴────┴────┴────┘                └────────┴────────┴────────┴────────┘
//! ```
//!
//! The index takes five bytes for each half, so that it stays in the caches among many: the
//! flow, which is needed anyway, has the ends that it is compared by. A flow is one cache line;
//! what only payload needs lies in the same place of another list.

use std::hash::{BuildHasher, RandomState};
use std::hint::black_box;
use std::sync::Arc;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use slab::Slab;

use crate::flow::{Ends, Half};
use crate::member::Member;
use crate::outstanding::{Aside, Outstanding};

/// A half, and who is at its other end.
#[repr(align(64))]
pub(crate) struct Flow {
    pub(crate) half: Half,
    pub(crate) peer: Arc<Member>,
}

/// One cache line, also in its place: all that a packet without payload needs of it.
const _: () = assert!(size_of::<Result<Flow, usize>>() <= 64);

/// Memory for so many is kept when the last one goes; for more it is given back then.
const KEPT: usize = 1024;

/// So many are looked up at once.
pub(crate) const AT_ONCE: usize = 32;

/// Where halves are, in the order in which they were asked for.
pub(crate) type Found = [u32; AT_ONCE];

/// No place.
const NOWHERE: u32 = u32::MAX;

/// All of a flow.
pub(crate) struct Whole<'a> {
    pub(crate) half: &'a mut Half,
    pub(crate) out: Aside<'a>,
    pub(crate) peer: &'a Arc<Member>,
}

/// The halves that lead to a member.
#[derive(Default)]
pub(crate) struct Halves {
    index: HashTable<u32>,
    places: Slab<Flow>,
    /// What is outstanding in each place; nothing in a free one.
    outstanding: Vec<Outstanding>,
    /// Guests choose their ports, and must not be able to choose where they lie.
    hasher: RandomState,
}

impl Halves {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// All of them, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Flow> {
        self.places.iter().map(|(_, flow)| flow)
    }

    fn hash(&self, ends: Ends) -> u64 {
        self.hasher.hash_one(ends)
    }

    fn is_at(&self, place: u32, ends: Ends) -> bool {
        let flow = self.places.get(place as usize);
        flow.is_some_and(|flow| flow.half.ends() == ends)
    }

    fn find(&self, hash: u64, ends: Ends) -> Option<u32> {
        let is_meant = |place: &u32| self.is_at(*place, ends);
        self.index.find(hash, is_meant).copied()
    }

    /// Finds [some](AT_ONCE) at once. Among many, the time to find one is that of fetching a
    /// line of the index, and then one of the half, from memory. Here nothing waits for one
    /// before the last is asked for, so that they come at the same time.
    pub(crate) fn find_all(&self, all: impl Iterator<Item = Ends> + Clone) -> Found {
        let mut hashes = [0; AT_ONCE];
        for (hash, ends) in hashes.iter_mut().zip(all.clone()) {
            *hash = self.hash(ends);
        }
        let mut found = [NOWHERE; AT_ONCE];
        for ((place, hash), _) in found.iter_mut().zip(&hashes).zip(all.clone()) {
            // The first that may be it most often is.
            if let Some(first) = self.index.find(*hash, |_| true) {
                *place = *first;
            }
        }
        let there = |place: &&u32| self.places.contains(**place as usize);
        black_box(found.iter().filter(there).count());
        for ((place, hash), ends) in found.iter_mut().zip(&hashes).zip(all) {
            if !self.is_at(*place, ends) {
                *place = self.find(*hash, ends).unwrap_or(NOWHERE);
            }
        }
        found
    }

    /// The one with these ends.
    pub(crate) fn get(&self, ends: Ends) -> Option<&Flow> {
        let place = self.find(self.hash(ends), ends)?;
        self.places.get(place as usize)
    }

    /// The one with these ends.
    pub(crate) fn get_mut(&mut self, ends: Ends) -> Option<Whole<'_>> {
        self.get_found(None, ends)
    }

    /// The one with these ends, wherever it is by now, that may have been `found` before.
    pub(crate) fn get_found(&mut self, found: Option<u32>, ends: Ends) -> Option<Whole<'_>> {
        let place = match found {
            Some(place) if self.is_at(place, ends) => place,
            _ => self.find(self.hash(ends), ends)?,
        };
        let Flow { half, peer } = self.places.get_mut(place as usize)?;
        let out = Aside::new(&mut self.outstanding, place as usize);
        Some(Whole { half, out, peer })
    }

    /// Adds one. `false` when there is one with the same ends.
    pub(crate) fn insert(&mut self, flow: Flow) -> bool {
        let ends = flow.half.ends();
        let Self {
            index,
            places,
            outstanding,
            hasher,
        } = self;
        let ends_at = |place: &u32| places[*place as usize].half.ends();
        let hash = hasher.hash_one(ends);
        let entry = index.entry(
            hash,
            |place| ends_at(place) == ends,
            |place| hasher.hash_one(ends_at(place)),
        );
        let Entry::Vacant(entry) = entry else {
            return false;
        };
        // A connection takes hundreds of bytes: memory ends long before 32 bits do.
        entry.insert(places.vacant_key() as u32);
        if places.insert(flow) == outstanding.len() {
            outstanding.push(Outstanding::default());
        }
        true
    }

    /// Takes one out.
    pub(crate) fn remove(&mut self, ends: Ends) -> Option<Flow> {
        let is_meant = |place: &u32| self.places[*place as usize].half.ends() == ends;
        let found = self.index.find_entry(self.hasher.hash_one(ends), is_meant);
        let (place, _) = found.ok()?.remove();
        let flow = self.places.remove(place as usize);
        self.outstanding[place as usize] = Outstanding::default();
        if self.places.is_empty() && self.places.capacity() > KEPT {
            self.index = HashTable::new();
            self.places = Slab::new();
            self.outstanding = Vec::new();
        }
        Some(flow)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use vsock_packet::{Cid, Header, Op, SocketType, VsockAddr};

    use super::*;
    use crate::account::{Slot, Waiting};
    use crate::flow::Claim;
    use crate::port::{Port, Receiver};
    use crate::record::{ConnectionKind, Recorder};
    use crate::switch::Switch;
    use crate::sync::atomic::AtomicUsize;

    /// Receives nothing.
    struct Nowhere;

    impl Port for Nowhere {
        fn is_up(&self) -> bool {
            false
        }

        fn pass(&self, _: &mut dyn FnMut(&mut dyn Receiver)) {}

        fn wake(&self) {}
    }

    /// The way of a request from this port.
    fn flow(port: u32, peer: &Arc<Member>) -> Flow {
        let [from, to] = [3, 4].map(|cid| VsockAddr::new(Cid::new(cid), port));
        let (kind, stream) = (ConnectionKind::Sibling, SocketType::Stream);
        let record = Arc::new(Recorder::default()).record(kind, from, to, stream, Instant::now());
        let claim = Claim {
            _slot: Slot::take(&Arc::default(), 1).unwrap(),
            record,
        };
        let charge = Waiting::default().of(Cid::new(3), &Arc::<AtomicUsize>::default());
        let request = Header::new(Op::Request, from, to);
        Flow {
            half: Half::asked(&request, charge, Arc::new(claim)),
            peer: Arc::clone(peer),
        }
    }

    #[test]
    fn finds_each_and_keeps_no_memory_for_many_that_are_gone() {
        let peer = Switch::default().service(Cid::new(3), Arc::new(Nowhere));
        let mut halves = Halves::default();
        let many = 2 * KEPT as u32;
        let mut all_ends = Vec::new();
        for port in 0..many {
            let flow = flow(port, &peer);
            all_ends.push(flow.half.ends());
            assert!(halves.insert(flow));
        }
        assert!(!halves.insert(flow(5, &peer)), "it is there already");
        // Here and there, so that places are free in between.
        let mut at = 0;
        while !all_ends.is_empty() {
            at = (at + 7) % all_ends.len();
            let ends = all_ends.swap_remove(at);
            assert_eq!(halves.remove(ends).map(|flow| flow.half.ends()), Some(ends));
            assert!(halves.get(ends).is_none());
            let left = all_ends.last().copied();
            let found = left.and_then(|ends| Some(halves.get(ends)?.half.ends()));
            assert_eq!((found, halves.len()), (left, all_ends.len()));
        }
        assert_eq!((halves.places.capacity(), halves.index.capacity()), (0, 0));
        assert_eq!(halves.outstanding.capacity(), 0);
        assert!(halves.insert(flow(5, &peer)));
    }

    #[test]
    fn finds_several_at_once_and_what_is_in_their_places_since() {
        let peer = Switch::default().service(Cid::new(3), Arc::new(Nowhere));
        let mut halves = Halves::default();
        let mut ends = Vec::new();
        for port in 0..100 {
            let flow = flow(port, &peer);
            ends.push(flow.half.ends());
            if port < 99 {
                assert!(halves.insert(flow));
            }
        }
        let [gone, there, new] = [ends[7], ends[98], ends[99]];
        let wanted = [there, gone, there, new, gone];
        let found = halves.find_all(wanted.into_iter());
        let at = |place: u32| Some(halves.places.get(place as usize)?.half.ends());
        let found_ends = [0, 1, 2, 3, 4].map(|index| at(found[index]));
        let all = [Some(there), Some(gone), Some(there), None, Some(gone)];
        assert_eq!(found_ends, all);

        halves.remove(gone);
        assert!(halves.insert(flow(99, &peer)), "in the place that is free");
        assert_eq!(halves.places[found[1] as usize].half.ends(), new);
        let mut again = |index: usize| {
            let whole = halves.get_found(Some(found[index]), wanted[index]);
            whole.map(|whole| whole.half.ends())
        };
        let all = [Some(there), None, Some(there), Some(new), None];
        assert_eq!([0, 1, 2, 3, 4].map(&mut again), all);
    }
}
