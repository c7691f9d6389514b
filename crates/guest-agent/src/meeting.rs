//! A point that several connections reach before any of them goes on.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A barrier with a deadline: when one party fails, the others learn it in time.
#[derive(Debug)]
pub struct Meeting {
    parties: usize,
    arrived: Mutex<usize>,
    changed: Condvar,
}

impl Meeting {
    /// A meeting of `parties`; it can be held any number of times.
    pub fn of(parties: usize) -> Self {
        Self {
            parties,
            arrived: Mutex::new(0),
            changed: Condvar::new(),
        }
    }

    /// Waits for the others of this round; if they don't come, tells how many did.
    pub fn join(&self, patience: Duration) -> Result<(), String> {
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        *arrived += 1;
        let round_ends_at = arrived.div_ceil(self.parties) * self.parties;
        self.changed.notify_all();
        let waited = self
            .changed
            .wait_timeout_while(arrived, patience, |arrived| *arrived < round_ends_at);
        let (arrived, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            let missing = round_ends_at - *arrived;
            return Err(format!(
                "{missing} of {} connections never got here",
                self.parties
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_go_on_together_twice() {
        let meeting = Meeting::of(3);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    meeting.join(Duration::from_secs(30)).unwrap();
                    meeting.join(Duration::from_secs(30)).unwrap();
                });
            }
        });
    }

    #[test]
    fn tells_who_is_missing() {
        let missing = Meeting::of(3).join(Duration::from_millis(1)).unwrap_err();
        assert!(missing.starts_with("2 of 3"), "{missing}");
    }
}
