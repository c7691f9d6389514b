//! A daemon under measurement: started anew for each sample, ended at its end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vsock_packet::Cid;

use crate::placement::{Placement, Side};
use crate::stopping;

/// The daemon opens its sockets within this time.
const START_DEADLINE: Duration = Duration::from_secs(5);

/// The sockets of one VM.
#[derive(Clone, Debug)]
pub(crate) struct Vm {
    pub(crate) cid: Cid,
    /// For the guest.
    pub(crate) socket: PathBuf,
    /// For the host's applications.
    pub(crate) uds: PathBuf,
}

impl Vm {
    fn within(directory: &Path, cid: u32) -> Self {
        Self {
            cid: Cid::new(cid),
            socket: directory.join(format!("{cid}.sock")),
            uds: directory.join(format!("{cid}.vsock")),
        }
    }

    /// The VM as an option, which both daemons understand.
    fn option(&self) -> String {
        let (socket, uds) = (self.socket.display(), self.uds.display());
        let cid = self.cid;
        format!("guest-cid={cid},socket={socket},uds-path={uds},groups=pair")
    }
}

/// A daemon to start, and where it runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program<'a> {
    pub(crate) path: &'a Path,
    pub(crate) placement: Placement,
}

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    pub(crate) vms: Vec<Vm>,
}

impl Daemon {
    /// Starts a daemon for so many VMs, in one group, with its sockets in `directory`.
    pub(crate) fn start(program: Program<'_>, vms: usize, directory: &Path) -> Result<Self> {
        let cids = 3..3 + u32::try_from(vms)?;
        let vms: Vec<_> = cids.map(|cid| Vm::within(directory, cid)).collect();
        let mut command = Command::new(program.path);
        for vm in &vms {
            command.arg("--vm").arg(vm.option());
        }
        command
            .env("RUST_LOG", "error")
            .env_remove("RUST_BACKTRACE");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = stopping::start(directory, || {
            program.placement.on(Side::Device, || {
                let started = command.spawn();
                started.with_context(|| format!("start {}", program.path.display()))
            })
        })?;
        let mut daemon = Self { child, vms };
        daemon.wait_for_sockets()?;
        Ok(daemon)
    }

    fn wait_for_sockets(&mut self) -> Result<()> {
        let start = Instant::now();
        while !self.vms.iter().all(|vm| vm.socket.exists()) {
            let ended = self.child.try_wait().context("wait for the daemon")?;
            ensure!(ended.is_none(), "the daemon has ended: {ended:?}");
            ensure!(
                start.elapsed() < START_DEADLINE,
                "the daemon opened no sockets within {START_DEADLINE:?}"
            );
            sleep(Duration::from_millis(2));
        }
        // Between bind and listen is a moment.
        sleep(Duration::from_millis(20));
        Ok(())
    }

    /// The time its threads have run.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let tasks = format!("/proc/{}/task", self.child.id());
        let mut nanoseconds = 0;
        for task in fs::read_dir(&tasks).with_context(|| format!("list {tasks}"))? {
            // A thread may end meanwhile.
            let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            let ran = text.split_whitespace().next();
            nanoseconds += ran.and_then(|ran| ran.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// The memory that is its own, in bytes: the guests' is not.
    pub(crate) fn memory(&self) -> Result<u64> {
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("Anonymous:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kilobytes
            .map(|kilobytes| kilobytes << 10)
            .with_context(|| format!("{path} has no line of anonymous memory"))
    }

    /// Ends it at once.
    pub(crate) fn end(&mut self) {
        stopping::end(&mut self.child);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}
