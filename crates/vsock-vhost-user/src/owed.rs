//! Notifications of returned TX chains that are put off.
//!
//! A guest that sends one packet and waits for the answer is notified twice: its chain came
//! back, and here is the answer. The first wakes it for nothing. So a driver that wants to be
//! notified of returned chains is so a little later, and then once for many: when they come
//! to a part of its ring, or else by a deadline.
//!
//! ```text
//!            chains came back,              as many as may be: notify
//!            notification wanted   ┌──────┐ deadline: notify, if it is still wanted
//!   nothing ──────────────────────▶│ owed ├──────────────────────────────────────▶ nothing
//!                                  └──▲─┬─┘
//!                                     └─┘ more came back. Is it wanted anew, the driver has
//!                                         looked by itself, and has time again
//! ```
//!
//! The RX ring's notification neither brings this one nor stands for it: Linux has an
//! interrupt for each ring, and looks at that ring alone. So for Linux this is what interrupt
//! coalescing is to a network card; all that waits there for a TX chain is the memory of the
//! packet in it, a sender that asked for MSG_ZEROCOPY, and, when the ring is full, the next
//! packet. A driver that looks at both rings whenever it wakes up is not notified at all.
//!
//! Whether it is done at all is [learnt](crate::thrift): it has to make exchanges shorter. Some
//! guests do wait, too: they send a packet, and sleep until its chain comes back. A guest that
//! falls silent until the deadline, without having been spared more by then than the silence
//! may have cost, is one of those.

use std::time::{Duration, Instant};

use crate::thrift::Thrift;

/// How long a notification is put off while there are turns in which to make up for it.
const WAITS: Duration = Duration::from_micros(250);

/// How much later it is made up for when there are none. A timer that fires takes the worker
/// some 15 µs, and while a guest is busy it fires for nothing.
const GRACE: Duration = Duration::from_micros(750);

/// Notifications put off that outweigh one that came too late by all that time. Each would
/// have cost the guest and the worker some 3 µs.
const WORTH: u32 = 256;

/// What a guest has not been notified of.
#[derive(Default, Debug)]
pub(crate) struct Owed {
    /// When it is to be notified, if it is owed that.
    due: Option<Instant>,
    /// Chains returned since the driver has asked to be notified of the first of them.
    chains: u16,
    /// Since when no chain has been returned.
    silent_since: Option<Instant>,
    /// Notifications put off since the guest was silent last.
    put_off: u32,
    thrift: Thrift,
}

impl Owed {
    /// So many `chains` were returned, of which the driver has `asked` to be notified, or has
    /// not. `true` when it is to be now: at the latest when it is owed that for `most` chains.
    pub(crate) fn returned(&mut self, chains: u16, asked: bool, most: u16, now: Instant) -> bool {
        if chains == 0 {
            return false;
        }
        self.thrift.returned(chains, now);
        if asked {
            // Who asks anew has seen those before.
            self.chains = 0;
            self.due = Some(now + WAITS);
        }
        if self.due.is_none() {
            return false;
        }
        self.chains = self.chains.saturating_add(chains);
        if self.chains >= most || !self.thrift.puts_off() {
            self.due = None;
            return true;
        }
        self.put_off = self.put_off.saturating_add(1);
        self.silent_since = Some(now);
        false
    }

