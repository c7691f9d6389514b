//! What an operator wrote of one VM, before anything is known to be right about it.

use std::fmt::Display;
use std::path::PathBuf;

use serde::Deserialize;

use crate::mistake::Mistake;

/// One VM as written, and where.
#[derive(Debug)]
pub(crate) struct VmSpec {
    pub(crate) origin: Origin,
    pub(crate) settings: Settings,
}

/// The settings of a VM: a `[[vm]]` table of the configuration file as it stands, and
/// what the options of the command line are read into.
#[derive(Clone, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    pub(crate) guest_cid: Option<u64>,
    pub(crate) socket: Option<PathBuf>,
    /// The number of an inherited socket; of no use in a file.
    #[serde(skip)]
    pub(crate) fd: Option<u64>,
    pub(crate) uds_path: Option<PathBuf>,
    pub(crate) groups: Option<Vec<String>>,
    pub(crate) host_cids: Option<Vec<u64>>,
    pub(crate) queue_size: Option<u64>,
    pub(crate) tx_buffer_size: Option<u64>,
    pub(crate) max_connections: Option<u64>,
}

/// Where a VM was written down.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// The options for a single VM.
    Options,
    /// One `--vm`, with its text.
    VmOption(String),
    /// A `[[vm]]` table of a file, counted from 1.
    File { path: PathBuf, number: usize },
}

impl Origin {
    /// The setting `key` with `value`, in the form the operator wrote it.
    pub(crate) fn setting(&self, key: &str, value: impl Display) -> String {
        match self {
            Self::Options => format!("--{key} {value}"),
            Self::VmOption(_) => format!("--vm {key}={value}"),
            Self::File { path, number } => {
                let key = key.replace('-', "_");
                format!(
                    "--config {}: [[vm]] {number}: {key} = {value}",
                    path.display()
                )
            }
        }
    }

    /// The complaint that `key` was not written at all.
    pub(crate) fn missing(&self, key: &str, example: &str) -> Mistake {
        match self {
            Self::Options => Mistake::new(
                format!("--{key}"),
                format!("is missing; add --{key} {example}"),
            ),
            Self::VmOption(text) => Mistake::new(
                format!("--vm {text}"),
                format!("{key} is missing; add {key}={example}"),
            ),
            Self::File { path, number } => {
                let key = key.replace('-', "_");
                let quote = if example.starts_with('/') { "\"" } else { "" };
                Mistake::new(
                    format!("--config {}: [[vm]] {number}", path.display()),
                    format!("{key} is missing; add {key} = {quote}{example}{quote}"),
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
        text.parse().map_err(|_| {
            Mistake::new(
                self.setting(key, text),
                "is not a number; write decimal digits only, without sign or unit",
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
            part.parse().map_err(|_| {
                let complaint = "is not a number; write decimal digits, and '+' between numbers";
                Mistake::new(self.setting(key, text), format!("'{part}' {complaint}"))
            })
        });
        numbers.collect()
    }
}

/// The names in `a+b`, as the command line has them.
pub(crate) fn split_groups(text: &str) -> Vec<String> {
    text.split('+').map(str::to_owned).collect()
}
