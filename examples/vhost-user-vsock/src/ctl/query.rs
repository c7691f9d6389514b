//! What is asked of the daemon for each command.

use std::path::{self, Path, PathBuf};

use serde::Serialize;

use super::{AddOptions, Command, SetOptions};
use crate::cli;
use crate::mistake::Mistake;
use crate::number::decimal;
use crate::spec::Settings;

/// A request to be.
#[derive(Debug)]
pub(super) struct Query {
    pub(super) method: &'static str,
    pub(super) path: String,
    pub(super) body: String,
    /// How its answer is shown to people.
    pub(super) format: Format,
}

/// How an answer is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Format {
    Json,
    Nothing,
    Vms,
    Vm,
    Connections,
    Difference,
    Version,
    /// A line for each line.
    Events,
}

impl Query {
    /// The request for a command.
    ///
    /// # Errors
    ///
    /// One of its numbers is none, or a path cannot be made absolute.
    pub(super) fn of(command: &Command) -> Result<Self, Mistake> {
        let vm = |cid: &str| Ok(format!("/vms/{}", number("CID", cid)?));
        Ok(match command {
            Command::Add(options) => {
                let body = add_body(options)?;
                Self::new("PUT", vm(&options.cid)?, Format::Nothing).with(&body)?
            }
            Command::Remove { cid } => Self::new("DELETE", vm(cid)?, Format::Nothing),
            Command::Set(options) => {
                let body = set_body(options)?;
                Self::new("PATCH", vm(&options.cid)?, Format::Nothing).with(&body)?
            }
            Command::List => Self::new("GET", "/vms", Format::Vms),
            Command::Show { cid } => Self::new("GET", vm(cid)?, Format::Vm),
            Command::Connections { cid: None } => {
                Self::new("GET", "/connections", Format::Connections)
            }
            Command::Connections { cid: Some(cid) } => {
                let path = format!("/connections?cid={}", number("CID", cid)?);
                Self::new("GET", path, Format::Connections)
            }
            Command::Kill { id } => {
                let path = format!("/connections/{}", number("ID", id)?);
                Self::new("DELETE", path, Format::Nothing)
            }
            Command::Events => Self::new("GET", "/events", Format::Events),
            Command::Version => Self::new("GET", "/version", Format::Version),
            Command::Reload => Self::new("POST", "/reload", Format::Difference),
        })
    }

    fn new(method: &'static str, path: impl Into<String>, format: Format) -> Self {
        Self {
            method,
            path: path.into(),
            body: String::new(),
            format,
        }
    }

    fn with(self, body: &impl Serialize) -> Result<Self, Mistake> {
        let body = serde_json::to_string(body).map_err(|error| {
            Mistake::new(
                "command line",
                format!("cannot be sent: {error}"),
                "write paths in UTF-8",
            )
        })?;
        Ok(Self { body, ..self })
    }
}

fn number(name: &str, text: &str) -> Result<u64, Mistake> {
    decimal(text).ok_or_else(|| {
        Mistake::new(
            format!("{name} {text}"),
            "is not a number",
            "write decimal digits only",
        )
    })
}

fn add_body(options: &AddOptions) -> Result<Settings, Mistake> {
    Ok(Settings {
        socket: Some(absolute("--socket", &options.socket)?),
        uds_path: Some(absolute("--uds-path", &options.uds_path)?),
        socket_mode: options.access.socket_mode.clone(),
        socket_owner: options.access.socket_owner.clone(),
        queue_size: cli::number("queue-size", options.queue_size.as_deref())?,
        ..options.policy.settings()?
    })
}

fn set_body(options: &SetOptions) -> Result<Settings, Mistake> {
    let mut settings = options.policy.settings()?;
    if options.no_groups {
        settings.groups = Some(Vec::new());
    }
    if options.no_host_cids {
        settings.host_cids = Some(Vec::new());
    }
    if settings == Settings::default() {
        return Err(Mistake::new(
            "command line",
            "nothing to change",
            "give an option such as --groups (see --help)",
        ));
    }
    Ok(settings)
}

/// The daemon's working directory is another.
fn absolute(option: &str, path: &Path) -> Result<PathBuf, Mistake> {
    path::absolute(path).map_err(|error| {
        Mistake::new(
            format!("{option} {}", path.display()),
            error,
            "write a path that begins with '/'",
        )
    })
}
