//! What the daemon takes from itself before it meets its first guest: new privileges, the
//! file system but for the directories it serves, and the system calls it has no use for.
//!
//! ```text
//!   start: parse, check, control socket ─▶ confine ─▶ threads, guests, clients
//!                                            │
//!        no_new_privs ── files (Landlock) ── calls (seccomp)
//! ```
//!
//! All three hold for the calling thread and those it starts later, so this is done
//! before there are others.

mod calls;
mod files;
mod territory;

use std::io;

use clap::ValueEnum;
use thiserror::Error;
use tracing::{info, warn};

pub(crate) use territory::{Directory, Territory};

/// Whether the daemon confines itself.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, ValueEnum)]
pub(crate) enum Mode {
    /// It does.
    #[default]
    On,
    /// It does not: for debugging.
    Off,
}

/// Why the daemon is not confined.
#[derive(Debug, Error)]
pub(crate) enum SandboxError {
    /// The system refuses `no_new_privs`.
    #[error("cannot give up new privileges: {0}")]
    Privileges(#[source] io::Error),
    /// Landlock is there, and refuses.
    #[error("cannot confine itself to its directories: {0}")]
    Files(#[from] landlock::RulesetError),
    /// A directory is there no more.
    #[error("cannot confine itself to its directories: {0}")]
    Directory(#[from] landlock::PathFdError),
    /// The filter cannot be made for this machine.
    #[error("cannot make the filter of system calls: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// The kernel has no seccomp, or refuses.
    #[error("cannot confine itself to its system calls: {0}")]
    Calls(#[from] seccompiler::Error),
}

/// What came of it, to be told when no mistake is left that would have to be told alone.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is confined.
    Confined {
        /// Where its sockets are.
        territory: String,
        /// What the kernel does not confine, in words.
        missing: Vec<&'static str>,
    },
    /// The operator wants it free.
    Free,
}

impl Outcome {
    /// Tells the log, once.
    pub(crate) fn log(&self) {
        match self {
            Self::Confined { territory, missing } => {
                info!("confined to {territory}");
                if !missing.is_empty() {
                    let missing = missing.join(", ");
                    warn!("not confined, for want of Landlock in the kernel: {missing}");
                }
            }
            Self::Free => warn!("not confined, as --sandbox off asks for"),
        }
    }
}

/// Confines this thread, and all that it starts from now on.
///
/// # Errors
///
/// [`SandboxError`], with perhaps a part of it done. That the kernel's Landlock is old or
/// missing is none.
pub(crate) fn confine(territory: &Territory) -> Result<Outcome, SandboxError> {
    rustix::thread::set_no_new_privs(true)
        .map_err(|errno| SandboxError::Privileges(errno.into()))?;
    let missing = files::confine(territory)?;
    calls::confine(territory)?;
    Ok(Outcome::Confined {
        territory: territory.to_string(),
        missing,
    })
}

#[cfg(test)]
mod tests;
