//! Log lines that a guest or a client could otherwise fill the disk with.

use std::time::{Duration, Instant};

/// How long one line stands for those after it.
const PAUSE: Duration = Duration::from_secs(10);

/// Lets one line through now and then, and counts the others.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    last: Option<Instant>,
    withheld: u64,
}

impl Seldom {
    /// How many lines were withheld since the last one, when it is time for another.
    pub(crate) fn pass(&mut self, now: Instant) -> Option<u64> {
        if self
            .last
            .is_some_and(|last| now.saturating_duration_since(last) < PAUSE)
        {
            self.withheld += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.withheld))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_stands_for_those_after_it() {
        let start = Instant::now();
        let mut seldom = Seldom::default();
        assert_eq!(seldom.pass(start), Some(0));
        assert_eq!(seldom.pass(start), None);
        assert_eq!(seldom.pass(start + PAUSE / 2), None);
        assert_eq!(seldom.pass(start + PAUSE), Some(2));
    }
}
