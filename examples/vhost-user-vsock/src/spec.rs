//! What an operator wrote of one VM, before anything is known to be right about it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::mistake::Mistake;
use crate::number::decimal;

/// What the command line calls the settings that it can give to any VM.
pub(crate) const KEYS: &str = "guest-cid, socket, uds-path, socket-mode, socket-owner, groups, host-cids, \
                    queue-size, tx-buffer-size, max-connections, max-backlog, max-buffered, \
                    max-handshakes, max-bytes-per-second, max-requests-per-second";

/// One VM as written, and where.
#[derive(Debug)]
pub(crate) struct VmSpec {
    pub(crate) origin: Origin,
    pub(crate) settings: Settings,
    /// A socket that another process made for the VMM to connect to.
    pub(crate) listener: Option<Arc<UnixListener>>,
}

impl VmSpec {
    pub(crate) fn new(origin: Origin, settings: Settings) -> Self {
        Self {
            origin,
            settings,
            listener: None,
        }
    }

    /// Where it is to have its sockets.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = &Path> {
        let Settings {
            socket, uds_path, ..
        } = &self.settings;
        socket.iter().chain(uds_path).map(PathBuf::as_path)
    }
}

/// The settings of a VM: a `[[vm]]` table of the configuration file and the body of a
/// control request as they stand, and what the options of the command line are read into.
#[derive(Clone, PartialEq, Eq, Default, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// The command line's name for it is understood in files, too.
    #[serde(alias = "guest_cid", skip_serializing_if = "Option::is_none")]
    pub(crate) cid: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) socket: Option<PathBuf>,
    /// The number of an inherited socket; of no use outside the command line.
    #[serde(skip)]
    pub(crate) fd: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) uds_path: Option<PathBuf>,
    /// In octal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) socket_mode: Option<String>,
    /// `USER`, `USER:GROUP` or `:GROUP`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) socket_owner: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) groups: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) host_cids: Option<Vec<u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) queue_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tx_buffer_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_connections: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_backlog: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_buffered: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_handshakes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_bytes_per_second: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_requests_per_second: Option<u64>,
}

impl Settings {
    /// Sets what the command line calls `key` to what it says in `value`.
    ///
    /// # Errors
    ///
    /// There is no such key, or a number is none.
    pub(crate) fn set(&mut self, origin: &Origin, key: &str, value: &str) -> Result<(), Mistake> {
        match key {
            "guest-cid" => self.cid = Some(origin.number(key, value)?),
            "socket" => self.socket = Some(PathBuf::from(value)),
            "uds-path" => self.uds_path = Some(PathBuf::from(value)),
            "socket-mode" => self.socket_mode = Some(value.to_owned()),
            "socket-owner" => self.socket_owner = Some(value.to_owned()),
            "groups" => self.groups = Some(split_groups(value)),
            "host-cids" => self.host_cids = Some(origin.numbers(key, value)?),
            "queue-size" => self.queue_size = Some(origin.number(key, value)?),
            "tx-buffer-size" => self.tx_buffer_size = Some(origin.number(key, value)?),
            "max-connections" => self.max_connections = Some(origin.number(key, value)?),
            "max-backlog" => self.max_backlog = Some(origin.number(key, value)?),
            "max-buffered" => self.max_buffered = Some(origin.number(key, value)?),
            "max-handshakes" => self.max_handshakes = Some(origin.number(key, value)?),
            "max-bytes-per-second" => self.max_bytes_per_second = Some(origin.number(key, value)?),
            "max-requests-per-second" => {
                self.max_requests_per_second = Some(origin.number(key, value)?);
            }
            _ => {
                return Err(Mistake::new(
                    origin.setting(key, value),
                    format!("{key} is an unknown key"),
                    format!("the keys are {KEYS}"),
                ));
            }
        }
        Ok(())
    }
}

/// Where a VM was written down.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// The options for a single VM.
    Options,
    /// One `--vm`, with its text.
    VmOption(String),
    /// A `[[vm]]` table of a file.
    File(Table),
    /// A request at the control socket, for the VM with this number.
    Request(u64),
}

/// A table of a file: where it begins, and where its keys are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Table {
    pub(crate) path: PathBuf,
    /// Counted from 1.
    pub(crate) line: usize,
    /// The line of each key, as it was written.
    pub(crate) keys: BTreeMap<String, usize>,
}

impl Table {
    fn setting(&self, key: &str, value: impl Display) -> String {
        let names = [json_key(key), key.replace('-', "_")];
        let written = names.iter().find_map(|name| self.keys.get_key_value(name));
        let (name, line) = written.unwrap_or((&names[0], &self.line));
        format!("{}:{line}: {name} = {value}", self.path.display())
    }
}

impl Origin {
    /// The setting `key` with `value`, in the form the operator wrote it.
    pub(crate) fn setting(&self, key: &str, value: impl Display) -> String {
        match self {
            Self::Options => format!("--{key} {value}"),
            Self::VmOption(_) => format!("--vm {key}={value}"),
            Self::File(table) => table.setting(key, value),
            Self::Request(cid) => format!("VM {cid}: {} {value}", json_key(key)),
        }
    }

    /// The complaint that `key` was not written at all.
    pub(crate) fn missing(&self, key: &str, example: &str) -> Mistake {
        let quote = if example.starts_with('/') { "\"" } else { "" };
        match self {
            Self::Options => Mistake::new(
                format!("--{key}"),
                "is missing",
                format!("add --{key} {example}"),
            ),
            Self::VmOption(text) => Mistake::new(
                format!("--vm {text}"),
                format!("{key} is missing"),
                format!("add {key}={example}"),
            ),
            Self::File(Table { path, line, .. }) => {
                let key = json_key(key);
                Mistake::new(
                    format!("{}:{line}: [[vm]]", path.display()),
                    format!("{key} is missing"),
                    format!("add {key} = {quote}{example}{quote}"),
                )
            }
            Self::Request(cid) => {
                let key = json_key(key);
                Mistake::new(
                    format!("VM {cid}"),
                    format!("{key} is missing"),
                    format!("add \"{key}\": {quote}{example}{quote}"),
                )
            }
        }
    }

    /// Reads a number out of text.
    ///
    /// # Errors
    ///
    /// The text is no number, or one beyond 64 bits.
    pub(crate) fn number(&self, key: &str, text: &str) -> Result<u64, Mistake> {
        decimal(text).ok_or_else(|| {
            Mistake::new(
                self.setting(key, text),
                "is not a number",
                "write decimal digits only, without sign or unit",
            )
        })
    }

    /// Reads the numbers in `3+5`.
    ///
    /// # Errors
    ///
    /// One of them is none.
    pub(crate) fn numbers(&self, key: &str, text: &str) -> Result<Vec<u64>, Mistake> {
        let numbers = text.split('+').map(|part| {
            decimal(part).ok_or_else(|| {
                Mistake::new(
                    self.setting(key, text),
                    format!("'{part}' is not a number"),
                    "write decimal digits, and '+' between numbers",
                )
            })
        });
        numbers.collect()
    }
}

/// A key of files and requests, from the command line's name for it.
fn json_key(key: &str) -> String {
    match key {
        "guest-cid" => "cid".to_owned(),
        key => key.replace('-', "_"),
    }
}

/// The names in `a+b`, as the command line has them.
fn split_groups(text: &str) -> Vec<String> {
    text.split('+').map(str::to_owned).collect()
}
