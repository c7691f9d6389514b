//! What the machine took for itself: a host that is paused, or has too much to do, lets nobody
//! run, and that is no fault of the daemon's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

/// How often it beats, and a delay that is nothing unusual.
const BEAT: Duration = Duration::from_millis(10);
const USUAL: Duration = Duration::from_millis(20);

/// A thread that does nothing but to notice when it could not.
pub(super) struct Metronome {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    ending: AtomicBool,
    /// The time lost so far, in microseconds.
    lost: AtomicU64,
}

impl Metronome {
    pub(super) fn start() -> Self {
        let shared = Arc::<Shared>::default();
        let thread = spawn({
            let shared = Arc::clone(&shared);
            move || shared.beat()
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// The time lost up to now, a loss that ends at this moment included.
    pub(super) fn lost_with_this(&self) -> Duration {
        // It is noticed with the next beat.
        sleep(3 * BEAT);
        self.lost_so_far()
    }

    /// The time lost up to the last beat.
    pub(super) fn lost_so_far(&self) -> Duration {
        Duration::from_micros(self.shared.lost.load(Ordering::Relaxed))
    }
}

impl Shared {
    fn beat(&self) {
        let mut last = Instant::now();
        while !self.ending.load(Ordering::Relaxed) {
            sleep(BEAT);
            let late = last.elapsed().saturating_sub(BEAT);
            if late > USUAL {
                let late = late.as_micros() as u64;
                self.lost.fetch_add(late, Ordering::Relaxed);
            }
            last = Instant::now();
        }
    }
}

impl Drop for Metronome {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It cannot have panicked.
            let _ = thread.join();
        }
    }
}
