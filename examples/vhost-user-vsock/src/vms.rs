//! The VMs to serve: a set in which each is right and none is in another's way.

use std::collections::BTreeSet;
use std::path::Path;
use std::vec;

use vsock_packet::GuestCid;
use vsock_vhost_user::{GuestConfig, VhostUserSocket};

use crate::check::{MAX_PATH, MAX_PATH_BEFORE_PORT, Place};
use crate::inherited;
use crate::mistake::Mistake;
use crate::spec::{Origin, Settings, VmSpec};

/// The bounds of `tx-buffer-size`, in bytes: a page, and what no host should keep for a
/// single connection anyway.
const TX_BUFFER_SIZES: std::ops::RangeInclusive<u64> = 4096..=1 << 30;

/// At least one VM, with CIDs of their own and places of their own in which their sockets
/// can be created.
#[derive(Debug)]
pub(crate) struct Vms(Vec<GuestConfig>);

impl Vms {
    /// The VMs described by `specs`.
    ///
    /// # Errors
    ///
    /// The first mistake in them. Nothing was created or removed.
    pub(crate) fn parse(specs: Vec<VmSpec>) -> Result<Self, Mistake> {
        let mut cids = BTreeSet::new();
        let mut claims = Vec::new();
        let mut vms = Vec::with_capacity(specs.len());
        for VmSpec { origin, settings } in specs {
            let vm = guest(&origin, settings, &mut claims)?;
            let setting = origin.setting("guest-cid", vm.cid);
            if !cids.insert(vm.cid) {
                let complaint = "is another VM's CID; give each VM a CID of its own";
                return Err(Mistake::new(setting, complaint));
            }
            vms.push(vm);
        }
        refuse_conflicts(&claims)?;
        Ok(Self(vms))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

impl IntoIterator for Vms {
    type Item = GuestConfig;
    type IntoIter = vec::IntoIter<GuestConfig>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// A line for the log about a VM that is now served.
pub(crate) fn summary(vm: &GuestConfig) -> String {
    let socket = match &vm.socket {
        VhostUserSocket::Path(path) => path.display().to_string(),
        VhostUserSocket::Listener(_) => "the inherited descriptor".to_owned(),
    };
    let groups = if vm.groups.is_empty() {
        "none".to_owned()
    } else {
        vm.groups.join("+")
    };
    format!(
        "serving CID {}: socket {socket}, uds-path {}, groups {groups}, \
         queue-size {}, tx-buffer-size {}",
        vm.cid,
        vm.uds_path.display(),
        vm.queue_size,
        vm.tx_buffer_size
    )
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
) -> Result<GuestConfig, Mistake> {
    let cid = cid(origin, settings.guest_cid)?;
    let queue_size = queue_size(origin, settings.queue_size)?;
    let tx_buffer_size = tx_buffer_size(origin, settings.tx_buffer_size)?;
    let groups = groups(origin, settings.groups.unwrap_or_default())?;
    let uds_path = settings
        .uds_path
        .ok_or_else(|| origin.missing("uds-path", "/run/vm.vsock"))?;
    let socket = match (settings.socket, settings.fd) {
        (Some(path), _) => {
            claims.push(claim(origin, "socket", &path, MAX_PATH)?);
            VhostUserSocket::Path(path)
        }
        (None, Some(fd)) => {
            let listener = inherited::listener(fd)
                .map_err(|error| Mistake::new(origin.setting("fd", fd), error))?;
            VhostUserSocket::Listener(listener)
        }
        (None, None) => return Err(origin.missing("socket", "/run/vm.sock")),
    };
    claims.push(claim(origin, "uds-path", &uds_path, MAX_PATH_BEFORE_PORT)?);
    Ok(GuestConfig {
        socket,
        groups,
        queue_size,
        tx_buffer_size,
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
