//! A daemon with a guest on it, and conversations between the two ends of a connection.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use guest_agent::protocol::Endpoint;
use guest_agent::script::{Failure, Report, Step, run_all};

use crate::accel;
use crate::daemon::{self, Daemon, Vm};
use crate::guest::{BOOT_DEADLINE, Guest, Ongoing};
use crate::hybrid::{self, Listener};
use crate::initramfs;
use crate::kernel::{Kernel, Series};
use crate::process::Scratch;
use crate::progress::say;
use crate::qemu::{self, Accel, Machine};

/// The host's CID, as guests know it.
pub(crate) const HOST_CID: u32 = 2;
/// The guest's CID.
const GUEST_CID: u32 = 3;
/// The first of the ports that conversations take in turn.
const FIRST_PORT: u32 = 5000;
const DAEMON_LOG: &str = "daemon.log";

/// All that is needed to start a lab, built and downloaded.
#[derive(Debug)]
pub(crate) struct Equipment {
    /// What guests boot.
    pub(crate) kernel: Kernel,
    /// How they are executed.
    pub(crate) accel: Accel,
    initramfs: PathBuf,
    daemon: PathBuf,
}

impl Equipment {
    /// Downloads and builds what isn't there yet.
    pub(crate) fn get(series: Series, daemon: &Path) -> Result<Self> {
        let kernel = Kernel::obtain(series)?;
        say("building the guest's file system");
        let initramfs = initramfs::build(&kernel)?;
        let accel = accel::choose(&kernel.image, &initramfs)?;
        Ok(Self {
            kernel,
            accel,
            initramfs,
            daemon: daemon.to_owned(),
        })
    }

    fn machine(&self, vm: &Vm, directory: &Path) -> Machine {
        Machine {
            kernel: self.kernel.image.clone(),
            initramfs: self.initramfs.clone(),
            accel: self.accel,
            vhost_socket: Some(vm.socket.clone()),
            directory: directory.to_owned(),
        }
    }
}

/// A daemon and one guest.
#[derive(Debug)]
pub(crate) struct Lab {
    // Dropped in this order: the guest before the daemon, their directory last.
    pub(crate) guest: Guest,
    pub(crate) daemon: Daemon,
    pub(crate) vm: Vm,
    /// How many descriptors the daemon has open while its guest has no connection.
    pub(crate) idle_descriptors: usize,
    machine: Machine,
    last_port: u32,
    scratch: Scratch,
}

impl Lab {
    /// Starts the daemon and boots the guest.
    pub(crate) fn start(equipment: &Equipment) -> Result<Self> {
        let scratch = Scratch::new()?;
        let vm = Vm::within(scratch.path(), GUEST_CID);
        let log = scratch.join(DAEMON_LOG);
        let daemon = Daemon::start(&equipment.daemon, std::slice::from_ref(&vm), &log)?;
        let machine = equipment.machine(&vm, &scratch.join(&format!("vm{GUEST_CID}")));
        Guestless {
            daemon,
            vm,
            machine,
            last_port: FIRST_PORT,
            scratch,
        }
        .boot()
    }

    /// Ends QEMU with SIGKILL; the daemon stays.
    pub(crate) fn kill_guest(self) -> Result<Guestless> {
        let Self {
            guest,
            daemon,
            vm,
            machine,
            last_port,
            scratch,
            ..
        } = self;
        guest.qemu.kill()?;
        Ok(Guestless {
            daemon,
            vm,
            machine,
            last_port,
            scratch,
        })
    }

    /// Ends the daemon with SIGTERM while the guest runs, and then the guest.
    pub(crate) fn terminate_daemon(self, deadline: Duration) -> Result<ExitStatus> {
        let Self {
            guest,
            daemon,
            scratch,
            ..
        } = self;
        let status = daemon.terminate(deadline);
        drop(guest);
        drop(scratch);
        status
    }

    /// A port that no conversation has used yet.
    pub(crate) fn port(&mut self) -> u32 {
        self.last_port += 1;
        self.last_port
    }

    /// Has both ends carry out their scripts; an error if anything fails at either end.
    pub(crate) fn talk(&mut self, talk: &Talk) -> Result<Ends> {
        let ends = self.attempt(talk)?;
        ends.succeeded()?;
        Ok(ends)
    }

    /// Has both ends carry out their scripts; the reports tell how it went.
    pub(crate) fn attempt(&mut self, talk: &Talk) -> Result<Ends> {
        self.begin(talk)?.finish()
    }

