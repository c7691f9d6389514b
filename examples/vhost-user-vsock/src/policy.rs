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

/// From one buffer of the usual size to what no host should keep for a single guest.
const MAX_BUFFERED: Limit = Limit {
    key: "max-buffered",
    bounds: 262_144..=1 << 36,
    unit: " bytes",
};

const MAX_HANDSHAKES: Limit = Limit {
    key: "max-handshakes",
    bounds: 1..=4096,
    unit: "",
};

/// From one packet a second; nothing moves faster than a tebibyte a second.
const MAX_BYTES_PER_SECOND: Limit = Limit {
    key: "max-bytes-per-second",
    bounds: 65_536..=1 << 40,
    unit: " bytes, or 0 for any amount",
};

const MAX_REQUESTS_PER_SECOND: Limit = Limit {
    key: "max-requests-per-second",
    bounds: 1..=1_000_000,
    unit: ", or 0 for any number",
};

/// The most groups a VM may be in, and the longest name of one, in bytes.
const MAX_GROUPS: usize = 256;
const MAX_GROUP_NAME: usize = 64;

/// The settings of a VM that may be changed while it is served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Policy {
    pub(crate) groups: Vec<String>,
    pub(crate) host_cids: Vec<Cid>,
    pub(crate) tx_buffer_size: u32,
    pub(crate) max_connections: usize,
    pub(crate) max_backlog: usize,
    pub(crate) max_buffered: usize,
    pub(crate) max_handshakes: usize,
    pub(crate) max_bytes_per_second: Option<u64>,
    pub(crate) max_requests_per_second: Option<u64>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            groups: Vec::new(),
            host_cids: Vec::new(),
            tx_buffer_size: GuestConfig::DEFAULT_TX_BUFFER_SIZE,
            max_connections: GuestConfig::DEFAULT_MAX_CONNECTIONS,
            max_backlog: GuestConfig::DEFAULT_MAX_BACKLOG,
            max_buffered: GuestConfig::DEFAULT_MAX_BUFFERED,
            max_handshakes: GuestConfig::DEFAULT_MAX_HANDSHAKES,
            max_bytes_per_second: None,
            max_requests_per_second: None,
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
            max_buffered: MAX_BUFFERED.number(origin, settings.max_buffered, self.max_buffered)?,
            max_handshakes: MAX_HANDSHAKES.number(
                origin,
                settings.max_handshakes,
                self.max_handshakes,
            )?,
            max_bytes_per_second: MAX_BYTES_PER_SECOND.rate(
                origin,
                settings.max_bytes_per_second,
                self.max_bytes_per_second,
            )?,
            max_requests_per_second: MAX_REQUESTS_PER_SECOND.rate(
                origin,
                settings.max_requests_per_second,
                self.max_requests_per_second,
            )?,
        })
    }
}

impl Limit {
    /// The rate `value`, of which 0 is none, or `otherwise` when there is none.
    fn rate(
        &self,
        origin: &Origin,
        value: Option<u64>,
        otherwise: Option<u64>,
    ) -> Result<Option<u64>, Mistake> {
        match value {
            None => Ok(otherwise),
            Some(0) => Ok(None),
            value => self.number(origin, value, 0).map(Some),
        }
    }

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
            "choose another for the host, or another for the guest",
        )),
        Ok(cid) => Ok(cid.cid()),
    };
    values.iter().map(parse).collect()
}

fn groups(origin: &Origin, names: &[String]) -> Result<Vec<String>, Mistake> {
    if names.len() > MAX_GROUPS {
        return Err(Mistake::new(
            origin.setting("groups", names.join("+")),
            format!("these are {} groups", names.len()),
            format!("choose at most {MAX_GROUPS}"),
        ));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_wrong =
        |name: &&String| !(1..=MAX_GROUP_NAME).contains(&name.len()) || !name.chars().all(allowed);
    match names.iter().find(is_wrong) {
        None => Ok(names.to_vec()),
        Some(name) => Err(Mistake::new(
            origin.setting("groups", names.join("+")),
            format!("'{name}' is no group's name"),
            format!("use letters, digits, '-', '_' and '.' only, at most {MAX_GROUP_NAME}"),
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
