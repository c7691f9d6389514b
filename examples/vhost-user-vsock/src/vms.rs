//! The VMs to serve: a set in which each is right and none is in another's way.

use std::collections::BTreeSet;
use std::path::Path;

use vsock_packet::{Cid, GuestCid};
use vsock_vhost_user::{GuestConfig, VhostUserSocket};

use crate::check::{MAX_PATH, MAX_PATH_BEFORE_PORT, Place};
use crate::inherited;
use crate::mistake::Mistake;
use crate::relay::Relay;
use crate::spec::{Origin, Settings, VmSpec};

/// The bounds of `tx-buffer-size`, in bytes: a page, and what no host should keep for a
/// single connection anyway.
const TX_BUFFER_SIZES: std::ops::RangeInclusive<u64> = 4096..=1 << 30;

/// The bounds of `max-connections`.
const MAX_CONNECTIONS: std::ops::RangeInclusive<u64> = 1..=65_536;

/// At least one VM, with CIDs of their own and places of their own in which their sockets
/// can be created.
#[derive(Debug)]
pub(crate) struct Vms {
    vms: Vec<GuestConfig>,
    relay: Option<Relay>,
}

impl Vms {
    /// The VMs described by `specs`.
    ///
    /// # Errors
    ///
    /// The first mistake in them. Nothing was created or removed.
    pub(crate) fn parse(specs: Vec<VmSpec>) -> Result<Self, Mistake> {
        let mut cids = BTreeSet::new();
        let mut claims = Vec::new();
        let mut relay = None;
        let mut vms = Vec::with_capacity(specs.len());
        for VmSpec { origin, settings } in specs {
            let vm = guest(&origin, settings, &mut claims, &mut relay)?;
            let setting = origin.setting("guest-cid", vm.cid);
            if !cids.insert(vm.cid) {
                let complaint = "is another VM's CID; give each VM a CID of its own";
                return Err(Mistake::new(setting, complaint));
            }
            vms.push((origin, vm));
        }
        refuse_conflicts(&claims)?;
        refuse_two_meanings(&vms)?;
        let vms = vms.into_iter().map(|(_, vm)| vm).collect();
        Ok(Self { vms, relay })
    }

    /// The VMs, and what brings the frontend of one of them to the server, if it does not
    /// come by itself.
    pub(crate) fn into_parts(self) -> (Vec<GuestConfig>, Option<Relay>) {
        (self.vms, self.relay)
    }
}

/// A line for the log about a VM that is now served.
pub(crate) fn summary(vm: &GuestConfig) -> String {
    let socket = match &vm.socket {
        VhostUserSocket::Path(path) => path.display().to_string(),
        VhostUserSocket::Listener(_) => "the inherited descriptor".to_owned(),
    };
    format!(
        "serving CID {}: socket {socket}, uds-path {}, groups {}, host-cids {}, \
         queue-size {}, tx-buffer-size {}, max-connections {}",
        vm.cid,
        vm.uds_path.display(),
        list(&vm.groups),
        list(&vm.host_cids),
        vm.queue_size,
        vm.tx_buffer_size,
        vm.max_connections
    )
}

/// As an option has it.
fn list(items: &[impl ToString]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    if items.is_empty() {
        "none".to_owned()
    } else {
        items.join("+")
    }
}

/// A place that a VM's socket will take.
struct Claim {
    place: Place,
    /// The setting that claims it, as the operator wrote it.
    setting: String,
    /// Whether guest connections go to this path with `_<port>` appended.
    has_ports: bool,
}

/// One VM, its paths examined and added to the claims.
fn guest(
    origin: &Origin,
    settings: Settings,
    claims: &mut Vec<Claim>,
    relay: &mut Option<Relay>,
) -> Result<GuestConfig, Mistake> {
    let cid = cid(origin, settings.guest_cid)?;
    let queue_size = queue_size(origin, settings.queue_size)?;
    let tx_buffer_size = tx_buffer_size(origin, settings.tx_buffer_size)?;
    let max_connections = max_connections(origin, settings.max_connections)?;
    let groups = groups(origin, settings.groups.unwrap_or_default())?;
    let host_cids = host_cids(origin, cid, &settings.host_cids.unwrap_or_default())?;
    let uds_path = settings
        .uds_path
        .ok_or_else(|| origin.missing("uds-path", "/run/vm.vsock"))?;
    let socket = match (settings.socket, settings.fd) {
        (Some(path), _) => {
            claims.push(claim(origin, "socket", &path, MAX_PATH)?);
            VhostUserSocket::Path(path)
        }
        (None, Some(fd)) => {
            let (listener, its_relay) = inherited::listener(fd)
                .map_err(|error| Mistake::new(origin.setting("fd", fd), error))?;
            *relay = its_relay;
            VhostUserSocket::Listener(listener)
        }
        (None, None) => return Err(origin.missing("socket", "/run/vm.sock")),
    };
    claims.push(claim(origin, "uds-path", &uds_path, MAX_PATH_BEFORE_PORT)?);
    Ok(GuestConfig {
        socket,
        groups,
        host_cids,
        queue_size,
        tx_buffer_size,
        max_connections,
        ..GuestConfig::new(cid, "", uds_path)
    })
}

