//! Trickles: little by little, again and again, and nobody has asked for it.
//!
//! Each time a guest is given a few bytes it is notified, which takes longer than what it does
//! with them, and perhaps the very core that the application writes on. So what a trickle
//! brings is gathered: after each read its socket is left alone for a [pause](PAUSE), and then
//! read whether it was heard of or not.
//!
//! ```text
//!   writes   │ │ │ │ │ │ │ │ ││││││││││││││││││││││││││││││││││
//!   reads    ▼ ▼ ▼ ▼ ▼ ▼ ▼ ▼                ▼                ▼
//!            └─ FEW reads ─┘├──── PAUSE ────┤├──── PAUSE ────┤
//! ```
//!
//! Who writes once, or in turns with the guest, waits for nothing.

use std::time::{Duration, Instant};

/// How long a trickle is left alone after each read: the most that a byte of it waits here. It
/// is longer than a worker looks for more to do by default, so that the worker sleeps meanwhile.
pub(crate) const PAUSE: Duration = Duration::from_micros(100);

/// Reads that follow each other closely until they are taken for a trickle, and how closely.
const FEW: u8 = 8;
const CLOSELY: Duration = Duration::from_micros(50);

/// A read of so many bytes is none of a trickle: before one is gathered, and while it is.
const LITTLE: usize = 4096;
const LITTLE_GATHERED: usize = 32 * 1024;

/// What the last reads from an application gave.
#[derive(Debug, Default)]
pub(crate) struct Trickle {
    last_read: Option<Instant>,
    /// What was read since there was nothing left to read, in bytes.
    bytes: usize,
    /// How often the guest had said something by then.
    said: u32,
    /// Reads in a row that gave little.
    reads: u8,
}

impl Trickle {
    /// A read gave so many bytes.
    pub(crate) fn add(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// All there was has been read. The guest has `said` something so often. Whether it is a
    /// trickle.
    pub(crate) fn goes_on(&mut self, now: Instant, said: u32) -> bool {
        let bytes = std::mem::take(&mut self.bytes);
        let gathered = self.is_gathered();
        let last_read = self.last_read.replace(now);
        let is_close = |last| now.saturating_duration_since(last) <= CLOSELY;
        let follows = gathered || last_read.is_some_and(is_close);
        let little = bytes < if gathered { LITTLE_GATHERED } else { LITTLE };
        let unasked = std::mem::replace(&mut self.said, said) == said;
        self.reads = if follows && little && unasked {
            FEW.min(self.reads + 1)
        } else {
            0
        };
        self.is_gathered()
    }

    /// Whether it is one.
    pub(crate) fn is_gathered(&self) -> bool {
        self.reads == FEW
    }

    /// A read gave nothing.
    pub(crate) fn ends(&mut self) {
        self.reads = 0;
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scene {
        trickle: Trickle,
        now: Instant,
        said: u32,
    }

    impl Scene {
        fn new() -> Self {
            Self {
                trickle: Trickle::default(),
                now: Instant::now(),
                said: 0,
            }
        }

        /// Reads of so many bytes, so long after each other. How many were taken for a trickle.
        fn read(&mut self, reads: usize, bytes: usize, after: Duration) -> usize {
            (0..reads)
                .filter(|_| {
                    self.now += after;
                    self.trickle.add(bytes);
                    self.trickle.goes_on(self.now, self.said)
                })
                .count()
        }
    }

    #[test]
    fn little_by_little_is_a_trickle_and_more_at_once_ends_it() {
        let mut scene = Scene::new();
        let few = usize::from(FEW);
        assert_eq!(scene.read(few, 64, CLOSELY), 0, "the first follows nothing");
        assert_eq!(scene.read(1, 64, CLOSELY), 1);
        assert_eq!(scene.read(10, LITTLE_GATHERED - 1, 2 * PAUSE), 10);
        assert_eq!(scene.read(1, LITTLE_GATHERED, CLOSELY), 0);
        assert_eq!(scene.read(few, 64, CLOSELY), 1);
    }

    #[test]
    fn what_comes_now_and_then_is_none() {
        let mut scene = Scene::new();
        assert_eq!(scene.read(1_000, 64, CLOSELY + Duration::from_nanos(1)), 0);
    }

    #[test]
    fn what_comes_in_large_pieces_is_none() {
        let mut scene = Scene::new();
        assert_eq!(scene.read(1_000, LITTLE, Duration::ZERO), 0);
    }

    #[test]
    fn what_comes_in_turns_with_the_guest_is_none() {
        let mut scene = Scene::new();
        for _ in 0..1_000 {
            scene.said = scene.said.wrapping_add(1);
            assert_eq!(scene.read(3, 64, Duration::ZERO), 0);
        }
        assert!(scene.read(100, 64, Duration::ZERO) > 0);
        scene.said += 1;
        assert_eq!(scene.read(1, 64, Duration::ZERO), 0, "it has become a talk");
    }
}
