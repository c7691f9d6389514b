//! How much in how much time: token buckets.

use std::time::{Duration, Instant};

/// What may come at once after a pause, as the time in which it would come at the rate.
const BURST: Duration = Duration::from_millis(250);

/// A bucket that fills at a steady rate, and from which may be taken as long as there is
/// something in it. What was taken beyond that is made up for by a longer wait.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    rate: Option<Rate>,
}

#[derive(Clone, Copy, Debug)]
struct Rate {
    per_second: f64,
    tokens: f64,
    filled_at: Instant,
}

impl Rate {
    fn burst(self) -> f64 {
        (self.per_second * BURST.as_secs_f64()).max(1.0)
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled_at);
        self.filled_at = self.filled_at.max(now);
        self.tokens = (self.tokens + elapsed.as_secs_f64() * self.per_second).min(self.burst());
    }
}

impl Bucket {
    /// A bucket for so much a second; for any amount, if that is `None`.
    pub(crate) fn new(per_second: Option<u64>, now: Instant) -> Self {
        let rate = per_second.map(|per_second| {
            let rate = Rate {
                per_second: per_second.max(1) as f64,
                tokens: 0.0,
                filled_at: now,
            };
            Rate {
                tokens: rate.burst(),
                ..rate
            }
        });
        Self { rate }
    }

    /// Whether something may be taken.
    pub(crate) fn has_some(&mut self, now: Instant) -> bool {
        self.rate.as_mut().is_none_or(|rate| {
            rate.fill(now);
            rate.tokens > 0.0
        })
    }

    /// Takes `count`.
    pub(crate) fn take(&mut self, count: usize) {
        if let Some(rate) = &mut self.rate {
            rate.tokens -= count as f64;
        }
    }

    /// When there is something again, if there is nothing at `now`.
    pub(crate) fn refilled_at(&mut self, now: Instant) -> Option<Instant> {
        if self.has_some(now) {
            return None;
        }
        let rate = self.rate?;
        // A little later, so that it is not found empty again for a rounding.
        let wait = Duration::from_secs_f64(-rate.tokens / rate.per_second);
        Some(now + wait + Duration::from_millis(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_rate_there_is_always_some() {
        let now = Instant::now();
        let mut bucket = Bucket::new(None, now);
        bucket.take(usize::MAX);
        assert!(bucket.has_some(now));
        assert_eq!(bucket.refilled_at(now), None);
    }

    #[test]
    fn what_was_taken_ahead_is_waited_for() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Some(1000), start);
        assert!(bucket.has_some(start));
        bucket.take(1250);
        assert!(!bucket.has_some(start));
        let at = bucket.refilled_at(start).unwrap();
        let waited = at - start;
        assert!(
            (Duration::from_millis(1000)..Duration::from_millis(1010)).contains(&waited),
            "{waited:?}"
        );
        assert!(bucket.has_some(at));
    }

    #[test]
    fn a_pause_earns_no_more_than_a_burst() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Some(1000), start);
        let later = start + Duration::from_secs(3600);
        assert!(bucket.has_some(later));
        bucket.take(250);
        assert!(!bucket.has_some(later));
    }

    #[test]
    fn in_the_long_run_the_rate_is_kept() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Some(1_000_000), start);
        let (mut now, mut taken) = (start, 0);
        while now < start + Duration::from_secs(10) {
            if bucket.has_some(now) {
                bucket.take(65_536);
                taken += 65_536;
            } else {
                now = bucket.refilled_at(now).unwrap();
            }
        }
        assert!((10_000_000..10_500_000).contains(&taken), "{taken}");
    }
}
