//! What may be changed of a VM while it is served: its groups, its host CIDs, its limits.

use std::fmt::Display;
use std::ops::RangeInclusive;

use vsock_packet::{Cid, GuestCid};
use vsock_vhost_user::GuestConfig;

use crate::mistake::Mistake;
use crate::spec::{Origin, Settings};

/// What a number may be.
struct Limit {
    key: &'static str,
    bounds: RangeInclusive<u64>,
    unit: &'static str,
}

/// From a page to what no host should keep for a single connection anyway.
const TX_BUFFER_SIZE: Limit = Limit {
    key: "tx-buffer-size",
    bounds: 4096..=1 << 30,
    unit: " bytes",
};

const MAX_CONNECTIONS: Limit = Limit {
    key: "max-connections",
    bounds: 1..=65_536,
    unit: "",
};

/// From a packet of the usual size to what no host should keep for a single guest anyway.
const MAX_BACKLOG: Limit = Limit {
    key: "max-backlog",
    bounds: 65_536..=1 << 30,
    unit: " bytes",
};

/// The settings of a VM that may be changed while it is served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Policy {
    pub(crate) groups: Vec<String>,
    pub(crate) host_cids: Vec<Cid>,
    pub(crate) tx_buffer_size: u32,
    pub(crate) max_connections: usize,
    pub(crate) max_backlog: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            groups: Vec::new(),
            host_cids: Vec::new(),
            tx_buffer_size: GuestConfig::DEFAULT_TX_BUFFER_SIZE,
            max_connections: GuestConfig::DEFAULT_MAX_CONNECTIONS,
            max_backlog: GuestConfig::DEFAULT_MAX_BACKLOG,
        }
    }
}

impl Policy {
    /// The same but for what `settings` say, of the guest `own`.
    ///
    /// # Errors
    ///
    /// The first setting that is wrong by itself.
    pub(crate) fn with(
        self,
        origin: &Origin,
        own: GuestCid,
        settings: &Settings,
    ) -> Result<Self, Mistake> {
        let groups = settings.groups.as_ref().map(|names| groups(origin, names));
        let host_cids = settings.host_cids.as_ref();
        let host_cids = host_cids.map(|values| host_cids_of(origin, own, values));
        Ok(Self {
            groups: groups.transpose()?.unwrap_or(self.groups),
            host_cids: host_cids.transpose()?.unwrap_or(self.host_cids),
            tx_buffer_size: TX_BUFFER_SIZE.number(
                origin,
                settings.tx_buffer_size,
                self.tx_buffer_size,
            )?,
            max_connections: MAX_CONNECTIONS.number(
                origin,
                settings.max_connections,
                self.max_connections,
            )?,
            max_backlog: MAX_BACKLOG.number(origin, settings.max_backlog, self.max_backlog)?,
        })
    }
}

impl Limit {
    /// The number `value`, or `otherwise` when there is none.
    fn number<N: TryFrom<u64>>(
        &self,
        origin: &Origin,
        value: Option<u64>,
        otherwise: N,
    ) -> Result<N, Mistake> {
        let Some(value) = value else {
            return Ok(otherwise);
        };
        match N::try_from(value) {
            Ok(number) if self.bounds.contains(&value) => Ok(number),
            _ => Err(Mistake::new(
                origin.setting(self.key, value),
                "is out of bounds",
                format!(
                    "choose from {} to {}{}",
                    self.bounds.start(),
                    self.bounds.end(),
                    self.unit
                ),
            )),
        }
    }
}

fn host_cids_of(origin: &Origin, own: GuestCid, values: &[u64]) -> Result<Vec<Cid>, Mistake> {
    let mistake = |problem: String, remedy| {
        Mistake::new(origin.setting("host-cids", list(values)), problem, remedy)
    };
    let parse = |&value: &u64| match GuestCid::new(value) {
        Err(_) => Err(mistake(
            format!("{value} is reserved or too large"),
            "choose CIDs from 3 to 4294967294, beside 2, which always means the host",
        )),
        Ok(cid) if cid == own => Err(mistake(
            format!("{value} is the guest's own CID"),
            "choose another, or another guest-cid",
        )),
        Ok(cid) => Ok(cid.cid()),
    };
    values.iter().map(parse).collect()
}

fn groups(origin: &Origin, names: &[String]) -> Result<Vec<String>, Mistake> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_wrong = |name: &&String| name.is_empty() || !name.chars().all(allowed);
    match names.iter().find(is_wrong) {
        None => Ok(names.to_vec()),
        Some(name) => Err(Mistake::new(
            origin.setting("groups", names.join("+")),
            format!("'{name}' is no group's name"),
            "use letters, digits, '-', '_' and '.' only",
        )),
    }
}

/// As an option has it.
pub(crate) fn list(items: &[impl Display]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    if items.is_empty() {
        "none".to_owned()
    } else {
        items.join("+")
    }
}
