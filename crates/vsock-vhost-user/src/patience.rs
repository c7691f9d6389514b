//! Whether a worker that has nothing to do sleeps at once, or looks for more to do first.
//!
//! A thread that sleeps has to be roused. Where that means to rouse its core too, it takes
//! several times as long as what it is roused for; where those that the worker waits for need
//! the very core it looks on, looking keeps them from it. Which of them it is, pauses tell:
//! some are slept through and some are looked through, and what made them shorter is kept to
//! for a while.

use std::time::{Duration, Instant};

use crate::config::GuestConfig;

/// Pauses that are measured to know one way.
const TRIAL: u32 = 16;

/// Pauses after which it is time to measure again, when looking was better; when it was not, at
/// first, and at most.
const KEEP_LOOKING: u32 = 2048;
const KEEP_SLEEPING: u32 = 256;
const KEEP_SLEEPING_LONGEST: u32 = 16_384;

/// What looking has to make of a pause: three quarters of what sleeping does, for it takes a core
/// that others could use, or that could sleep. On a core where another worker looks, too, hardly
/// less than sleeping does.
const WORTH_A_CORE: (u32, u32) = (3, 4);
const WORTH_A_SHARE: (u32, u32) = (15, 16);

/// Looks in vain in a row that end a time of looking.
const MISSES: u32 = 8;

/// What a worker has learnt about its pauses.
#[derive(Debug)]
pub(crate) struct Patience {
    /// How long to look.
    time: Duration,
    stage: Stage,
    /// Pauses that are left in this stage.
    left: u32,
    /// How long the pauses of this stage were, altogether.
    paused: Duration,
    /// Since when there is nothing to do.
    idle_since: Option<Instant>,
    /// Another worker was on this core then.
    shares_core: bool,
    misses: u32,
    keep_sleeping: u32,
}

/// What is done in pauses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    TrySleeping,
    TryLooking { slept: Duration },
    KeepLooking,
    KeepSleeping,
}

impl Patience {
    /// Looks for `time` at most; not at all when that is zero, and never for longer than
    /// anybody [may](GuestConfig::MAX_BUSY_POLL).
    pub(crate) fn new(time: Duration) -> Self {
        Self {
            time: time.min(GuestConfig::MAX_BUSY_POLL),
            stage: Stage::TrySleeping,
            left: TRIAL,
            paused: Duration::ZERO,
            idle_since: None,
            shares_core: false,
            misses: 0,
            keep_sleeping: KEEP_SLEEPING,
        }
    }

    /// Whether to look in the pause that comes next.
    pub(crate) fn looks(&self) -> bool {
        matches!(self.stage, Stage::TryLooking { .. } | Stage::KeepLooking)
    }

    /// There is nothing to do, perhaps on a core that another worker shares. Until when to look
    /// for something.
    pub(crate) fn idles(&mut self, now: Instant, shares_core: bool) -> Instant {
        self.idle_since = Some(now);
        self.shares_core = shares_core;
        now + self.time
    }

    /// Looking has `found` something, or not, by `now`. Who looks and loses its core to
    /// somebody else for long might as well have slept.
    pub(crate) fn looked(&mut self, found: bool, now: Instant) {
        let had_core = self
            .idle_since
            .is_some_and(|since| now.saturating_duration_since(since) <= 2 * self.time);
        self.misses = if found && had_core {
            0
        } else {
            self.misses + 1
        };
        if self.misses == MISSES && self.stage == Stage::KeepLooking {
            self.enter(Stage::TrySleeping, TRIAL);
        }
    }

    /// There is something to do again.
    pub(crate) fn wakes(&mut self, now: Instant) {
        let Some(since) = self.idle_since.take() else {
            return;
        };
        self.paused += now.saturating_duration_since(since);
        self.left -= 1;
        // Of a trial that has failed, no more is needed.
        let has_failed = match self.stage {
            Stage::TrySleeping => self.paused >= 2 * TRIAL * self.time,
            Stage::TryLooking { slept } => {
                let (part, whole) = if self.shares_core {
                    WORTH_A_SHARE
                } else {
                    WORTH_A_CORE
                };
                whole * self.paused >= part * slept
            }
            Stage::KeepLooking | Stage::KeepSleeping => false,
        };
        if self.left == 0 || has_failed {
            self.conclude(has_failed);
        }
    }

