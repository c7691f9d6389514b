//! The daemon under test, as users start it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::{CARGO_DEADLINE, Running, run};
use crate::progress::say;
use crate::project;
use crate::wait;

/// The daemon opens its sockets within this time.
const START_DEADLINE: Duration = Duration::from_secs(10);
/// Names another program with the same options, to compare with.
const OVERRIDE: &str = "VSOCK_DAEMON";

/// Another program with its mishaps, once it was [given](replace).
static REPLACEMENT: OnceLock<(PathBuf, Mishaps)> = OnceLock::new();

/// What decides which system calls of the daemon go wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mishaps {
    pub(crate) seed: u64,
}

/// From now on all daemons are this program, with a share of its system calls failing for
/// a moment.
pub(crate) fn replace(program: PathBuf, mishaps: Mishaps) {
    // There is one at most.
    let _ = REPLACEMENT.set((program, mishaps));
}

/// Builds the daemon and returns the program's path.
pub(crate) fn build() -> Result<PathBuf> {
    if let Some((program, _)) = REPLACEMENT.get() {
        return Ok(program.clone());
    }
    if let Some(program) = env::var_os(OVERRIDE) {
        let program = PathBuf::from(program);
        say(format!(
            "taking {} as the daemon, as {OVERRIDE} says",
            program.display()
        ));
        return Ok(program);
    }
    let package = "vhost-user-vsock";
    let mut cargo = project::cargo();
    run(
        cargo.args(["build", "--release", "--package", package]),
        CARGO_DEADLINE,
    )
    .context("build the daemon")?;
    Ok(project::target().join("release").join(package))
}

/// One VM's line on the daemon's command line.
#[derive(Clone, Debug)]
pub(crate) struct Vm {
    /// The guest's CID.
    pub(crate) cid: u32,
    /// The vhost-user socket, for QEMU.
    pub(crate) socket: PathBuf,
    /// The hybrid vsock socket, for the host's programs.
    pub(crate) uds: PathBuf,
    /// The groups whose guests it may talk to, as the option has them; empty for none.
    pub(crate) groups: &'static str,
}

impl Vm {
    /// A VM with its sockets in `directory`.
    pub(crate) fn within(directory: &Path, cid: u32) -> Self {
        let path = |suffix: &str| directory.join(format!("vm{cid}.{suffix}"));
        Self {
            cid,
            socket: path("sock"),
            uds: path("vsock"),
            groups: "",
        }
    }

    /// The same VM in `groups`, joined by `+`.
    pub(crate) fn in_groups(self, groups: &'static str) -> Self {
        Self { groups, ..self }
    }

    /// The value of the option `--vm`.
    pub(crate) fn option(&self) -> String {
        let Self {
            cid,
            socket,
            uds,
            groups,
        } = self;
        let (socket, uds) = (socket.display(), uds.display());
        let groups = match groups {
            &"" => String::new(),
            groups => format!(",groups={groups}"),
        };
        format!("guest-cid={cid},socket={socket},uds-path={uds}{groups}")
    }
}

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    process: Running,
    log: PathBuf,
}

impl Daemon {
    /// Starts the daemon and waits until each VM's sockets listen.
    pub(crate) fn start(program: &Path, vms: &[Vm], log: &Path) -> Result<Self> {
        Self::start_with(Command::new(program), vms, log)
    }

    /// Starts the daemon so that it can be managed through a socket at `control`.
    pub(crate) fn start_managed(
        program: &Path,
        vms: &[Vm],
        control: &Path,
        log: &Path,
    ) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg("--control").arg(control);
        let daemon = Self::start_with(command, vms, log)?;
        let what = format!("the daemon to listen on {}", control.display());
        wait::until(&what, START_DEADLINE, || Ok(listens(control).then_some(())))?;
        Ok(daemon)
    }

    fn start_with(mut command: Command, vms: &[Vm], log: &Path) -> Result<Self> {
        command.env(
            "RUST_LOG",
            env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned()),
        );
        if let Some((_, Mishaps { seed })) = REPLACEMENT.get() {
            command.env("VSOCK_MISHAPS", format!("{seed},momentary"));
        }
        for vm in vms {
            command.arg("--vm").arg(vm.option());
        }
        let mut process = Running::start("the daemon", &mut command, log)?;
        for vm in vms {
            let what = format!("the daemon to listen on {}", vm.socket.display());
            wait::until(&what, START_DEADLINE, || {
                process.check()?;
                Ok(listens(&vm.socket).then_some(()))
            })?;
        }
        Ok(Self {
            process,
            log: log.to_owned(),
        })
    }

    /// Fails if the daemon has ended, or one of its threads has.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.process.check()?;
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        match log.lines().find(|line| line.contains("panicked at")) {
            Some(line) => bail!("a thread of the daemon is gone: {line}"),
            None => Ok(()),
        }
    }

    /// The end of what the daemon has logged.
    pub(crate) fn log_tail(&self) -> String {
        const LINES: usize = 15;
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(LINES)..].join("\n");
        format!("the end of the daemon's log:\n{tail}")
    }

    /// Where the daemon logs.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// How many descriptors the daemon has open.
    pub(crate) fn descriptors(&self) -> Result<usize> {
        self.process.descriptors()
    }

    /// Ends the daemon as a service manager does.
    pub(crate) fn terminate(self, deadline: Duration) -> Result<ExitStatus> {
        self.process.terminate(deadline)
    }
}

/// Whether a socket listens, found without connecting to it.
fn listens(socket: &Path) -> bool {
    /// The flag of a listening socket in the kernel's table.
    const ACCEPTS: &str = "00010000";
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    table.lines().any(|line| {
        let mut fields = line.split_whitespace();
        let accepts = fields.nth(3) == Some(ACCEPTS);
        accepts
            && fields
                .next_back()
                .is_some_and(|path| Path::new(path) == socket)
    })
}
