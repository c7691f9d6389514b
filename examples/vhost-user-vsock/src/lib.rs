//! The daemon `vhost-user-vsock`: virtual machines of QEMU, and of any other VMM that
//! speaks vhost-user, get AF_VSOCK from it.
//!
//! ```text
//!   command line ─▶ cli ──────────┐              place, inherited (file system, fds)
//!         └──────▶ vm_option ─────┤                  ▼
//!   TOML files ──▶ config_file ───┼─▶ VmSpec ─▶ Vm ─▶ Vms ─▶ plan ─▶ Manager
//!                                 │                                    │
//!   control socket ───────────────┘              vsock_vhost_user::Server
//! ```
//!
//! The same program is the client of that socket (`ctl`), finds mistakes in a
//! configuration (`check`) and writes completions for shells.
//!
//! What an operator wrote becomes `VmSpec`s, unchecked; these become `Vms` only if all is right
//! with all of them, or else a `Mistake`: one line, exit code 2, and nothing was created. The
//! `Manager` takes the server from the VMs it serves to those it is to serve, at the start and at
//! each change, until SIGTERM or SIGINT.
//!
//! As a library it has the program's [`main`], and what [tries out](Trial) an operator's
//! input without a daemon, for fuzzers.

mod access;
mod cli;
mod config_file;
mod control;
mod ctl;
mod daemon;
mod inherited;
mod manager;
mod mistake;
mod number;
mod once;
mod place;
mod plan;
mod policy;
mod process;
mod relay;
mod sandbox;
mod spec;
mod systemd;
mod trial;
mod view;
mod vm;
mod vm_option;
mod vms;

use std::io::{self, Write};
use std::process::ExitCode;

use thiserror::Error;

pub use crate::trial::{Trial, read_config, read_settings, read_vm_option};

use crate::cli::Request;
use crate::daemon::Fault;
use crate::mistake::Mistake;

/// Why the program could not do what it was asked for.
#[derive(Debug, Error)]
enum Failure {
    /// The operator's: exit code 2.
    #[error(transparent)]
    Mistake(#[from] Mistake),
    /// The daemon's.
    #[error(transparent)]
    Daemon(#[from] Fault),
    /// The answer of a daemon, or that there is none.
    #[error(transparent)]
    Ctl(#[from] ctl::Failure),
    /// Standard output is closed or full.
    #[error("cannot write to standard output: {0}")]
    Print(#[source] io::Error),
}

/// The program: does what the command line asks for.
pub fn main() -> ExitCode {
    let Err(failure) = run() else {
        return ExitCode::SUCCESS;
    };
    match &failure {
        Failure::Ctl(failure) if failure.is_json() => eprintln!("{failure}"),
        _ => eprintln!("vhost-user-vsock: {failure}"),
    }
    match failure {
        Failure::Mistake(_) | Failure::Daemon(Fault::Mistake(_)) => ExitCode::from(2),
        Failure::Ctl(failure) => failure.exit_code(),
        _ => ExitCode::FAILURE,
    }
}

fn run() -> Result<(), Failure> {
    match cli::parse(std::env::args_os())? {
        Request::Print(text) => print(&text),
        Request::Serve(job) => Ok(daemon::serve(*job)?),
        Request::Ctl(options) => Ok(ctl::run(*options)?),
        Request::Check(path) => {
            let count = daemon::check(&path)?;
            print(&format!(
                "{}: nothing wrong, VMs: {count}\n",
                path.display()
            ))
        }
    }
}

fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes());
    written
        .and_then(|()| stdout.flush())
        .map_err(Failure::Print)
}
