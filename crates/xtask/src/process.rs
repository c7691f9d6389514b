//! Child processes that never outlive this one, however it ends.
//!
//! A [`Running`] child is killed and waited for when it is dropped. Whatever else must
//! not be left behind is entered in one register, which the signal thread clears on
//! Ctrl-C: children are ended by their id, scratch directories removed.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, process, thread};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tempfile::TempDir;

use crate::wait;

/// One run of cargo takes no longer than this on a slow machine.
pub(crate) const CARGO_DEADLINE: Duration = Duration::from_secs(20 * 60);

/// What a signal must not leave behind.
struct Register {
    children: Vec<Pid>,
    directories: Vec<PathBuf>,
}

static REGISTER: Mutex<Register> = Mutex::new(Register {
    children: Vec::new(),
    directories: Vec::new(),
});

fn register() -> MutexGuard<'static, Register> {
    REGISTER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on a signal ends this process in order.
pub(crate) fn clean_up_on_signals() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("watch for signals")?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            // Held until the exit: nothing is started any more.
            let register = register();
            for &child in &register.children {
                let _ = kill_process(child, Signal::KILL);
                let _ = waitpid(Some(child), WaitOptions::empty());
            }
            for directory in &register.directories {
                let _ = fs::remove_dir_all(directory);
            }
            eprintln!("\nStopped; guests and daemons are gone.");
            process::exit(128 + signal);
        }
    });
    Ok(())
}

/// A child process, and its name in messages.
#[derive(Debug)]
pub(crate) struct Running {
    name: String,
    child: Child,
    /// Where its output is, if not on ours.
    log: Option<PathBuf>,
}

impl Running {
    /// Starts a program in the background, its output in the file `log`.
    pub(crate) fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let output = File::create(log).with_context(|| format!("create {}", log.display()))?;
        // A process group of its own: Ctrl-C is for us, who end it in order.
        command
            .stdin(Stdio::null())
            .stderr(output.try_clone()?)
            .stdout(output)
            .process_group(0);
        Self::spawn(name, command, Some(log.to_owned()))
    }

    fn spawn(name: &str, command: &mut Command, log: Option<PathBuf>) -> Result<Self> {
        let mut register = register();
        let child = command
            .spawn()
            .with_context(|| format!("start {name}: {command:?}"))?;
        register.children.push(pid(&child));
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// Fails, with the end of its log, if the process is no longer there.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.ended()? {
            let log = self
                .log
                .as_ref()
                .and_then(|log| fs::read_to_string(log).ok());
            let log = log.unwrap_or_default();
            bail!("{} has ended with {status}:\n{}", self.name, log.trim_end());
        }
        Ok(())
    }

    /// How many descriptors the process has open.
    pub(crate) fn descriptors(&self) -> Result<usize> {
        let path = format!("/proc/{}/fd", self.child.id());
        Ok(fs::read_dir(&path)
            .with_context(|| format!("list {path}"))?
            .count())
    }

    /// Waits for the process to end by itself.
    pub(crate) fn finish(mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        wait::until(&what, deadline, || self.ended())
    }

    /// Asks the process to end, and waits for it.
    pub(crate) fn terminate(mut self, deadline: Duration) -> Result<ExitStatus> {
        kill_process(pid(&self.child), Signal::TERM)
            .with_context(|| format!("send SIGTERM to {}", self.name))?;
        let what = format!("{} to end after SIGTERM", self.name);
        wait::until(&what, deadline, || self.ended())
    }

    /// Ends the process at once.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child
            .kill()
            .with_context(|| format!("kill {}", self.name))
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let mut register = register();
        let ended = self
            .child
            .try_wait()
            .with_context(|| format!("wait for {}", self.name))?;
        if ended.is_some() {
            forget(&mut register, &self.child);
        }
        Ok(ended)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut register = register();
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        forget(&mut register, &self.child);
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn forget(register: &mut Register, child: &Child) {
    register.children.retain(|&other| other != pid(child));
}

/// A directory for sockets and logs, removed at the end; its path is short, as socket
/// paths must be.
#[derive(Debug)]
pub(crate) struct Scratch(TempDir);

impl Scratch {
    pub(crate) fn new() -> Result<Self> {
        let mut register = register();
        let directory = TempDir::with_prefix("vsock-").context("make a scratch directory")?;
        register.directories.push(directory.path().to_owned());
        Ok(Self(directory))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let path = self.path().to_owned();
        register().directories.retain(|other| *other != path);
    }
}

/// Runs a program to its end, its output on ours.
pub(crate) fn run(command: &mut Command, deadline: Duration) -> Result<()> {
    let mut running = Running::spawn(&format!("{command:?}"), command, None)?;
    let what = format!("{} to end", running.name);
    let status = wait::until(&what, deadline, || running.ended())?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// Runs a program to its end and returns what it printed; its complaints are shown only
/// when it fails.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {:?}", command.get_program()))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{command:?} ended with {}:\n{}",
            output.status,
            complaint.trim_end()
        );
    }
    Ok(output.stdout)
}

/// The same, as lines of text.
pub(crate) fn lines(command: &mut Command) -> Result<Vec<String>> {
    let text = String::from_utf8_lossy(&output(command)?).into_owned();
    Ok(text.lines().map(str::to_owned).collect())
}
