//! What goes on between guests and host, and how fast.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use vsock_packet::{Cid, VsockAddr};

use crate::count::Count;
use crate::daemon::Program;
use crate::host;
use crate::noise::Noise;
use crate::role::{Client, Service, Task};
use crate::sample::Sample;
use crate::stage::Stage;
use crate::statistics::{jain, median};

/// The port everything goes to.
pub(crate) const PORT: u32 = 1024;
/// Where what is beside goes to.
pub(crate) const BESIDE: u32 = 1025;
/// Not measured, at the beginning.
pub(crate) const WARM_UP: Duration = Duration::from_millis(80);

/// What goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Traffic {
    /// One guest sends packets of this length to the host.
    ToHost(u32),
    /// The host writes this many bytes at a time to a guest.
    ToGuest(usize),
    /// One guest sends packets of this length to another.
    Siblings(u32),
    /// One byte to the host and back.
    RoundTrip,
    /// The same while another connection of the guest streams.
    RoundTripBeside(Stream),
    /// One byte to the other guest and back.
    RoundTripSiblings,
    /// Connections from a guest to the host, so many at once.
    Connect(usize),
    /// Connections from one guest to another, so many at once.
    ConnectSiblings(usize),
    /// So many bytes to the host and back, over so many connections at once.
    Echo { connections: usize, len: u32 },
    /// So many bytes from the first guest of each pair to the second and back.
    EchoPairs { pairs: usize, len: u32 },
}

/// A stream of 64 KiB packets or writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stream {
    ToHost,
    ToGuest,
}

/// The CID of a VM, by its number.
pub(crate) fn cid(vm: usize) -> Cid {
    Cid::new(3 + vm as u32)
}

/// A client of the host's server.
pub(crate) fn to_host(port: u32, task: Task, count: &Count) -> Client {
    client(Cid::HOST, port, task, count)
}

/// A client of another guest's.
pub(crate) fn to_guest(vm: usize, task: Task, count: &Count) -> Client {
    client(cid(vm), PORT, task, count)
}

fn client(cid: Cid, port: u32, task: Task, count: &Count) -> Client {
    Client {
        to: VsockAddr::new(cid, port),
        task,
        count: count.clone(),
    }
}

impl Traffic {
    /// Watches it for `time`.
    pub(crate) fn sample(
        self,
        program: Program<'_>,
        time: Duration,
    ) -> Result<(Option<Sample>, Noise)> {
        let mut stage = Stage::set(program, self.vms())?;
        let counts = self.start(&mut stage)?;
        if !stage.comes_to_life(&counts) {
            return Ok((None, Noise::default()));
        }
        sleep(WARM_UP);
        let seen = stage.watch(&counts, time)?;
        let round_trips = stage.end()?;
        let rate: f64 = seen.rates.iter().sum();
        let value = median(&round_trips).unwrap_or(rate);
        let sample = (rate > 0.0).then_some(Sample {
            value,
            cpu: Some(seen.cpu),
            busy: Some(seen.busy),
            fairness: jain(&seen.rates).filter(|_| seen.rates.len() > 1),
        });
        Ok((sample, seen.noise))
    }

    fn vms(self) -> usize {
        match self {
            Self::Siblings(_) | Self::RoundTripSiblings | Self::ConnectSiblings(_) => 2,
            Self::EchoPairs { pairs, .. } => 2 * pairs,
            _ => 1,
        }
    }

    /// Starts everything; returns what is counted.
    fn start(self, stage: &mut Stage) -> Result<Vec<Count>> {
        let mut counts = Vec::new();
        let mut new = || {
            counts.push(Count::default());
            Count::clone(&counts[counts.len() - 1])
        };
        match self {
            Self::ToHost(len) => {
                stage.server(0, PORT, host::Service::Count(new()))?;
                let sender = to_host(PORT, Task::Send(len), &Count::default());
                stage.guest(0, Service::Echo, vec![sender])?;
            }
            Self::ToGuest(len) => {
                stage.guest(0, Service::Count(new()), Vec::new())?;
                stage.writer(0, PORT, len)?;
            }
            Self::Siblings(len) => {
                stage.guest(1, Service::Count(new()), Vec::new())?;
                let sender = to_guest(1, Task::Send(len), &Count::default());
                stage.guest(0, Service::Echo, vec![sender])?;
            }
            Self::RoundTrip => {
                stage.server(0, PORT, host::Service::Echo)?;
                let client = to_host(PORT, Task::PingPong, &new());
                stage.guest(0, Service::Echo, vec![client])?;
            }
            Self::RoundTripBeside(stream) => round_trip_beside(stage, stream, &new())?,
            Self::RoundTripSiblings => {
                stage.guest(1, Service::Echo, Vec::new())?;
                let client = to_guest(1, Task::PingPong, &new());
                stage.guest(0, Service::Echo, vec![client])?;
            }
            Self::Connect(at_once) => {
                stage.server(0, PORT, host::Service::Close)?;
                let client = to_host(PORT, Task::Close, &new());
                stage.guest(0, Service::Echo, vec![client; at_once])?;
            }
            Self::ConnectSiblings(at_once) => {
                stage.guest(1, Service::Echo, Vec::new())?;
                let client = to_guest(1, Task::Close, &new());
                stage.guest(0, Service::Echo, vec![client; at_once])?;
            }
            Self::Echo { connections, len } => {
                stage.server(0, PORT, host::Service::Echo)?;
                let client = |_| to_host(PORT, Task::Exchange(len), &new());
                let clients = (0..connections).map(client).collect();
                stage.guest(0, Service::Echo, clients)?;
            }
            Self::EchoPairs { pairs, len } => {
                for first in (0..2 * pairs).step_by(2) {
                    stage.guest(first + 1, Service::Echo, Vec::new())?;
                    let client = to_guest(first + 1, Task::Exchange(len), &new());
                    stage.guest(first, Service::Echo, vec![client])?;
                }
            }
        }
        Ok(counts)
    }
}

fn round_trip_beside(stage: &mut Stage, stream: Stream, count: &Count) -> Result<()> {
    const LEN: u32 = 64 << 10;
    let uncounted = Count::default();
    stage.server(0, PORT, host::Service::Echo)?;
    let mut clients = vec![to_host(PORT, Task::PingPong, count)];
    match stream {
        Stream::ToHost => {
            stage.server(0, BESIDE, host::Service::Count(uncounted.clone()))?;
            clients.push(to_host(BESIDE, Task::Send(LEN), &uncounted));
            stage.guest(0, Service::Echo, clients)
        }
        Stream::ToGuest => {
            stage.guest(0, Service::Count(uncounted), clients)?;
            stage.writer(0, PORT, LEN as usize)
        }
    }
}
