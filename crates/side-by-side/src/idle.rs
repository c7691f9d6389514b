//! What a connection or a guest costs that does nothing: anonymous memory of the daemon,
//! with one and with many more.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::count::Count;
use crate::daemon::Program;
use crate::host;
use crate::role::{Service, Task};
use crate::sample::Sample;
use crate::stage::Stage;
use crate::traffic::{PORT, to_host};

/// Of what there are many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Idle {
    /// So many connections of one guest's with the host, each used once.
    Connections(usize),
    /// So many guests, their rings started.
    Guests(usize),
}

/// Bytes that went over each connection and back.
const LEN: u32 = 4 << 10;
/// What a daemon does after it was last asked to is done within this time.
const SETTLED: Duration = Duration::from_millis(100);
/// All connections are used within this time, or the daemon hangs.
const PATIENCE: Duration = Duration::from_secs(5);

impl Idle {
    /// Bytes for one more; `None` when the daemon hangs.
    pub(crate) fn sample(self, program: Program<'_>) -> Result<Option<Sample>> {
        let (Self::Connections(many) | Self::Guests(many)) = self;
        let (Some(with_one), Some(with_many)) =
            (self.memory(program, 1)?, self.memory(program, 1 + many)?)
        else {
            return Ok(None);
        };
        let grown = with_many.saturating_sub(with_one);
        Ok(Some(Sample::of(grown as f64 / many as f64)))
    }

    /// The daemon's memory with so many.
    fn memory(self, program: Program<'_>, count: usize) -> Result<Option<u64>> {
        let stage = match self {
            Self::Connections(_) => connections(program, count)?,
            Self::Guests(_) => Some(guests(program, count)?),
        };
        sleep(SETTLED);
        let memory = stage.map(|stage| stage.daemon.memory());
        memory.transpose().context("ask for the daemon's memory")
    }
}

fn connections(program: Program<'_>, count: usize) -> Result<Option<Stage>> {
    let mut stage = Stage::set(program, 1)?;
    let used = Count::default();
    stage.server(0, PORT, host::Service::Echo)?;
    let client = to_host(PORT, Task::ExchangeOnce(LEN), &used);
    stage.guest(0, Service::Echo, vec![client; count])?;
    let all = stage.comes_within(PATIENCE, || used.now() == count as u64);
    Ok(all.then_some(stage))
}

fn guests(program: Program<'_>, count: usize) -> Result<Stage> {
    let mut stage = Stage::set(program, count)?;
    (0..count).try_for_each(|vm| stage.guest(vm, Service::Echo, Vec::new()))?;
    Ok(stage)
}
