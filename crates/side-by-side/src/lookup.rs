//! What a packet's connection costs to find, by how many there are.

use std::time::Duration;

use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};
use vsock_benches::lookups::{Connections, Flows, PASS};

use crate::noise::{Noise, Watch};
use crate::placement::{Placement, Side};
use crate::sample::Sample;

/// Where it is looked up, and for how many packets at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lookup {
    /// In the table of a guest's connections with the host, one by one.
    Connection,
    /// The same, for as many as a pass over a busy TX ring takes at once.
    Connections,
    /// In the switch, by sending a packet.
    Flow,
    /// The same, with as many as a pass takes at once.
    Flows,
}

const FEW: u32 = 10;
const MANY: u32 = 100_000;
/// Look-ups that are timed together; each of the many is found once in it.
const RUN: u32 = 100_000;
/// Runs of which the fastest counts: others can only make them slower.
const RUNS: usize = 7;

impl Lookup {
    /// How much longer a look-up takes among many than among few.
    pub(crate) fn sample(self) -> Result<(Option<Sample>, Noise)> {
        Placement::Apart.on(Side::Device, || {
            let watch = Watch::start()?;
            let ratio = self.cost(MANY) / self.cost(FEW);
            Ok((Some(Sample::of(ratio)), watch.stop(Duration::ZERO)?))
        })
    }

    /// Seconds a run takes of a core.
    fn cost(self, count: u32) -> f64 {
        match self {
            Self::Connection => {
                let mut connections = Connections::new(count);
                time(RUN, || connections.find_next())
            }
            Self::Connections => {
                let mut connections = Connections::new(count);
                time(RUN / PASS as u32, || connections.find_pass())
            }
            Self::Flow => {
                let mut flows = Flows::new(count);
                time(RUN, || flows.send_next())
            }
            Self::Flows => {
                let mut flows = Flows::new(count);
                time(RUN / PASS as u32, || flows.send_pass())
            }
        }
    }
}

fn time(times: u32, mut lookup: impl FnMut()) -> f64 {
    let run = |_| {
        let start = ran();
        (0..times).for_each(|_| lookup());
        (ran() - start).as_secs_f64()
    };
    (0..RUNS).map(run).fold(f64::INFINITY, f64::min)
}

/// The time this thread has run.
fn ran() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
