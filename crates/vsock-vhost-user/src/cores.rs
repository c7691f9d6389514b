//! Which workers have run on which cores lately: whether one that looks for more to do keeps
//! another from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::sched_getcpu;
use vsock_packet::GuestCid;

/// Cores told apart. On a machine with more, some pass for the same.
const CORES: usize = 256;

/// How long a worker that was on a core counts.
const LATELY: Duration = Duration::from_millis(1);

/// What the workers of a process know of each other. All of it is a hint.
#[derive(Clone, Debug)]
pub(crate) struct Cores {
    began: Instant,
    cores: Arc<[Core]>,
}

/// The two workers that were on a core last.
#[derive(Default, Debug)]
struct Core {
    last: AtomicU64,
    last_other: AtomicU64,
}

impl Default for Cores {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            cores: (0..CORES).map(|_| Core::default()).collect(),
        }
    }
}

impl Cores {
    /// The worker of a guest is on some core `now`. Whether another was there lately.
    pub(crate) fn is_shared_by(&self, guest: GuestCid, now: Instant) -> bool {
        let time = now.saturating_duration_since(self.began).as_micros() / LATELY.as_micros();
        let core = self.cores.get(sched_getcpu() % CORES);
        core.is_some_and(|core| core.is_shared_by(Visit::new(guest, time as u32)))
    }
}

/// Whose worker was on a core, and when: the CID, and the time in units of [`LATELY`].
#[derive(Clone, Copy, PartialEq, Eq)]
struct Visit(u64);

impl Visit {
    fn new(guest: GuestCid, time: u32) -> Self {
        Self(u64::from(time) << 32 | u64::from(guest.cid().value()))
    }

    fn cid(self) -> u32 {
        self.0 as u32
    }

    fn time(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

impl Core {
    fn is_shared_by(&self, visit: Visit) -> bool {
        let last = Visit(self.last.load(Ordering::Relaxed));
        if last != visit {
            self.last.store(visit.0, Ordering::Relaxed);
        }
        let other = if last.cid() == visit.cid() {
            Visit(self.last_other.load(Ordering::Relaxed))
        } else {
            self.last_other.store(last.0, Ordering::Relaxed);
            last
        };
        other.cid() != visit.cid() && visit.time().wrapping_sub(other.time()) <= 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visit(guest: u64, time: u32) -> Visit {
        Visit::new(GuestCid::new(guest).unwrap(), time)
    }

    #[test]
    fn a_core_is_shared_while_two_workers_come_to_it() {
        let core = Core::default();
        assert!(!core.is_shared_by(visit(3, 100)));
        assert!(core.is_shared_by(visit(4, 100)));
        assert!(core.is_shared_by(visit(4, 101)));
        assert!(core.is_shared_by(visit(3, 101)));
        assert!(core.is_shared_by(visit(3, 102)));
        assert!(!core.is_shared_by(visit(3, 103)), "4 was there at 101");
    }

    #[test]
    fn a_core_where_nobody_ever_was_is_not_shared() {
        assert!(!Core::default().is_shared_by(visit(3, 2)));
    }
}
