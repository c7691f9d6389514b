//! What a round trip takes with a device that does nothing but pass it on: as many threads
//! that wake each other as in the scenario, each with one system call to be told and one to
//! tell the next.
//!
//! ```text
//!   to the host   guest ─ eventfd ▶ device ─ AF_UNIX ▶ application
//!                   ▲                 │  ▲                  │
//!                   └──── eventfd ────┘  └───── AF_UNIX ────┘
//!   siblings      guest ─ eventfd ▶ device ─ eventfd ▶ guest ─ eventfd ▶ device ─ eventfd ▶
//! ```
//!
//! It is more than the ping-pongs of its halves together: two threads that have only each
//! other to wake are switched between faster than a chain of them.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use vmm_sys_util::eventfd::EventFd;

use crate::limits::round_trips;
use crate::placement::{Placement, Side};

/// What one thread tells another by, and hears by.
trait Wire: Sync {
    fn tell(&self) -> io::Result<()>;
    fn hear(&self) -> io::Result<()>;
}

impl Wire for EventFd {
    fn tell(&self) -> io::Result<()> {
        self.write(1)
    }

    fn hear(&self) -> io::Result<()> {
        self.read().map(drop)
    }
}

impl Wire for UnixStream {
    fn tell(&self) -> io::Result<()> {
        (&mut &*self).write_all(&[1])
    }

    fn hear(&self) -> io::Result<()> {
        (&mut &*self).read_exact(&mut [0])
    }
}

/// A thread, and what it does again and again: hear by one wire, tell by the other.
struct Station<'a> {
    side: Side,
    steps: &'a [(&'a dyn Wire, &'a dyn Wire)],
}

impl Station<'_> {
    /// Does it until it is `stopped`, which it looks at only between hearing and telling: by
    /// then the round is not over.
    fn serve(&self, stopped: &AtomicBool) -> Result<()> {
        loop {
            let mut is_last = false;
            for (from, to) in self.steps {
                from.hear()?;
                is_last = stopped.load(Ordering::SeqCst);
                to.tell()?;
            }
            if is_last {
                return Ok(());
            }
        }
    }
}

/// Seconds from a guest to a host application and back.
pub(crate) fn to_host(cores: Placement, time: Duration) -> Result<f64> {
    let (kick, call) = (EventFd::new(0)?, EventFd::new(0)?);
    let (device, application) = UnixStream::pair().context("socketpair")?;
    let stations = [
        Station {
            side: Side::Device,
            steps: &[(&kick, &device), (&device, &call)],
        },
        Station {
            side: Side::Applications,
            steps: &[(&application, &application)],
        },
    ];
    relay(cores, time, &stations, (&kick, &call))
}

/// Seconds from a guest to its sibling and back.
pub(crate) fn between_siblings(cores: Placement, time: Duration) -> Result<f64> {
    let (kick, call) = (EventFd::new(0)?, EventFd::new(0)?);
    let (other_kick, other_call) = (EventFd::new(0)?, EventFd::new(0)?);
    let stations = [
        Station {
            side: Side::Device,
            steps: &[(&kick, &other_call)],
        },
        Station {
            side: Side::Applications,
            steps: &[(&other_call, &other_kick)],
        },
        Station {
            side: Side::Device,
            steps: &[(&other_kick, &call)],
        },
    ];
    relay(cores, time, &stations, (&kick, &call))
}

/// The median time that the stations take from who tells by the first of `ends` until that
/// hears by the other.
fn relay(
    cores: Placement,
    time: Duration,
    stations: &[Station<'_>],
    (first, last): (&dyn Wire, &dyn Wire),
) -> Result<f64> {
    let stopped = &AtomicBool::new(false);
    thread::scope(|scope| {
        for station in stations {
            scope.spawn(move || {
                let placed = cores.enter(station.side);
                station.serve(stopped)?;
                placed
            });
        }
        let result = round_trips(cores, time, || {
            first.tell()?;
            Ok(last.hear()?)
        });
        // Once more around, so that each station learns it.
        stopped.store(true, Ordering::SeqCst);
        first.tell()?;
        last.hear()?;
        result
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn ends_wherever_it_is_stopped() {
        let (done, all) = mpsc::channel();
        thread::spawn(move || {
            for round in 0..500 {
                let time = Duration::from_micros(round % 50);
                let result = to_host(Placement::Free, time)
                    .and_then(|_| between_siblings(Placement::Free, time));
                done.send(result).unwrap();
            }
        });
        for round in 0..500 {
            let result = all.recv_timeout(Duration::from_secs(60));
            let result = result.unwrap_or_else(|error| panic!("round {round}: {error}"));
            assert!(result.unwrap() >= 0.0);
        }
    }
}
