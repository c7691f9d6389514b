//! `ctl`: the client of a daemon's control socket.
//!
//! ```text
//!   arguments ─▶ Command ─▶ Query ─▶ client ─▶ daemon
//!                                      │
//!   standard output ◀── table, JSON ◀──┘
//! ```

mod client;
mod query;
mod table;

use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use thiserror::Error;

use crate::cli::{AccessOptions, PolicyOptions};
use crate::mistake::Mistake;
use crate::view::ErrorView;
use query::{Format, Query};

/// Where the daemon's units put its control socket.
const DEFAULT_SOCKET: &str = "/run/vhost-user-vsock/control.sock";

/// `ctl` and what follows it.
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub(crate) struct Options {
    /// The daemon's control socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET, global = true)]
    control: PathBuf,

    /// Print the daemon's JSON as it came, one document or one line for each event
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

/// What a daemon can be asked.
#[derive(Debug, Subcommand)]
enum Command {
    /// Serve one more VM
    Add(AddOptions),
    /// Stop serving a VM: its connections end and its sockets go
    Remove {
        /// The VM's CID
        #[arg(allow_hyphen_values = true)]
        cid: String,
    },
    /// Change a VM while it is served
    Set(SetOptions),
    /// List the VMs
    List,
    /// Show all there is to know about one VM
    Show {
        /// The VM's CID
        #[arg(allow_hyphen_values = true)]
        cid: String,
    },
    /// List the connections, of all VMs or of one
    Connections {
        /// The VM's CID
        #[arg(allow_hyphen_values = true)]
        cid: Option<String>,
    },
    /// End a connection, for both its ends
    Kill {
        /// Its number, as `connections` shows it
        #[arg(allow_hyphen_values = true)]
        id: String,
    },
    /// Follow what happens, until interrupted
    Events,
    /// Print the daemon's version
    Version,
    /// Read the configuration again, and serve what it says now
    Reload,
}

#[derive(Debug, Args)]
struct AddOptions {
    /// The VM's CID, from 3 to 4294967294
    #[arg(allow_hyphen_values = true)]
    cid: String,

    /// The vhost-user socket to create, for the VMM to connect to
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,

    /// The UNIX socket to create for host applications
    #[arg(long, value_name = "PATH")]
    uds_path: PathBuf,

    /// The longest ring the VMM may ask for, a power of two up to 1024 [default: 1024]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    queue_size: Option<String>,

    #[command(flatten)]
    access: AccessOptions,

    #[command(flatten)]
    policy: PolicyOptions,
}

#[derive(Debug, Args)]
struct SetOptions {
    /// The VM's CID
    #[arg(allow_hyphen_values = true)]
    cid: String,

    /// Have the VM in no group
    #[arg(long, conflicts_with = "groups")]
    no_groups: bool,

    /// Have no CID but 2 mean the host
    #[arg(long, conflicts_with = "host_cids")]
    no_host_cids: bool,

    #[command(flatten)]
    policy: PolicyOptions,
}

/// Why there is no answer, or what it refuses.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// What was asked cannot be asked.
    #[error(transparent)]
    Mistake(#[from] Mistake),
    /// No daemon is there, or it stopped answering.
    #[error("--control {}: {problem}; start the daemon with this --control, or name another", path.display())]
    Unreachable { path: PathBuf, problem: String },
    /// The daemon refused.
    #[error("{}", refusal(error, json.as_deref()))]
    Refused {
        status: u16,
        error: ErrorView,
        /// The answer itself, if JSON is wanted.
        json: Option<String>,
    },
    /// Standard output is closed or full.
    #[error("cannot write to standard output: {0}")]
    Print(#[source] io::Error),
}

fn refusal(error: &ErrorView, json: Option<&str>) -> String {
    match json {
        Some(json) => json.trim_end().to_owned(),
        None => format!("{}; {}", error.message, error.remedy),
    }
}

impl Failure {
    /// For scripts.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Mistake(_) | Self::Refused { status: 400, .. } => 2,
            Self::Refused { status: 404, .. } => 3,
            Self::Refused { status: 409, .. } => 4,
            Self::Unreachable { .. } => 5,
            Self::Refused { .. } | Self::Print(_) => 1,
        })
    }

    /// Whether all there is to say is the daemon's JSON.
    pub(crate) fn is_json(&self) -> bool {
        matches!(self, Self::Refused { json: Some(_), .. })
    }
}

/// Asks the daemon, and prints its answer.
///
/// # Errors
///
/// [`Failure`].
pub(crate) fn run(options: Options) -> Result<(), Failure> {
    let Options {
        control,
        json,
        command,
    } = options;
    let query = Query::of(&command)?;
    let format = if json { Format::Json } else { query.format };
    let print = |bytes: &[u8]| -> io::Result<()> {
        let text = table::render(format, bytes);
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    };
    match client::ask(&control, &query, json, print) {
        // Whoever read it has read enough.
        Err(Failure::Print(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
