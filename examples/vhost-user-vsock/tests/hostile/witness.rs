//! A guest that is served all the while: its bytes arrive, and without a pause.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use vsock_testkit::host::Service;
use vsock_testkit::{Guest, Setup};

use super::ECHO;
use super::metronome::Metronome;

/// What goes there and back in one round, in bytes.
const ROUND: usize = 100_000;
/// The pause between rounds: the machine has other scenarios to run.
const PAUSE: Duration = Duration::from_millis(2);
/// The longest a round may take, on a machine that is busy with all that; what the machine
/// took for itself is not counted.
const SLOW: Duration = Duration::from_millis(1500);
/// How long the witness waits for what should be there at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// The thread of a guest that exchanges bytes with the host.
pub(crate) struct Witness {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    _echo: Service,
}

#[derive(Default)]
struct Shared {
    ending: AtomicBool,
    rounds: AtomicU64,
    /// The longest round, in microseconds.
    longest: AtomicU64,
    /// Held during a round: whoever else holds it has it rest.
    at_work: Mutex<()>,
}

impl Witness {
    pub(crate) fn start(socket: &Path, uds_path: &Path) -> Self {
        let echo = Service::echo(uds_path, ECHO).unwrap();
        let shared = Arc::<Shared>::default();
        let setup = Setup {
            patience: PATIENCE,
            ..Setup::default()
        };
        let guest = Guest::start(socket, setup).unwrap();
        let metronome = Metronome::start();
        let thread = spawn({
            let shared = Arc::clone(&shared);
            move || shared.work(guest, &metronome)
        });
        let witness = Self {
            shared,
            thread: Some(thread),
            _echo: echo,
        };
        witness.goes_on();
        witness
    }

    /// Waits for a few more rounds.
    #[track_caller]
    fn goes_on(&self) {
        let enough = self.shared.rounds.load(Ordering::Relaxed) + 3;
        let deadline = Instant::now() + PATIENCE;
        while self.shared.rounds.load(Ordering::Relaxed) < enough {
            assert!(
                Instant::now() < deadline,
                "the witness is not served any more"
            );
            sleep(Duration::from_millis(1));
        }
    }

    /// The witness is served, and never waited long.
    #[track_caller]
    pub(crate) fn was_served(&self) {
        self.goes_on();
        let longest = Duration::from_micros(self.shared.longest.load(Ordering::Relaxed));
        assert!(
            longest < SLOW,
            "the witness waited {longest:?} for {ROUND} bytes"
        );
    }

    /// Does something while the witness rests.
    pub(crate) fn resting<R>(&self, what: impl FnOnce() -> R) -> R {
        let _rest = self
            .shared
            .at_work
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        what()
    }

    /// Ends in order, with what it found.
    #[track_caller]
    pub(crate) fn end(mut self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Shared {
    fn work(&self, mut guest: Guest, metronome: &Metronome) {
        let stream = guest.connect(ECHO).unwrap();
        let mut start = 0;
        while !self.ending.load(Ordering::Relaxed) {
            let work = self.at_work.lock().unwrap_or_else(PoisonError::into_inner);
            let bytes: Vec<u8> = (start..start + ROUND as u32)
                .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
                .collect();
            start = start.wrapping_add(ROUND as u32);
            let (begun, lost) = (Instant::now(), metronome.lost_so_far());
            let echoed = guest.exchange(stream, &bytes, ROUND).unwrap();
            assert!(echoed == bytes, "the witness got other bytes than it sent");
            let mut took = begun.elapsed();
            if took > SLOW {
                took = took.saturating_sub(metronome.lost_with_this() - lost);
            }
            let took = took.as_micros() as u64;
            self.longest.fetch_max(took, Ordering::Relaxed);
            self.rounds.fetch_add(1, Ordering::Relaxed);
            drop(work);
            sleep(PAUSE);
        }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The scenario fails already.
            let _ = thread.join();
        }
    }
}