    fn conclude(&mut self, has_failed: bool) {
        match self.stage {
            Stage::TrySleeping if !has_failed => {
                let slept = self.paused;
                self.enter(Stage::TryLooking { slept }, TRIAL);
            }
            Stage::TryLooking { .. } if !has_failed => {
                self.keep_sleeping = KEEP_SLEEPING;
                self.enter(Stage::KeepLooking, KEEP_LOOKING);
            }
            Stage::TryLooking { .. } => {
                self.enter(Stage::KeepSleeping, self.keep_sleeping);
                self.keep_sleeping = (2 * self.keep_sleeping).min(KEEP_SLEEPING_LONGEST);
            }
            // Pauses so long that what rousing takes is no matter, or time to measure again.
            _ => self.enter(Stage::TrySleeping, TRIAL),
        }
    }

    fn enter(&mut self, stage: Stage, pauses: u32) {
        self.stage = stage;
        self.left = pauses;
        self.paused = Duration::ZERO;
        self.misses = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_micros(50);

    /// A worker, and who keeps it busy.
    struct Scene {
        patience: Patience,
        now: Instant,
        shares_core: bool,
    }

    impl Scene {
        fn new(time: Duration) -> Self {
            Self {
                patience: Patience::new(time),
                now: Instant::now(),
                shares_core: false,
            }
        }

        /// Some pauses, so many microseconds long when they are slept through, and when they
        /// are looked through. How many of them were looked through.
        fn pause(&mut self, pauses: usize, slept: u64, looked: u64) -> usize {
            (0..pauses)
                .filter(|_| self.pause_once(slept, looked))
                .count()
        }

        fn pause_once(&mut self, slept: u64, looked: u64) -> bool {
            let looks = self.patience.looks();
            let until = self.patience.idles(self.now, self.shares_core);
            let took = Duration::from_micros(if looks { looked } else { slept });
            if looks {
                let now = self.now + took;
                self.patience.looked(now <= until, now);
            }
            self.now += took;
            self.patience.wakes(self.now);
            looks
        }
    }

    #[test]
    fn looks_where_that_makes_pauses_shorter() {
        let mut scene = Scene::new(TIME);
        let looked = scene.pause(10_000, 60, 15);
        assert!(looked > 9_800, "{looked}");
    }

    #[test]
    fn sleeps_where_looking_makes_nothing_shorter() {
        let mut scene = Scene::new(TIME);
        let looked = scene.pause(100_000, 8, 8);
        assert!((1..500).contains(&looked), "{looked}");
    }

    #[test]
    fn looks_for_less_where_another_looks_too() {
        let mut scene = Scene::new(TIME);
        assert!(scene.pause(10_000, 60, 50) < 500);
        let mut scene = Scene::new(TIME);
        scene.shares_core = true;
        let looked = scene.pause(10_000, 60, 50);
        assert!(looked > 9_800, "{looked}");
    }

    #[test]
    fn sleeps_through_long_pauses() {
        let mut scene = Scene::new(TIME);
        assert_eq!(scene.pause(10_000, 200, 150), 0);
    }

    #[test]
    fn stops_looking_when_pauses_become_long() {
        let mut scene = Scene::new(TIME);
        scene.pause(200, 60, 15);
        assert!(scene.patience.looks());
        let looked = scene.pause(1_000, 1_000, 1_000);
        assert!(looked <= MISSES as usize, "{looked}");
    }

    #[test]
    fn learns_that_looking_has_begun_to_pay_and_that_it_has_ceased() {
        let mut scene = Scene::new(TIME);
        scene.pause(50_000, 8, 8);
        scene.pause(20_000, 60, 15);
        assert!(scene.pause(1_000, 60, 15) > 950);
        scene.pause(5_000, 8, 8);
        assert!(scene.pause(1_000, 8, 8) < 50);
    }

    #[test]
    fn stops_looking_when_others_take_the_core_meanwhile() {
        let mut scene = Scene::new(TIME);
        scene.pause(200, 60, 15);
        assert!(scene.patience.looks());
        for _ in 0..MISSES {
            let now = scene.now + Duration::from_millis(3);
            scene.patience.idles(scene.now, false);
            scene.patience.looked(true, now);
            scene.patience.wakes(now);
            scene.now = now;
        }
        assert!(!scene.patience.looks());
    }

    #[test]
    fn never_looks_for_longer_than_anybody_may() {
        let mut scene = Scene::new(Duration::MAX);
        let longest = GuestConfig::MAX_BUSY_POLL;
        assert_eq!(scene.patience.idles(scene.now, false), scene.now + longest);
        scene.pause(1_000, 60, 15);
    }

    #[test]
    fn never_looks_when_it_has_no_time_to() {
        let mut scene = Scene::new(Duration::ZERO);
        assert_eq!(scene.pause(1_000, 60, 15) + scene.pause(1_000, 0, 0), 0);
    }
}
