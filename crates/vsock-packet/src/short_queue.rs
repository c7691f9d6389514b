//! A queue that is short most of the time.

use std::collections::VecDeque;

/// As many lie in the queue itself.
const NEAR: usize = 8;

/// Memory for so many more is kept when they are gone: as many packets as a window of Linux's
/// has in buffers of Linux's.
const KEPT: usize = 128;

/// A queue of numbers whose first ones lie in itself: while it is short, nothing has to come
/// from elsewhere in memory, which takes long where one of many queues is used.
///
/// ```text
///             start
///   near  │ 5 │ 6 │ 3 │ 4 │ ──▶ far  7, 8, 9, ...
/// ```
#[derive(Clone, Debug, Default)]
pub(crate) struct ShortQueue {
    /// A ring of the first ones, from `start` on.
    near: [u32; NEAR],
    start: u8,
    len_near: u8,
    /// Those behind them: none unless the ring is full.
    #[allow(
        clippy::box_collection,
        reason = "a pointer takes less of a short queue's room"
    )]
    far: Option<Box<VecDeque<u32>>>,
}

impl ShortQueue {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        usize::from(self.len_near) + self.far.as_ref().map_or(0, |far| far.len())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len_near == 0
    }

    /// The place of the one so far behind the first.
    fn place(&self, behind: u8) -> usize {
        usize::from(self.start + behind) % NEAR
    }

    pub(crate) fn front(&self) -> Option<u32> {
        (!self.is_empty()).then(|| self.near[self.place(0)])
    }

    pub(crate) fn push_back(&mut self, value: u32) {
        if usize::from(self.len_near) < NEAR {
            self.near[self.place(self.len_near)] = value;
            self.len_near += 1;
        } else {
            self.far.get_or_insert_default().push_back(value);
        }
    }

    pub(crate) fn pop_front(&mut self) -> Option<u32> {
        let first = self.front()?;
        let place = self.place(0);
        self.start = (self.start + 1) % NEAR as u8;
        match self.pop_far(VecDeque::pop_front) {
            // The ring was full: the first one's place is behind the last one's.
            Some(next) => self.near[place] = next,
            None => self.len_near -= 1,
        }
        Some(first)
    }

    pub(crate) fn pop_back(&mut self) -> Option<u32> {
        if let Some(last) = self.pop_far(VecDeque::pop_back) {
            return Some(last);
        }
        self.len_near = self.len_near.checked_sub(1)?;
        Some(self.near[self.place(self.len_near)])
    }

    /// Takes one of those that do not lie here. With the last one the memory of many goes.
    fn pop_far(&mut self, pop: fn(&mut VecDeque<u32>) -> Option<u32>) -> Option<u32> {
        let far = self.far.as_mut()?;
        let popped = pop(far);
        if far.is_empty() && far.capacity() > KEPT {
            self.far = None;
        }
        popped
    }

    fn iter(&self) -> impl Iterator<Item = u32> {
        let near = (0..self.len_near).map(|behind| self.near[self.place(behind)]);
        near.chain(self.far.iter().flat_map(|far| far.iter().copied()))
    }
}

/// What lay in the ring before does not matter.
impl PartialEq for ShortQueue {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for ShortQueue {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_idle_one_has_memory_for_few() {
        let mut queue = ShortQueue::default();
        for count in [NEAR, NEAR + KEPT, NEAR + KEPT + 1, 10 * KEPT] {
            (0..count as u32).for_each(|value| queue.push_back(value));
            while queue.pop_front().is_some() {}
            let kept = queue.far.as_ref().map_or(0, |far| far.capacity());
            assert!(kept <= KEPT, "{kept} after {count}");
        }
    }

    proptest! {
        #[test]
        fn does_what_any_queue_does(steps in prop::collection::vec(0..5u8, 0..200)) {
            let mut queue = ShortQueue::default();
            let mut model = VecDeque::new();
            for (value, step) in (0..).zip(steps) {
                match step {
                    0 => prop_assert_eq!(queue.pop_front(), model.pop_front()),
                    1 => prop_assert_eq!(queue.pop_back(), model.pop_back()),
                    _ => {
                        queue.push_back(value);
                        model.push_back(value);
                    }
                }
                prop_assert_eq!(queue.front(), model.front().copied());
                prop_assert_eq!((queue.len(), queue.is_empty()), (model.len(), model.is_empty()));
                prop_assert!(queue.iter().eq(model.iter().copied()));
            }
            while queue.pop_front().is_some() {}
            prop_assert_eq!(queue, ShortQueue::default());
        }
    }
}
