//! The built daemon as a process: started, waited for with a deadline, ended by its id.

#![allow(dead_code)] // Each test file uses a part of it.
#![allow(clippy::unwrap_used, clippy::expect_used)] // What fails here fails the test.

pub(crate) mod http;
pub(crate) mod refusal;
pub(crate) mod schema;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;

/// How long anything may take, on a slow and busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_vhost-user-vsock");

/// A directory for sockets, with a short path.
pub(crate) fn directory() -> TempDir {
    // No name ends with the D that stands for it in tests.
    let mut builder = tempfile::Builder::new();
    builder.prefix("vsock").suffix("_").tempdir().unwrap()
}

/// Runs the daemon to its end.
pub(crate) fn run(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
    finish(Command::new(BINARY).args(args).env_remove("RUST_LOG"))
}

/// Runs a command to its end. One that goes on after the deadline is ended, and panicked
/// about.
pub(crate) fn finish(command: &mut Command) -> Output {
    let command = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    if !ends_within(&child, PATIENCE) {
        child.kill().unwrap();
        child.wait().unwrap();
        let mut log = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut log)
            .unwrap();
        panic!("{command:?} did not end within {PATIENCE:?}; its log:\n{log}");
    }
    child.wait_with_output().unwrap()
}

fn ends_within(child: &Child, time: Duration) -> bool {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap();
    let timeout = Timespec::try_from(time).unwrap();
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)).unwrap() == 1
}

/// A daemon that runs until it is told to end, or dropped.
pub(crate) struct Daemon {
    child: Child,
    log: Receiver<String>,
}

impl Daemon {
    /// Starts the daemon and waits until it says that it is ready.
    pub(crate) fn start(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        Self::start_command(Command::new(BINARY).args(args))
    }

    /// The same for a command with more to it than arguments.
    pub(crate) fn start_command(command: &mut Command) -> Self {
        let daemon = Self::spawn(command);
        daemon.wait_for_log("ready");
        daemon
    }

    /// Starts the daemon and waits for nothing.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let command = command
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, log) = channel();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, log }
    }

    /// Waits for a line of the log that contains `text`; returns the lines up to it.
    pub(crate) fn wait_for_log(&self, text: &str) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = Vec::new();
        loop {
            let time_left = deadline.saturating_duration_since(Instant::now());
            match self.log.recv_timeout(time_left) {
                Ok(line) => lines.push(line),
                Err(error) => panic!("no log line with '{text}': {error}; instead: {lines:#?}"),
            }
            if lines.last().is_some_and(|line| line.contains(text)) {
                return lines;
            }
        }
    }

    /// The daemon's process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the daemon has not ended.
    pub(crate) fn is_alive(&self) -> bool {
        !ends_within(&self.child, Duration::ZERO)
    }

    /// The lines of the log that came since it was read last.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.try_iter().collect()
    }

    /// Sends a signal to the daemon.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Sends a signal to the daemon and waits for its end; returns the exit code, `None`
    /// if the signal killed it.
    pub(crate) fn end(self, signal: Signal) -> Option<i32> {
        self.signal(signal);
        self.wait()
    }

    /// Waits until the daemon ends; returns the exit code, `None` if a signal killed it.
    pub(crate) fn wait(mut self) -> Option<i32> {
        assert!(
            ends_within(&self.child, PATIENCE),
            "still there after {PATIENCE:?}"
        );
        self.child.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail harmlessly when it has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a directory holds, in such detail that anything removed, replaced or created
/// since is noticed.
pub(crate) fn listing(directory: &Path) -> Vec<(PathBuf, u64, u32, u64)> {
    let mut entries: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            (path, metadata.ino(), metadata.mode(), metadata.size())
        })
        .collect();
    entries.sort();
    entries
}
