//! Time as this process could use it: a machine may stop it, or have too much else to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

/// How often it is looked whether the process runs.
const BEAT: Duration = Duration::from_millis(10);

/// A stopwatch of the clock's time, and of that in which this process ran: at most two beats
/// pass between two looks, however long it was.
pub struct Waking {
    start: Instant,
    beats: Arc<AtomicU32>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Waking {
    pub fn start() -> Self {
        let (beats, ending) = (Arc::<AtomicU32>::default(), Arc::<AtomicBool>::default());
        let thread = spawn({
            let (beats, ending) = (Arc::clone(&beats), Arc::clone(&ending));
            move || {
                while !ending.load(Ordering::Relaxed) {
                    let look = Instant::now();
                    sleep(BEAT);
                    let passed = 1 + u32::from(look.elapsed() >= 2 * BEAT);
                    beats.fetch_add(passed, Ordering::Relaxed);
                }
            }
        });
        Self {
            start: Instant::now(),
            beats,
            ending,
            thread: Some(thread),
        }
    }

    /// The clock's time.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Fails unless what began at the start timed out by now: not before its time by the
    /// clock, and not long after it, as far as this process could run.
    #[track_caller]
    pub fn assert_timed_out(&self, timeout: Duration, what: &str) {
        /// A device counts from when it last looked at the clock.
        const EARLY: Duration = Duration::from_millis(100);
        const LATE: Duration = Duration::from_secs(2);
        let (elapsed, ran) = (self.elapsed(), self.beats.load(Ordering::Relaxed) * BEAT);
        assert!(
            elapsed > timeout - EARLY && ran < timeout + LATE,
            "{what} timed out after {elapsed:?}, of which this process ran {ran:?}; \
             {timeout:?} are right"
        );
    }
}

impl Drop for Waking {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It cannot have panicked.
            let _ = thread.join();
        }
    }
}
