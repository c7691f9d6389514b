//! What one sample is taken of: a daemon, guests and applications, all of them running.

use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;

use crate::count::Count;
use crate::daemon::{Daemon, Program};
use crate::driver::Stop;
use crate::guest::Guest;
use crate::host::{self, Server};
use crate::noise::{Noise, Watch};
use crate::placement::{Placement, Side};
use crate::role::{self, Client, Service};
use crate::sample::Busy;

/// Nothing at all within this time means that the daemon hangs.
const PATIENCE: Duration = Duration::from_secs(4);

type GuestThread = JoinHandle<Result<Vec<u64>>>;

/// Everything that runs for one sample.
pub(crate) struct Stage {
    pub(crate) daemon: Daemon,
    placement: Placement,
    guests: Vec<(Stop, GuestThread)>,
    servers: Vec<Server>,
    writers: Vec<JoinHandle<Result<()>>>,
    _directory: TempDir,
}

/// What happened while a stage was watched.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// What each counter counted a second.
    pub(crate) rates: Vec<f64>,
    /// Daemon CPU in seconds per unit counted.
    pub(crate) cpu: f64,
    pub(crate) busy: Busy,
    pub(crate) noise: Noise,
}

impl Stage {
    /// Starts a daemon for so many VMs. Nobody uses it yet.
    pub(crate) fn set(program: Program<'_>, vms: usize) -> Result<Self> {
        let directory = TempDir::with_prefix("vsock-")?;
        Ok(Self {
            daemon: Daemon::start(program, vms, directory.path())?,
            placement: program.placement,
            guests: Vec::new(),
            servers: Vec::new(),
            writers: Vec::new(),
            _directory: directory,
        })
    }

    /// Starts the guest of a VM.
    pub(crate) fn guest(
        &mut self,
        vm: usize,
        service: Service,
        clients: Vec<Client>,
    ) -> Result<()> {
        let vm = &self.daemon.vms[vm];
        let guest = Guest::connect(&vm.socket, vm.cid)?;
        let (stop, placement) = (guest.stop(), self.placement);
        let thread = thread::spawn(move || {
            placement.enter(Side::Applications)?;
            role::run(guest, service, clients)
        });
        self.guests.push((stop, thread));
        Ok(())
    }

    /// Starts a server of the host's at a VM's port.
    pub(crate) fn server(&mut self, vm: usize, port: u32, service: host::Service) -> Result<()> {
        let uds = &self.daemon.vms[vm].uds;
        let server = Server::start(uds, port, service, self.placement)?;
        self.servers.push(server);
        Ok(())
    }

    /// Starts an application of the host's that writes so many bytes at a time to a
    /// guest's port.
    pub(crate) fn writer(&mut self, vm: usize, port: u32, len: usize) -> Result<()> {
        let uds = &self.daemon.vms[vm].uds;
        let writer = host::send(uds, port, len, self.placement)?;
        self.writers.push(writer);
        Ok(())
    }

    /// Waits until each counter has counted; `false` when the daemon hangs.
    pub(crate) fn comes_to_life(&self, counts: &[Count]) -> bool {
        self.comes_within(PATIENCE, || counts.iter().all(|count| count.now() > 0))
    }

    /// Waits until `condition` holds.
    pub(crate) fn comes_within(&self, time: Duration, condition: impl Fn() -> bool) -> bool {
        let start = Instant::now();
        while start.elapsed() < time {
            if condition() {
                return true;
            }
            sleep(Duration::from_millis(1));
        }
        false
    }

    /// Watches the counters for a while.
    pub(crate) fn watch(&self, counts: &[Count], time: Duration) -> Result<Seen> {
        let now = || counts.iter().map(Count::now).collect::<Vec<_>>();
        let watch = Watch::start()?;
        let (cpu, own, before) = (self.daemon.cpu()?, own_cpu(), now());
        let start = Instant::now();
        sleep(time);
        let after = now();
        let elapsed = start.elapsed().as_secs_f64();
        let cpu = self.daemon.cpu()?.saturating_sub(cpu);
        let own = own_cpu().saturating_sub(own);
        let noise = watch.stop(cpu)?;
        let counted: Vec<_> = before
            .iter()
            .zip(&after)
            .map(|(old, new)| new - old)
            .collect();
        let all: u64 = counted.iter().sum();
        Ok(Seen {
            rates: counted
                .iter()
                .map(|&count| count as f64 / elapsed)
                .collect(),
            cpu: cpu.as_secs_f64() / all.max(1) as f64,
            busy: Busy {
                daemon: cpu.as_secs_f64() / elapsed,
                applications: own.as_secs_f64() / elapsed,
            },
            noise,
        })
    }

    /// Ends the guests; returns the round trips they saw, in seconds.
    pub(crate) fn end(&mut self) -> Result<Vec<f64>> {
        let mut round_trips = Vec::new();
        // All of them before the first is waited for.
        self.guests.iter().for_each(|(stop, _)| stop.now());
        for (_, thread) in self.guests.drain(..) {
            let joined = thread.join();
            let seen = joined.map_err(|_| anyhow!("a guest has panicked"))??;
            round_trips.extend(seen.into_iter().map(|nanoseconds| nanoseconds as f64 / 1e9));
        }
        Ok(round_trips)
    }
}

/// The time this process has run: guests and host applications are threads of it.
fn own_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.try_into().unwrap_or_default()
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
