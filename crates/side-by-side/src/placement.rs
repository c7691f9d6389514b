//! Which cores run what.
//!
//! Left to the scheduler, two threads that wake each other end up on one core or on two,
//! from run to run. On one, a wake-up is a switch; on two, an idle core has to be roused,
//! which under a hypervisor takes ten times as long. So the cores are fixed, in the same
//! way for the limits and for both daemons:
//!
//! ```text
//!              applications' side                    device's side
//!   limit      the one who waits for an answer       the one who answers
//!              the reader of a stream                its writer, and who copies memory
//!              the writer of a stream back           its reader
//!   scenario   guests and the host's applications    the daemon, all its threads
//! ```
//!
//! So each hop of a round trip crosses between the sides, in the scenarios as in the
//! limits they are held against.

use std::sync::OnceLock;
use std::thread;

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// How the cores are shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Placement {
    /// Each side has half of the cores.
    Apart,
    /// Both sides share one core.
    Together,
    /// The scheduler decides.
    Free,
}

/// Who is to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Device,
    Applications,
}

impl Placement {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Apart => "apart",
            Self::Together => "one core",
            Self::Free => "free",
        }
    }

    /// Moves the calling thread, and what it will start, to its side.
    pub(crate) fn enter(self, side: Side) -> Result<()> {
        let mut set = CpuSet::new();
        for &core in self.cores(side, cores()?) {
            set.set(core);
        }
        sched_setaffinity(None, &set).context("choose the cores to run on")
    }

    /// Calls `start` on a side, so that a process it starts stays there.
    pub(crate) fn on<T: Send>(
        self,
        side: Side,
        start: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        thread::scope(|scope| {
            let started = scope.spawn(|| {
                self.enter(side)?;
                start()
            });
            let joined = started.join();
            joined.map_err(|_| anyhow!("a thread has panicked"))?
        })
    }

    fn cores(self, side: Side, all: &[usize]) -> &[usize] {
        let (applications, device) = all.split_at(all.len().div_ceil(2));
        match (self, side) {
            (Self::Free, _) => all,
            (Self::Apart, Side::Device) if !device.is_empty() => device,
            (Self::Apart, _) => applications,
            // Interrupts favour the first core.
            (Self::Together, _) => &all[all.len() - 1..],
        }
    }
}

/// The cores this program may run on, of which there is one at least.
fn cores() -> Result<&'static [usize]> {
    static CORES: OnceLock<Vec<usize>> = OnceLock::new();
    if let Some(cores) = CORES.get() {
        return Ok(cores);
    }
    let set = sched_getaffinity(None).context("ask for the cores")?;
    let all = (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core));
    Ok(CORES.get_or_init(|| all.collect()))
}

/// Remembers the cores, before any thread is moved.
pub(crate) fn look_around() -> Result<usize> {
    cores().map(<[usize]>::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sides_share_no_core_where_there_are_two() {
        let cores = |placement: Placement, all| {
            [Side::Applications, Side::Device].map(|side| placement.cores(side, all))
        };
        assert_eq!(cores(Placement::Apart, &[0, 1]), [&[0], &[1]]);
        let [applications, device] = cores(Placement::Apart, &[2, 4, 6]);
        assert_eq!((applications, device), (&[2, 4][..], &[6][..]));
        assert_eq!(cores(Placement::Apart, &[3]), [&[3], &[3]]);
        assert_eq!(cores(Placement::Together, &[0, 1]), [&[1], &[1]]);
        assert_eq!(cores(Placement::Free, &[0, 1]), [&[0, 1], &[0, 1]]);
    }

    #[test]
    fn a_thread_stays_where_it_was_put() {
        look_around().unwrap();
        let there = || Ok(sched_getaffinity(None)?);
        let set = Placement::Together.on(Side::Device, there).unwrap();
        assert_eq!(set.count(), 1);
    }
}
