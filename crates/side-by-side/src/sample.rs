//! One sample of one daemon.

use std::time::Duration;

use anyhow::Result;

use crate::daemon::Program;
use crate::idle::Idle;
use crate::lookup::Lookup;
use crate::noise::Noise;
use crate::stall::Stalled;
use crate::traffic::Traffic;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Subject {
    /// How fast it goes.
    Traffic(Traffic),
    /// Which part of a stream's throughput is left beside somebody who stalls.
    Beside(Stalled),
    /// The daemon's memory for one more.
    Memory(Idle),
    /// How much longer a look-up takes among many than among few. It needs no daemon.
    Lookup(Lookup),
}

/// Time that threads ran, in a time: 1.0 is a core that was busy all the time.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Busy {
    pub(crate) daemon: f64,
    pub(crate) applications: f64,
}

/// What was seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// In the unit of its subject.
    pub(crate) value: f64,
    /// Daemon CPU in seconds per byte, connection or round trip.
    pub(crate) cpu: Option<f64>,
    /// Cores that the daemon was busy on, and those that guests and applications were.
    pub(crate) busy: Option<Busy>,
    /// Jain's index over the streams or pairs.
    pub(crate) fairness: Option<f64>,
}

impl Sample {
    /// One of nothing but a value.
    pub(crate) fn of(value: f64) -> Self {
        Self {
            value,
            cpu: None,
            busy: None,
            fairness: None,
        }
    }
}

/// Takes a sample; without one, the daemon hangs.
pub(crate) fn take(
    program: Program<'_>,
    subject: Subject,
    time: Duration,
) -> Result<(Option<Sample>, Noise)> {
    match subject {
        Subject::Traffic(traffic) => traffic.sample(program, time),
        Subject::Beside(stalled) => stalled.sample(program, time),
        Subject::Memory(idle) => Ok((idle.sample(program)?, Noise::default())),
        Subject::Lookup(lookup) => lookup.sample(),
    }
}
