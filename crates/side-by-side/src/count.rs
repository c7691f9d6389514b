//! What an application counts, for another thread to look at.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A counter, shared by its clones.
#[derive(Clone, Default, Debug)]
pub(crate) struct Count(Arc<AtomicU64>);

impl Count {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
