//! What a guest's traffic costs, and who pays: the sender for payload that waits, the
//! opener for connections.

use std::collections::HashMap;
use std::sync::Arc;

use vsock_packet::Cid;

use crate::sync::atomic::{AtomicUsize, Ordering};

/// The charge for payload that waits: to its sender in all, and to the sender at this
/// receiver.
#[derive(Clone, Debug)]
pub(crate) struct Charge {
    sender: Arc<AtomicUsize>,
    here: Arc<AtomicUsize>,
}

impl Charge {
    /// Charges `bytes` more. `false` when that is too much: the sender has more waiting
    /// here than is left of its limit. One receiver that takes nothing thus leaves it
    /// half of the limit for the others.
    pub(crate) fn add(&self, bytes: usize, limit: usize) -> bool {
        let total = self.sender.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let here = self.here.fetch_add(bytes, Ordering::Relaxed) + bytes;
        bytes == 0 || here <= limit.saturating_sub(total)
    }

    /// Takes back what was charged.
    pub(crate) fn sub(&self, bytes: usize) {
        self.sender.fetch_sub(bytes, Ordering::Relaxed);
        self.here.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What waits at one receiver, by sender.
#[derive(Debug, Default)]
pub(crate) struct Waiting(HashMap<Cid, Arc<AtomicUsize>>);

impl Waiting {
    /// The charge for what a sender has waiting here. `sender` is what it has in all.
    pub(crate) fn of(&mut self, cid: Cid, sender: &Arc<AtomicUsize>) -> Charge {
        // Those of senders that have no connection here any more are of no use.
        self.0.retain(|_, here| Arc::strong_count(here) > 1);
        let here = Arc::clone(self.0.entry(cid).or_default());
        Charge {
            sender: Arc::clone(sender),
            here,
        }
    }
}

/// One of the connections that a guest may have opened, free when neither half of it is
/// left.
#[derive(Debug)]
pub(crate) struct Slot(Arc<AtomicUsize>);

impl Slot {
    /// Takes one more; `None` when `limit` are taken.
    pub(crate) fn take(taken: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        let slot = Self(Arc::clone(taken));
        // The slot gives back what it took, also when it was one too many.
        (taken.fetch_add(1, Ordering::Relaxed) < limit).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_receiver_leaves_half_of_the_limit_for_others() {
        let sender = Arc::default();
        let hog = Waiting::default().of(Cid::new(4), &sender);
        let other = Waiting::default().of(Cid::new(5), &sender);
        assert!(hog.add(50, 100));
        assert!(!hog.add(1, 100));
        hog.sub(1);
        assert!(other.add(25, 100));
        assert!(!other.add(1, 100));
    }

    #[test]
    fn a_slot_is_free_again_when_dropped() {
        let taken = Arc::default();
        let slot = Slot::take(&taken, 1).unwrap();
        assert!(Slot::take(&taken, 1).is_none());
        drop(slot);
        assert!(Slot::take(&taken, 1).is_some());
    }
}
