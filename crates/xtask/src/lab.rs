//! A daemon with a guest on it, and conversations between guest and host.

use std::fs;
use std::path::Path;
use std::process::ExitStatus;
use std::slice;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::daemon::{Daemon, Vm};
use crate::equipment::Equipment;
use crate::guest::{BOOT_DEADLINE, Guest};
use crate::process::Scratch;
use crate::qemu::{self, Machine};
use crate::talk::{Begun, Ends, Talk};

/// The host's CID, as guests know it.
pub(crate) const HOST_CID: u32 = 2;
/// The guest's CID.
const GUEST_CID: u32 = 3;
/// The first of the ports that conversations take in turn.
const FIRST_PORT: u32 = 5000;
const DAEMON_LOG: &str = "daemon.log";

/// A daemon and one guest.
#[derive(Debug)]
pub(crate) struct Lab {
    // The guest ends before what it stands on.
    pub(crate) guest: Guest,
    /// How many descriptors the daemon has open while its guest has no connection.
    pub(crate) idle_descriptors: usize,
    site: Site,
}

/// A daemon and a place for a guest.
#[derive(Debug)]
pub(crate) struct Site {
    // The daemon ends before its directory is removed.
    daemon: Daemon,
    vm: Vm,
    machine: Machine,
    last_port: u32,
    scratch: Scratch,
}

/// A guest whose daemon is gone, and the directory where their sockets were.
#[derive(Debug)]
pub(crate) struct Ruin {
    _guest: Guest,
    _scratch: Scratch,
}

impl Site {
    /// Starts the daemon.
    pub(crate) fn prepare(equipment: &Equipment) -> Result<Self> {
        let scratch = Scratch::new()?;
        let vm = Vm::within(scratch.path(), GUEST_CID);
        let log = scratch.join(DAEMON_LOG);
        let daemon = Daemon::start(&equipment.daemon, slice::from_ref(&vm), &log)?;
        let machine = equipment.machine(&vm, &scratch.join(&format!("vm{GUEST_CID}")));
        Ok(Self {
            daemon,
            vm,
            machine,
            last_port: FIRST_PORT,
            scratch,
        })
    }

    /// Boots a guest, the first one or the next.
    pub(crate) fn boot(self) -> Result<Lab> {
        let guest = Guest::boot(&self.machine, BOOT_DEADLINE)?;
        let idle_descriptors = self.daemon.descriptors()?;
        Ok(Lab {
            guest,
            idle_descriptors,
            site: self,
        })
    }
}

impl Lab {
    /// Starts the daemon and boots the guest.
    pub(crate) fn start(equipment: &Equipment) -> Result<Self> {
        Site::prepare(equipment)?.boot()
    }

    /// Ends QEMU with SIGKILL; the daemon stays.
    pub(crate) fn kill_guest(self) -> Result<Site> {
        self.guest.qemu.kill()?;
        Ok(self.site)
    }

    /// Ends the daemon with SIGTERM while the guest runs.
    pub(crate) fn terminate_daemon(self, deadline: Duration) -> Result<(ExitStatus, Ruin)> {
        let Self { guest, site, .. } = self;
        let Site {
            daemon, scratch, ..
        } = site;
        let ruin = Ruin {
            _guest: guest,
            _scratch: scratch,
        };
        Ok((daemon.terminate(deadline)?, ruin))
    }

    /// Fails if daemon or guest have ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.site.daemon.check()?;
        self.guest.qemu.check()
    }

    /// How many descriptors the daemon has open.
    pub(crate) fn descriptors(&self) -> Result<usize> {
        self.site.daemon.descriptors()
    }

    /// The guest's VM as the daemon knows it.
    pub(crate) fn vm(&self) -> &Vm {
        &self.site.vm
    }

    /// The guest's hybrid vsock socket.
    pub(crate) fn uds(&self) -> &Path {
        &self.site.vm.uds
    }

    /// A port that no conversation has used yet.
    pub(crate) fn port(&mut self) -> u32 {
        self.site.last_port += 1;
        self.site.last_port
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
        let (port, uds) = (self.port(), self.uds().to_owned());
        talk.begin(&mut self.guest, &uds, port)
    }

    /// The ends of what the daemon has logged and the guest's kernel has printed.
    pub(crate) fn log_tails(&self) -> String {
        let daemon = self.site.daemon.log_tail();
        format!("{daemon}\n{}", self.guest.console_tail())
    }

    /// Copies the logs to a directory that stays.
    pub(crate) fn keep_logs(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).context("make a directory for logs")?;
        let guest = &self.site.machine.directory;
        let (console, qemu) = (qemu::console(guest), qemu::log(guest));
        for file in [self.site.daemon.log(), &console, &qemu] {
            let name = file.file_name().unwrap_or_default();
            fs::copy(file, directory.join(name))
                .with_context(|| format!("keep {}", file.display()))?;
        }
        Ok(())
    }
}
