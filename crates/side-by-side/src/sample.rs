//! One sample: a daemon, guests and applications, watched for a while.

use std::path::Path;
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use tempfile::TempDir;
use vsock_packet::{Cid, VsockAddr};

use crate::daemon::{Daemon, Vm};
use crate::driver::Stop;
use crate::guest::Guest;
use crate::host::{self, Server, Service};
use crate::noise::{Noise, Watch};
use crate::role::{self, Count, Role};
use crate::statistics::median;

/// The port everything goes to.
const PORT: u32 = 1024;
/// Nothing at all within this time means that the daemon hangs.
const PATIENCE: Duration = Duration::from_secs(2);
/// Not measured, at the beginning.
const WARM_UP: Duration = Duration::from_millis(80);

/// What goes on between guests and host.
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
    /// One byte to the other guest and back.
    RoundTripSiblings,
    /// Connections from a guest to the host, so many at once.
    Connect(usize),
    /// Connections from one guest to another, so many at once.
    ConnectSiblings(usize),
}

impl Traffic {
    fn is_between_siblings(self) -> bool {
        matches!(
            self,
            Self::Siblings(_) | Self::RoundTripSiblings | Self::ConnectSiblings(_)
        )
    }

    /// What the first guest does.
    fn role(self) -> Role {
        let cid = if self.is_between_siblings() {
            Cid::new(4)
        } else {
            Cid::HOST
        };
        let to = VsockAddr::new(cid, PORT);
        match self {
            Self::ToHost(len) | Self::Siblings(len) => Role::Send { to, len },
            Self::ToGuest(_) => Role::Count,
            Self::RoundTrip | Self::RoundTripSiblings => Role::PingPong { to },
            Self::Connect(at_once) | Self::ConnectSiblings(at_once) => {
                Role::Connect { to, at_once }
            }
        }
    }
}

/// What was seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Bytes or connections per second, or the median of the round trips in seconds.
    pub(crate) value: f64,
    /// Daemon CPU in seconds per byte, connection or round trip.
    pub(crate) cpu: f64,
}

/// Watches `traffic` through `program` for `time`.
pub(crate) fn take(program: &Path, traffic: Traffic, time: Duration) -> Result<(Sample, Noise)> {
    let mut stage = Stage::set(program, traffic)?;
    if !stage.comes_to_life() {
        let nothing = Sample {
            value: 0.0,
            cpu: 0.0,
        };
        return Ok((nothing, Noise::default()));
    }
    sleep(WARM_UP);
    let watch = Watch::start()?;
    let (cpu, count) = (stage.daemon.cpu()?, stage.counted.now());
    let start = Instant::now();
    sleep(time);
    let count = stage.counted.now() - count;
    let elapsed = start.elapsed().as_secs_f64();
    let cpu = stage.daemon.cpu()?.saturating_sub(cpu);
    let noise = watch.stop(cpu)?;
    let round_trips = stage.end()?;
    let value = match median(&round_trips) {
        Some(nanoseconds) => nanoseconds / 1e9,
        None => count as f64 / elapsed,
    };
    let cpu = cpu.as_secs_f64() / count.max(1) as f64;
    Ok((Sample { value, cpu }, noise))
}

type GuestThread = JoinHandle<Result<Vec<u64>>>;

/// Everything that runs for one sample.
struct Stage {
    guests: Vec<(Stop, GuestThread)>,
    counted: Count,
    daemon: Daemon,
    servers: Vec<Server>,
    writers: Vec<JoinHandle<()>>,
    _directory: TempDir,
}

impl Stage {
    fn set(program: &Path, traffic: Traffic) -> Result<Self> {
        let directory = TempDir::with_prefix("vsock-")?;
        let vms = if traffic.is_between_siblings() { 2 } else { 1 };
        let mut stage = Self {
            daemon: Daemon::start(program, vms, directory.path())?,
            guests: Vec::new(),
            counted: Count::default(),
            servers: Vec::new(),
            writers: Vec::new(),
            _directory: directory,
        };
        let uncounted = Count::default();
        let counted = stage.counted.clone();
        if let Some(sibling) = stage.daemon.vms.get(1).cloned() {
            match traffic {
                Traffic::Siblings(_) => stage.guest(&sibling, Role::Count, &counted)?,
                _ => stage.guest(&sibling, Role::Echo, &uncounted)?,
            }
        }
        let vm = stage.daemon.vms[0].clone();
        let service = match traffic {
            Traffic::ToHost(_) => Service::Count,
            Traffic::RoundTrip => Service::Echo,
            _ => Service::Close,
        };
        stage
            .servers
            .push(Server::start(&vm.uds, PORT, service, &counted)?);
        stage.guest(&vm, traffic.role(), &counted)?;
        if let Traffic::ToGuest(len) = traffic {
            stage.writers.push(host::send(&vm.uds, PORT, len)?);
        }
        Ok(stage)
    }

    fn guest(&mut self, vm: &Vm, role: Role, count: &Count) -> Result<()> {
        let guest = Guest::connect(&vm.socket, vm.cid)?;
        let (stop, count) = (guest.stop(), count.clone());
        let thread = thread::spawn(move || role::run(guest, role, &count));
        self.guests.push((stop, thread));
        Ok(())
    }

    /// Waits until something is counted.
    fn comes_to_life(&self) -> bool {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if self.counted.now() > 0 {
                return true;
            }
            sleep(Duration::from_millis(1));
        }
        false
    }

    /// Ends everything; returns the round trips the guests saw.
    fn end(&mut self) -> Result<Vec<f64>> {
        let mut round_trips = Vec::new();
        for (stop, thread) in self.guests.drain(..) {
            stop.now();
            let seen = thread
                .join()
                .map_err(|_| anyhow!("a guest has panicked"))??;
            round_trips.extend(seen.into_iter().map(|time| time as f64));
        }
        Ok(round_trips)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Whatever went wrong is told by then.
        let _ = self.end();
        self.daemon.end();
        self.servers.clear();
        for writer in self.writers.drain(..) {
            let _ = writer.join();
        }
    }
}
