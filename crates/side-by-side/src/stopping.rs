//! Ctrl-C in the middle of a sample leaves no daemon and no directory behind.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{fs, process, thread};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// What there is to clean up: one daemon at a time, and the directory of its sockets.
static CURRENT: Mutex<Option<(Pid, PathBuf)>> = Mutex::new(None);

fn current() -> MutexGuard<'static, Option<(Pid, PathBuf)>> {
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on a signal ends this process in order.
pub(crate) fn clean_up_on_signals() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("watch for signals")?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            // Held until the exit: no daemon is started or waited for any more.
            if let Some((daemon, directory)) = &*current() {
                let _ = kill_process(*daemon, Signal::KILL);
                let _ = waitpid(Some(*daemon), WaitOptions::empty());
                let _ = fs::remove_dir_all(directory);
            }
            process::exit(128 + signal);
        }
    });
    Ok(())
}

/// Starts a daemon with `spawn`, not while a signal is being heeded.
pub(crate) fn start(
    directory: &Path,
    spawn: impl FnOnce() -> Result<process::Child>,
) -> Result<process::Child> {
    let mut current = current();
    let child = spawn()?;
    *current = Some((Pid::from_child(&child), directory.to_owned()));
    Ok(child)
}

/// Ends a daemon.
pub(crate) fn end(child: &mut process::Child) {
    let mut current = current();
    // An error means that it has ended already.
    let _ = child.kill();
    let _ = child.wait();
    *current = None;
}