    /// Makes the connections, and has both ends begin with their scripts.
    pub(crate) fn begin(&mut self, talk: &Talk) -> Result<Begun> {
        let Talk {
            initiator,
            connections,
            ..
        } = *talk;
        let port = self.port();
        let (guest, connected) = match initiator {
            Initiator::Guest => {
                let listener = Listener::bind(&self.vm.uds, port)?;
                let endpoint = Endpoint::Connect {
                    cid: HOST_CID,
                    port,
                };
                let guest = self
                    .guest
                    .converse(endpoint, connections, talk.guest.clone())?;
                let accepted = (0..connections).map(|_| listener.accept());
                (guest, accepted.collect::<Result<Vec<_>, _>>())
            }
            Initiator::Host => {
                let endpoint = Endpoint::Listen { port };
                let guest = self
                    .guest
                    .converse(endpoint, connections, talk.guest.clone())?;
                let dialled = (0..connections).map(|_| {
                    let dialled = hybrid::dial(&self.vm.uds, port)?;
                    let dialled = dialled.with_context(|| format!("CONNECT {port} was refused"));
                    Ok(dialled?.connection)
                });
                (guest, Ok(dialled.collect::<Result<Vec<_>>>()?))
            }
        };
        let script = talk.host.clone();
        let host = thread::spawn(move || match connected {
            Ok(connected) => run_all(connected.into_iter().map(Ok).collect(), &script),
            Err(failure) => vec![Report::unconnected(failure)],
        });
        Ok(Begun { guest, host })
    }

    /// Copies the logs to a directory that stays, and returns the end of the daemon's.
    pub(crate) fn keep_logs(&self, directory: &Path) -> Result<String> {
        fs::create_dir_all(directory).context("make a directory for logs")?;
        let log = self.scratch.join(DAEMON_LOG);
        let guest = &self.machine.directory;
        for file in [&log, &qemu::console(guest), &qemu::log(guest)] {
            let name = file.file_name().unwrap_or_default();
            fs::copy(file, directory.join(name))
                .with_context(|| format!("keep {}", file.display()))?;
        }
        let log = fs::read_to_string(log)?;
        let lines: Vec<_> = log.lines().collect();
        Ok(lines[lines.len().saturating_sub(15)..].join("\n"))
    }
}

/// A lab whose guest is gone.
#[derive(Debug)]
pub(crate) struct Guestless {
    daemon: Daemon,
    vm: Vm,
    machine: Machine,
    last_port: u32,
    scratch: Scratch,
}

impl Guestless {
    /// Boots a new guest on the same daemon and the same sockets.
    pub(crate) fn boot(self) -> Result<Lab> {
        let Self {
            daemon,
            vm,
            machine,
            last_port,
            scratch,
        } = self;
        let guest = Guest::boot(machine.clone(), BOOT_DEADLINE)?;
        let idle_descriptors = daemon.descriptors()?;
        Ok(Lab {
            guest,
            daemon,
            vm,
            idle_descriptors,
            machine,
            last_port,
            scratch,
        })
    }
}

/// Who makes the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Initiator {
    /// The guest connects to a socket of the host.
    Guest,
    /// The host connects to a port of the guest, with CONNECT.
    Host,
}

impl Initiator {
    pub(crate) const BOTH: [Self; 2] = [Self::Guest, Self::Host];

    /// As the names of cases have it.
    pub(crate) fn connects(self) -> &'static str {
        match self {
            Self::Guest => "guest connects",
            Self::Host => "host connects",
        }
    }
}

/// What both ends do on a number of connections.
#[derive(Clone, Debug)]
pub(crate) struct Talk {
    /// Who makes the connections.
    pub(crate) initiator: Initiator,
    /// How many there are, all at once.
    pub(crate) connections: usize,
    /// What the guest does on each.
    pub(crate) guest: Vec<Step>,
    /// What the host does on each.
    pub(crate) host: Vec<Step>,
}

/// A conversation that is going on.
#[derive(Debug)]
pub(crate) struct Begun {
    guest: Ongoing,
    host: JoinHandle<Vec<Report>>,
}

impl Begun {
    /// Waits for both ends to come to the end of their scripts.
    pub(crate) fn finish(self) -> Result<Ends> {
        let host = self
            .host
            .join()
            .map_err(|_| anyhow!("the host's end has panicked"))?;
        Ok(Ends {
            guest: self.guest.reports()?,
            host,
        })
    }
}

/// How a conversation went at both ends.
#[derive(Debug)]
pub(crate) struct Ends {
    /// The guest's reports.
    pub(crate) guest: Vec<Report>,
    /// The host's reports.
    pub(crate) host: Vec<Report>,
}

impl Ends {
    /// An error that tells what failed at each end, if anything did.
    pub(crate) fn succeeded(&self) -> Result<()> {
        let mut failures = Vec::new();
        for (end, reports) in [("guest", &self.guest), ("host", &self.host)] {
            let failed: Vec<_> = reports.iter().filter_map(|r| r.failure.as_ref()).collect();
            if let Some(Failure { why, .. }) = failed.first() {
                let (failed, all) = (failed.len(), reports.len());
                let count = if all > 1 {
                    format!(" ({failed} of {all})")
                } else {
                    String::new()
                };
                failures.push(format!("{end}{count}: {why}"));
            }
        }
        if failures.is_empty() {
            Ok(())
        } else {
            bail!(failures.join("; "))
        }
    }
}

/// Builds the daemon and names its program.
pub(crate) fn build_daemon() -> Result<PathBuf> {
    daemon::build()
}
