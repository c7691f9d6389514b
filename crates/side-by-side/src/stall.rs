//! A stream beside somebody who stalls: nobody is to feel another's fault.
//!
//! The same stream is watched without the stalled one and beside it, in turns, each time
//! through a new daemon; the value is what is left of it.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use crate::count::Count;
use crate::daemon::Program;
use crate::driver::FITTING;
use crate::host;
use crate::noise::Noise;
use crate::role::{Service, Task};
use crate::sample::Sample;
use crate::stage::Stage;
use crate::traffic::{BESIDE, PORT, WARM_UP, to_guest, to_host};

/// Who stalls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stalled {
    /// A guest to which the same guest sends that sends to a third one.
    Sibling,
    /// A host application to which the guest sends.
    HostReader,
    /// A guest to which the host sends; another one sends to the host.
    Guest,
}

/// Streams that lead to who stalls: together more than its RX ring holds.
const STREAMS: usize = 4;
/// Their senders come to a halt within this time.
const HALT: Duration = Duration::from_millis(100);
/// Length of the packets and writes between guest and host.
const LEN: u32 = 64 << 10;

impl Stalled {
    /// Which part of the throughput is left.
    pub(crate) fn sample(
        self,
        program: Program<'_>,
        time: Duration,
    ) -> Result<(Option<Sample>, Noise)> {
        let (mut alone, mut beside) = (0.0, 0.0);
        let mut noise = Noise::default();
        for stalls in [false, true, true, false] {
            let Some((rate, disturbed)) = self.rate(program, stalls, time / 2)? else {
                return Ok((None, noise));
            };
            *(if stalls { &mut beside } else { &mut alone }) += rate;
            noise = noise.max(disturbed);
        }
        Ok((Some(Sample::of(beside / alone)), noise))
    }

    /// The stream's bytes per second; `None` when the daemon hangs.
    fn rate(
        self,
        program: Program<'_>,
        stalls: bool,
        time: Duration,
    ) -> Result<Option<(f64, Noise)>> {
        let mut stage = Stage::set(program, 3)?;
        let counts = [Count::default()];
        self.start(&mut stage, stalls, &counts[0])?;
        if !stage.comes_to_life(&counts) {
            return Ok(None);
        }
        sleep(WARM_UP + HALT);
        let seen = stage.watch(&counts, time)?;
        let rate = seen.rates[0];
        Ok((rate > 0.0).then_some((rate, seen.noise)))
    }

    fn start(self, stage: &mut Stage, stalls: bool, count: &Count) -> Result<()> {
        let streams = if stalls { STREAMS } else { 0 };
        let uncounted = Count::default();
        match self {
            Self::Sibling => {
                stage.guest(2, Service::Stall(streams.max(1)), Vec::new())?;
                stage.guest(1, Service::Count(count.clone()), Vec::new())?;
                let mut clients = vec![to_guest(2, Task::Send(FITTING), &uncounted); streams];
                clients.push(to_guest(1, Task::Send(FITTING), &uncounted));
                stage.guest(0, Service::Echo, clients)
            }
            Self::HostReader => {
                stage.server(0, PORT, host::Service::Count(count.clone()))?;
                stage.server(0, BESIDE, host::Service::Stall)?;
                let mut clients = vec![to_host(BESIDE, Task::Send(LEN), &uncounted); streams];
                clients.push(to_host(PORT, Task::Send(LEN), &uncounted));
                stage.guest(0, Service::Echo, clients)
            }
            Self::Guest => {
                stage.guest(1, Service::Stall(streams.max(1)), Vec::new())?;
                (0..streams).try_for_each(|_| stage.writer(1, PORT, LEN as usize))?;
                stage.server(0, PORT, host::Service::Count(count.clone()))?;
                let sender = to_host(PORT, Task::Send(LEN), &uncounted);
                stage.guest(0, Service::Echo, vec![sender])
            }
        }
    }
}
