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
//! flow, which is needed anyway, has the ends that it is compared by.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use slab::Slab;

use crate::flow::{Ends, Half};
use crate::member::Member;

/// A half, and who is at its other end.
#[repr(align(64))]
pub(crate) struct Flow {
    pub(crate) half: Half,
    pub(crate) peer: Arc<Member>,
}

/// Two cache lines: all that a packet needs of it.
const _: () = assert!(size_of::<Flow>() <= 128);

/// The halves that lead to a member.
#[derive(Default)]
pub(crate) struct Halves {
    index: HashTable<u32>,
    places: Slab<Flow>,
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
    pub(crate) fn get_mut(&mut self, ends: Ends) -> Option<&mut Flow> {
        self.places.get_mut(self.find(ends)?)
    }

    /// Adds one. `false` when there is one with the same ends.
    pub(crate) fn insert(&mut self, flow: Flow) -> bool {
        let ends = flow.half.ends();
        let Self {
            index,
            places,
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
        places.insert(flow);
        true
    }

    /// Takes one out.
    pub(crate) fn remove(&mut self, ends: Ends) -> Option<Flow> {
        let is_meant = |place: &u32| self.places[*place as usize].half.ends() == ends;
        let found = self.index.find_entry(self.hasher.hash_one(ends), is_meant);
        let (place, _) = found.ok()?.remove();
        Some(self.places.remove(place as usize))
    }
}