    /// When [`Self::fall_due`] is to be asked at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.due.map(|due| due + GRACE)
    }

    /// How many chains the driver is to be notified of now, unless it has seen them by itself.
    pub(crate) fn fall_due(&mut self, now: Instant) -> Option<u16> {
        self.due.take_if(|due| *due <= now)?;
        let silence = self
            .silent_since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        // Perhaps the guest has waited.
        if silence >= WAITS && std::mem::take(&mut self.put_off) < WORTH {
            self.thrift.has_harmed();
        }
        Some(self.chains)
    }

    /// Puts off for as long as it does no harm.
    #[cfg(test)]
    pub(crate) fn eager() -> Self {
        Self {
            thrift: Thrift::eager(),
            ..Self::default()
        }
    }

    /// The ring stops, or starts anew: whether something was owed.
    pub(crate) fn settle(&mut self) -> bool {
        self.due.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chains that may be owed.
    const MOST: u16 = 32;
    const MICROSECOND: Duration = Duration::from_micros(1);

    /// Time that a notification takes from a guest.
    const COST: Duration = Duration::from_micros(3);

    /// A guest that looks at returned chains only when it is notified, as Linux does.
    struct Scene {
        owed: Owed,
        now: Instant,
        asks: bool,
        notified: u32,
    }

    impl Scene {
        fn new() -> Self {
            Self {
                owed: Owed::default(),
                now: Instant::now(),
                asks: true,
                notified: 0,
            }
        }

        /// Its notifications are put off.
        fn busy() -> Self {
            let mut scene = Self::new();
            scene.send_each(20 * MICROSECOND, 8_000);
            assert!(scene.owed.thrift.puts_off());
            scene
        }

        fn notify(&mut self) {
            self.now += COST;
            self.asks = true;
            self.notified += 1;
        }

        /// The guest sends a packet. Whether it is notified in that turn.
        fn send(&mut self) -> bool {
            let before = self.notified;
            let asked = std::mem::replace(&mut self.asks, false);
            if self.owed.returned(1, asked, MOST, self.now)
                || self.owed.fall_due(self.now).is_some()
            {
                self.notify();
            }
            self.notified > before
        }

        /// Sends one packet and waits for its chain; tells how long that took.
        fn send_and_wait(&mut self) -> Duration {
            self.now += 20 * MICROSECOND;
            let start = self.now;
            if !self.send() {
                self.now = self.owed.deadline().unwrap();
                assert!(self.owed.fall_due(self.now).is_some());
                self.notify();
            }
            self.now - start
        }

        fn send_each(&mut self, interval: Duration, times: u32) -> u32 {
            let before = self.notified;
            for _ in 0..times {
                self.now += interval;
                self.send();
            }
            self.notified - before
        }
    }

    #[test]
    fn notifies_a_busy_guest_once_for_many() {
        let mut scene = Scene::new();
        let notified = scene.send_each(20 * MICROSECOND, 100_000);
        assert!((5_000..20_000).contains(&notified), "{notified}");
    }

    #[test]
    fn notifies_at_the_latest_when_as_many_are_owed_as_may_be() {
        let mut scene = Scene::busy();
        assert!(scene.owed.returned(MOST, true, MOST, scene.now));
        assert_eq!(scene.owed.deadline(), None);
        for chain in 1..MOST {
            assert!(!scene.owed.returned(1, chain == 1, MOST, scene.now));
        }
        assert!(scene.owed.returned(1, false, MOST, scene.now));
        assert!(scene.owed.returned(1, true, 0, scene.now));
    }

    #[test]
    fn notifies_nobody_who_has_not_asked() {
        let mut scene = Scene::busy();
        scene.owed.settle();
        assert!(!scene.owed.returned(0, true, MOST, scene.now));
        assert!(!scene.owed.returned(MOST, false, MOST, scene.now));
        assert_eq!(scene.owed.deadline(), None);
    }

    #[test]
    fn owes_those_who_ask_anew_nothing_of_what_they_have_seen() {
        let mut scene = Scene::busy();
        for _ in 0..100 {
            scene.now += 20 * MICROSECOND;
            assert!(!scene.owed.returned(1, true, MOST, scene.now));
            assert_eq!(scene.owed.fall_due(scene.now), None);
        }
        assert_eq!(scene.owed.fall_due(scene.now + WAITS), Some(1));
        assert_eq!(scene.owed.fall_due(scene.now + WAITS), None);
    }

    #[test]
    fn a_guest_that_waits_for_each_chain_hardly_ever_has_to() {
        for mut scene in [Scene::new(), Scene::busy()] {
            let waited: Duration = (0..100_000).map(|_| scene.send_and_wait()).sum();
            let beside = waited - 100_000 * COST;
            let longest = WAITS + GRACE;
            assert!((longest..20 * longest).contains(&beside), "{beside:?}");
        }
    }

    #[test]
    fn a_guest_that_waits_once_in_a_while_is_not_put_off_when_it_does() {
        let mut scene = Scene::busy();
        let mut waited = Duration::ZERO;
        for _ in 0..10_000 {
            scene.send_each(20 * MICROSECOND, 10);
            waited += scene.send_and_wait();
        }
        assert!(waited < 10_000 * COST + 20 * (WAITS + GRACE), "{waited:?}");
    }

    #[test]
    fn a_pause_does_not_make_a_busy_guest_less_busy() {
        let mut scene = Scene::busy();
        scene.send_each(20 * MICROSECOND, 500);
        scene.send_and_wait();
        assert!(scene.send_each(20 * MICROSECOND, 50) < 10);
    }

    #[test]
    fn owes_nothing_when_it_has_settled() {
        let mut scene = Scene::busy();
        scene.owed.returned(1, true, MOST, scene.now);
        assert!(scene.owed.settle());
        assert!(!scene.owed.settle());
        assert_eq!(scene.owed.fall_due(scene.now + WAITS), None);
    }
}
