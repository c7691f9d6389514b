//! The daemon `vhost-user-vsock`: virtual machines of QEMU, and of any other VMM that
//! speaks vhost-user, get AF_VSOCK from it.
//!
//! ```text
//!   command line ─▶ cli ──────────┐
//!         └──────▶ vm_option ─────┼─▶ VmSpec ─▶ Vms ─▶ vsock_vhost_user::Server
//!   TOML file ───▶ config_file ───┘               ▲
//!   file system, inherited descriptors ─▶ check, inherited, relay
//! ```
//!
//! What an operator wrote becomes [`VmSpec`]s, unchecked; these become
//! [`Vms`] only if all is right with all of them, or else a
//! [`Mistake`]: one line, exit code 2, and nothing was created. The
//! rest is the server's, until SIGTERM or SIGINT.

mod check;
mod cli;
mod config_file;
mod inherited;
mod mistake;
mod relay;
mod spec;
mod vm_option;
mod vms;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use thiserror::Error;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;
use vsock_vhost_user::{AddError, GuestConfig, Server};

use crate::cli::Request;
use crate::mistake::Mistake;
use crate::spec::VmSpec;
use crate::vms::Vms;

/// Why the daemon ends otherwise than by a signal.
#[derive(Debug, Error)]
enum Failure {
    /// The operator's: exit code 2, before anything was created.
    #[error(transparent)]
    Mistake(#[from] Mistake),
    /// The system's: exit code 1, with nothing left behind.
    #[error("cannot watch for SIGTERM and SIGINT: {0}")]
    Signals(#[source] io::Error),
    /// The system refuses the handler of a signal.
    #[error("cannot watch for guest memory that is taken back: {0}")]
    MemoryFaults(#[source] io::Error),
    /// The system has no threads to spare.
    #[error("cannot serve the inherited connection: {0}")]
    Relay(#[source] io::Error),
    /// Another program took a path meanwhile, or the system ran short.
    #[error(transparent)]
    Add(#[from] AddError),
    /// Standard output is closed or full.
    #[error("cannot write to standard output: {0}")]
    Print(#[source] io::Error),
}

fn main() -> ExitCode {
    let Err(failure) = run() else {
        return ExitCode::SUCCESS;
    };
    eprintln!("vhost-user-vsock: {failure}");
    match failure {
        Failure::Mistake(_) => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}

fn run() -> Result<(), Failure> {
    match cli::parse(std::env::args_os())? {
        Request::Print(text) => {
            let mut stdout = io::stdout().lock();
            stdout
                .write_all(text.as_bytes())
                .and_then(|()| stdout.flush())
                .map_err(Failure::Print)
        }
        Request::Serve(specs) => serve(specs),
    }
}

/// Serves the VMs until a signal, or the end of an inherited connection, ends it in order:
/// connections, threads, sockets.
fn serve(specs: Vec<VmSpec>) -> Result<(), Failure> {
    // From here on a signal is kept for the wait below, so it never finds a socket
    // that nobody will remove.
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(Failure::Signals)?;
    start_log()?;
    let (vms, relay) = Vms::parse(specs)?.into_parts();
    raise_descriptor_limit();
    vsock_vhost_user::catch_memory_faults().map_err(Failure::MemoryFaults)?;

    let server = Server::new();
    start(&server, vms)?;
    let handle = signals.handle();
    let relay = relay.map(|relay| relay.start(move || handle.close()));
    let relay = relay.transpose().map_err(Failure::Relay)?;
    match signals.forever().next() {
        Some(signal) => {
            let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
            info!("{name}: ending");
        }
        None => info!("the inherited connection is closed: ending"),
    }
    server.shutdown();
    if let Some(relay) = relay
        && relay.join().is_err()
    {
        warn!("the relay has panicked");
    }
    info!("ended");
    Ok(())
}

fn start(server: &Server, vms: Vec<GuestConfig>) -> Result<(), AddError> {
    let count = vms.len();
    for vm in vms {
        let summary = vms::summary(&vm);
        server.add(vm)?;
        info!("{summary}");
    }
    info!("ready, VMs: {count}");
    Ok(())
}

/// Logs to standard error what `RUST_LOG` asks for, by default `info`.
fn start_log() -> Result<(), Mistake> {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text).map_err(|error| {
            Mistake::new(
                format!("RUST_LOG={text}"),
                format!("{error}; write a level (error, warn, info, debug, trace) or target=level"),
            )
        })?,
        _ => EnvFilter::new("info"),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    Ok(())
}

/// Raises the soft limit of open descriptors to the hard one: each connection to the
/// host is one descriptor, and the customary 1,024 would be few for many guests.
fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    if let Err(error) = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    ) {
        warn!("the limit of open descriptors stays at {current:?}: {error}");
    }
}