fn cid(origin: &Origin, value: Option<u64>) -> Result<GuestCid, Mistake> {
    let value = value.ok_or_else(|| origin.missing("guest-cid", "3"))?;
    GuestCid::new(value).map_err(|_| {
        Mistake::new(
            origin.setting("guest-cid", value),
            "is reserved or too large; choose a CID from 3 to 4294967294",
        )
    })
}

fn queue_size(origin: &Origin, value: Option<u64>) -> Result<u16, Mistake> {
    let Some(value) = value else {
        return Ok(GuestConfig::MAX_QUEUE_SIZE);
    };
    match u16::try_from(value) {
        Ok(size) if size.is_power_of_two() && size <= GuestConfig::MAX_QUEUE_SIZE => Ok(size),
        _ => Err(Mistake::new(
            origin.setting("queue-size", value),
            format!(
                "is no size of a ring; choose a power of two up to {}",
                GuestConfig::MAX_QUEUE_SIZE
            ),
        )),
    }
}

fn tx_buffer_size(origin: &Origin, value: Option<u64>) -> Result<u32, Mistake> {
    let Some(value) = value else {
        return Ok(GuestConfig::DEFAULT_TX_BUFFER_SIZE);
    };
    match u32::try_from(value) {
        Ok(size) if TX_BUFFER_SIZES.contains(&value) => Ok(size),
        _ => Err(Mistake::new(
            origin.setting("tx-buffer-size", value),
            format!(
                "is out of bounds; choose from {} to {} bytes",
                TX_BUFFER_SIZES.start(),
                TX_BUFFER_SIZES.end()
            ),
        )),
    }
}

fn max_connections(origin: &Origin, value: Option<u64>) -> Result<usize, Mistake> {
    let Some(value) = value else {
        return Ok(GuestConfig::DEFAULT_MAX_CONNECTIONS);
    };
    match usize::try_from(value) {
        Ok(count) if MAX_CONNECTIONS.contains(&value) => Ok(count),
        _ => Err(Mistake::new(
            origin.setting("max-connections", value),
            format!(
                "is out of bounds; choose from {} to {}",
                MAX_CONNECTIONS.start(),
                MAX_CONNECTIONS.end()
            ),
        )),
    }
}

fn host_cids(origin: &Origin, own: GuestCid, values: &[u64]) -> Result<Vec<Cid>, Mistake> {
    let mistake = |complaint| Mistake::new(origin.setting("host-cids", list(values)), complaint);
    let parse = |&value: &u64| match GuestCid::new(value) {
        Err(_) => Err(mistake(format!(
            "{value} is reserved or too large; choose CIDs from 3 to 4294967294, beside 2, \
             which always means the host"
        ))),
        Ok(cid) if cid == own => Err(mistake(format!(
            "{value} is the guest's own CID; choose another, or another guest-cid"
        ))),
        Ok(cid) => Ok(cid.cid()),
    };
    values.iter().map(parse).collect()
}

fn groups(origin: &Origin, names: Vec<String>) -> Result<Vec<String>, Mistake> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match names
        .iter()
        .find(|name| name.is_empty() || !name.chars().all(allowed))
    {
        None => Ok(names),
        Some(name) => Err(Mistake::new(
            origin.setting("groups", names.join("+")),
            format!("'{name}' is no group's name; use letters, digits, '-', '_' and '.' only"),
        )),
    }
}

fn claim(origin: &Origin, key: &str, path: &Path, limit: usize) -> Result<Claim, Mistake> {
    let setting = origin.setting(key, path.display());
    match Place::at(path, limit) {
        Ok(place) => Ok(Claim {
            place,
            setting,
            has_ports: key == "uds-path",
        }),
        Err(error) => Err(Mistake::new(setting, error)),
    }
}

/// Each place belongs to one socket of one VM, and none is where a guest would look for
/// a host application: that guest would reach into another's sockets.
fn refuse_conflicts(claims: &[Claim]) -> Result<(), Mistake> {
    for (index, later) in claims.iter().enumerate() {
        if let Some(earlier) = claims[..index]
            .iter()
            .find(|claim| claim.place == later.place)
        {
            return Err(Mistake::new(
                &later.setting,
                format!(
                    "is also the path of {}; give each socket its own",
                    earlier.setting
                ),
            ));
        }
        for owner in claims.iter().filter(|claim| claim.has_ports) {
            if let Some(port) = later.place.port_of(&owner.place) {
                return Err(Mistake::new(
                    &later.setting,
                    format!(
                        "is where port {port} of {} leads; choose a path that doesn't end so",
                        owner.setting
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// A CID that means the host to a guest is that of no sibling which it reaches, and which
/// reaches it: neither could be told from the host. Of a guest that it shares no group
/// with, no packet comes, and none goes there.
fn refuse_two_meanings(vms: &[(Origin, GuestConfig)]) -> Result<(), Mistake> {
    for (origin, vm) in vms {
        for (_, other) in vms {
            let shared = vm.groups.iter().find(|group| other.groups.contains(group));
            if let Some(group) = shared
                && vm.host_cids.contains(&other.cid.cid())
            {
                return Err(Mistake::new(
                    origin.setting("host-cids", list(&vm.host_cids)),
                    format!(
                        "{} is also the CID of a VM in the same group '{group}'; \
                         choose another CID, or other groups",
                        other.cid
                    ),
                ));
            }
        }
    }
    Ok(())
}
