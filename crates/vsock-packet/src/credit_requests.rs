//! When to send CREDIT_REQUEST.

use std::time::{Duration, Instant};

/// How long the first request waits for news.
const FIRST_WAIT: Duration = Duration::from_millis(20);
/// The most a later one waits; each waits twice as long as the one before.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// The CREDIT_REQUESTs of a sender that waits for credit (§5.10.6.3).
///
/// Some drivers tell of their buffer only when asked, so whoever waits asks: once when it
/// begins to wait, and again by a timer. News that changes nothing does not make it ask
/// again, so two ends that wait for each other do not keep each other busy. Who may only
/// have to wait asks when no news has come for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CreditRequests(State);

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    /// Nobody waits.
    #[default]
    Idle,
    /// Somebody may wait, and asks if there are no news until then.
    Later { until: Instant },
    /// A request is to be sent; the next one comes so long after it.
    Due { wait: Duration },
    /// It was sent; the next one comes then.
    Waiting { until: Instant, wait: Duration },
}

impl CreditRequests {
    /// The sender waits. `true` when a request is to be sent for that.
    pub fn begin(&mut self) -> bool {
        let begins = matches!(self.0, State::Idle | State::Later { .. });
        if begins {
            self.0 = State::Due { wait: FIRST_WAIT };
        }
        begins
    }

    /// The sender may have to wait, and has just had news: a request is to be sent when none
    /// follow for a while.
    pub fn begin_later(&mut self, now: Instant) {
        self.0 = State::Later {
            until: now + FIRST_WAIT,
        };
    }

    /// Whether the sender neither waits nor may have to.
    pub fn is_idle(&self) -> bool {
        self.0 == State::Idle
    }

    /// The request goes out.
    pub fn sent(&mut self, now: Instant) {
        if let State::Due { wait } = self.0 {
            self.0 = State::Waiting {
                until: now + wait,
                wait,
            };
        }
    }

    /// When [`Self::expire`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        match self.0 {
            State::Waiting { until, .. } | State::Later { until } => Some(until),
            _ => None,
        }
    }

    /// `true` when another request is to be sent, because none of the news by `now` has
    /// [ended](Self::end) the waiting.
    pub fn expire(&mut self, now: Instant) -> bool {
        match self.0 {
            State::Waiting { until, wait } if until <= now => {
                self.0 = State::Due {
                    wait: (wait * 2).min(LONGEST_WAIT),
                };
                true
            }
            State::Later { until } if until <= now => self.begin(),
            _ => false,
        }
    }

    /// The sender does not wait any more.
    pub fn end(&mut self) {
        self.0 = State::Idle;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_once_and_then_by_the_timer_with_growing_waits() {
        let mut now = Instant::now();
        let mut requests = CreditRequests::default();
        assert!(requests.begin());
        assert!(!requests.begin());
        assert_eq!(requests.deadline(), None, "it has not gone out yet");
        for wait in [20, 40, 80, 160, 320, 640, 1280, 2000, 2000] {
            requests.sent(now);
            assert!(!requests.begin());
            let deadline = now + Duration::from_millis(wait);
            assert_eq!(requests.deadline(), Some(deadline));
            assert!(!requests.expire(now));
            now = deadline;
            assert!(requests.expire(now));
        }
        requests.end();
        assert_eq!(requests.deadline(), None);
        assert!(requests.begin());
    }

    #[test]
    fn asks_later_unless_news_come_and_at_once_when_it_must_wait() {
        let now = Instant::now();
        let after = |millis| now + Duration::from_millis(millis);
        let mut requests = CreditRequests::default();
        requests.begin_later(now);
        assert!(!requests.is_idle());
        assert!(!requests.expire(after(19)));
        requests.begin_later(after(19));
        assert!(!requests.expire(after(38)), "news have come");
        assert!(requests.expire(after(39)));
        requests.sent(after(39));
        assert_eq!(requests.deadline(), Some(after(59)));
        requests.begin_later(now);
        assert!(requests.begin(), "it need not be late");
    }
}
