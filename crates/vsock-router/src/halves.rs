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

    fn find(&self, ends: Ends) -> Option<usize> {
        let is_meant = |place: &u32| self.places[*place as usize].half.ends() == ends;
        let place = self.index.find(self.hasher.hash_one(ends), is_meant)?;
        Some(*place as usize)
    }

    /// The one with these ends.
    pub(crate) fn get(&self, ends: Ends) -> Option<&Flow> {
        self.places.get(self.find(ends)?)
    }

    /// The one with these ends.
    pub(crate) fn get_mut(&mut self, ends: Ends) -> Option<Whole<'_>> {
        let place = self.find(ends)?;
        let Flow { half, peer } = self.places.get_mut(place)?;
        let out = Aside::new(&mut self.outstanding, place);
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
}
