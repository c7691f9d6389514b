//! Whether a guest is better off when notifications that it can do without are put off.
//!
//! Being notified for nothing takes the guest time where it, or whom it talks to, needs the
//! core. But where its core would have gone to sleep, it is awake by then, and what it really
//! waits for finds it so: there it is better off. And some guests wait for the very
//! notification that is put off. Which of them it is, the time tells that as many TX chains
//! take with and without: both are tried in turns, and what made it shorter is kept to.

use std::time::{Duration, Instant};

/// Chains in each turn of a trial, and turns in a trial. The first turn is without putting off,
/// the next is with, and so on.
const TRIAL: u32 = 64;
const TURNS: u32 = 6;

/// A turn that takes longer ends the trial: what a notification takes is no matter then.
const SLOW: Duration = Duration::from_millis(10);

/// Chains for which a conclusion is kept to: at first, and at most when each trial confirms it.
const KEEP: u32 = 512;
const KEEP_MOST: u32 = 16_384;

/// What a worker has learnt about putting off.
#[derive(Debug)]
pub(crate) struct Thrift {
    /// The turn of the trial, when there is one.
    turn: Option<u32>,
    /// The last conclusion: to put off.
    pays: bool,
    /// How long it is kept to.
    keep: u32,
    /// Chains that are left until the next turn, or trial.
    left: u32,
    /// When the first of this turn was returned, which does not count.
    began: Option<Instant>,
    /// The turns of this trial: the shortest without, the longest with.
    without: Duration,
    with: Duration,
}

impl Default for Thrift {
    fn default() -> Self {
        Self {
            turn: None,
            pays: false,
            keep: KEEP,
            left: KEEP,
            began: None,
            without: Duration::MAX,
            with: Duration::ZERO,
        }
    }
}

impl Thrift {
    /// Whether to put off now.
    pub(crate) fn puts_off(&self) -> bool {
        self.turn.map_or(self.pays, |turn| turn % 2 == 1)
    }

    /// So many chains were returned.
    pub(crate) fn returned(&mut self, chains: u16, now: Instant) {
        let Some(began) = self.began else {
            self.began = Some(now);
            return;
        };
        self.left = self.left.saturating_sub(chains.into());
        let took = now.saturating_duration_since(began);
        match self.turn {
            Some(_) if took >= SLOW => self.conclude(false),
            // Of a trial that has failed, no more is needed.
            Some(_) if self.puts_off() && !is_shorter(took, self.without) => self.conclude(false),
            Some(turn) if self.left == 0 => self.end_turn(turn, took),
            None if self.left == 0 => {
                (self.without, self.with) = (Duration::MAX, Duration::ZERO);
                self.begin_turn(0);
            }
            _ => (),
        }
    }

    /// The guest has waited for what was put off.
    pub(crate) fn has_harmed(&mut self) {
        if self.puts_off() {
            self.conclude(false);
        }
    }

    /// Puts off for as long as it does no harm.
    #[cfg(test)]
    pub(crate) fn eager() -> Self {
        Self {
            pays: true,
            left: u32::MAX,
            ..Self::default()
        }
    }

    fn begin_turn(&mut self, turn: u32) {
        self.turn = Some(turn);
        self.left = TRIAL;
        self.began = None;
    }

    fn end_turn(&mut self, turn: u32, took: Duration) {
        if self.puts_off() {
            self.with = self.with.max(took);
        } else {
            self.without = self.without.min(took);
        }
        if !is_shorter(self.with, self.without) {
            self.conclude(false);
        } else if turn + 1 == TURNS {
            self.conclude(true);
        } else {
            self.begin_turn(turn + 1);
        }
    }

    fn conclude(&mut self, pays: bool) {
        self.keep = if pays == self.pays {
            (2 * self.keep).min(KEEP_MOST)
        } else {
            KEEP
        };
        self.pays = pays;
        self.turn = None;
        self.left = self.keep;
        self.began = None;
    }
}

/// Whether a turn with putting off was shorter, by more than chance makes it.
fn is_shorter(with: Duration, without: Duration) -> bool {
    16 * with < 15 * without.min(SLOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns chains one by one, each after so many microseconds without and with putting
    /// off; tells how many were with.
    fn exchange(thrift: &mut Thrift, now: &mut Instant, times: [u64; 2], chains: u32) -> u32 {
        let mut put_off = 0;
        for _ in 0..chains {
            let with = thrift.puts_off();
            put_off += u32::from(with);
            *now += Duration::from_micros(times[usize::from(with)]);
            thrift.returned(1, *now);
        }
        put_off
    }

    #[test]
    fn puts_off_where_that_makes_exchanges_shorter() {
        let (mut thrift, mut now) = (Thrift::default(), Instant::now());
        let put_off = exchange(&mut thrift, &mut now, [20, 17], 100_000);
        assert!(put_off > 95_000, "{put_off}");
    }

    #[test]
    fn does_not_where_it_makes_them_no_shorter() {
        for times in [[20, 20], [20, 30], [20, 1_000]] {
            let (mut thrift, mut now) = (Thrift::default(), Instant::now());
            let put_off = exchange(&mut thrift, &mut now, times, 100_000);
            assert!((1..1_500).contains(&put_off), "{times:?}: {put_off}");
        }
    }

    #[test]
    fn a_guest_that_waits_for_each_chain_does_so_seldom() {
        let (mut thrift, mut now) = (Thrift::default(), Instant::now());
        let put_off = exchange(&mut thrift, &mut now, [20, 1_000], 100_000);
        assert!(put_off < 60, "{put_off}");
    }

    #[test]
    fn does_not_for_a_guest_with_time() {
        let (mut thrift, mut now) = (Thrift::default(), Instant::now());
        assert_eq!(exchange(&mut thrift, &mut now, [1_000, 10], 10_000), 0);
    }

    #[test]
    fn one_that_was_longer_for_another_reason_proves_nothing() {
        let (mut thrift, mut now) = (Thrift::default(), Instant::now());
        let mut put_off = 0;
        for chain in 0..100_000 {
            // Some turns take longer, with or without putting off.
            let time = if chain / 100 % 3 == 0 { 30 } else { 20 };
            put_off += exchange(&mut thrift, &mut now, [time, time], 1);
        }
        assert!(put_off < 5_000, "{put_off}");
    }

    #[test]
    fn learns_that_it_has_begun_to_pay_and_that_it_has_ceased() {
        let (mut thrift, mut now) = (Thrift::default(), Instant::now());
        exchange(&mut thrift, &mut now, [20, 30], 100_000);
        exchange(&mut thrift, &mut now, [20, 17], 20_000);
        assert!(exchange(&mut thrift, &mut now, [20, 17], 1_000) > 700);
        exchange(&mut thrift, &mut now, [20, 30], 20_000);
        assert!(exchange(&mut thrift, &mut now, [20, 30], 10_000) < 500);
    }

    #[test]
    fn ceases_at_once_when_it_does_harm() {
        let (mut thrift, mut now) = (Thrift::default(), Instant::now());
        exchange(&mut thrift, &mut now, [20, 17], 10_000);
        assert!(thrift.puts_off());
        thrift.has_harmed();
        assert_eq!(exchange(&mut thrift, &mut now, [20, 17], KEEP), 0);
    }
}
