//! One VM, all of whose settings are right by themselves.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vsock_packet::GuestCid;
use vsock_vhost_user::{GuestConfig, SocketAccess, VhostUserSocket};

use crate::access::{AccessRules, owner_text};
use crate::mistake::{Kind, Mistake};
use crate::place::{Allow, MAX_PATH, MAX_PATH_BEFORE_PORT, PathError, Place};
use crate::policy::{Policy, list};
use crate::spec::{Origin, VmSpec};

/// A VM as it can be served, if no other is in its way.
#[derive(Clone, Debug)]
pub(crate) struct Vm {
    pub(crate) cid: GuestCid,
    pub(crate) origin: Origin,
    /// Where its VMM connects; without a path, to the listener of an unknown place.
    pub(crate) socket: Option<PathBuf>,
    /// The socket there, if another process made it.
    listener: Option<Arc<UnixListener>>,
    pub(crate) uds_path: PathBuf,
    /// Who may connect to those of its sockets that the daemon creates.
    pub(crate) access: SocketAccess,
    pub(crate) queue_size: u16,
    /// What can be changed while it is served.
    pub(crate) policy: Policy,
    /// The places that its sockets take.
    pub(crate) claims: Vec<Claim>,
}

/// A place that a VM's socket will take.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) place: Place,
    path: PathBuf,
    /// The setting that claims it, as the operator wrote it.
    pub(crate) setting: String,
    /// Whether guest connections go to this path with `_<port>` appended.
    pub(crate) has_ports: bool,
    /// Whether the socket is there already, made for us by another process.
    pub(crate) is_inherited: bool,
}

impl Vm {
    /// The VM described by `spec`.
    ///
    /// # Errors
    ///
    /// The first setting that is wrong by itself. What is at its paths is not looked at.
    pub(crate) fn parse(spec: VmSpec, rules: &AccessRules) -> Result<Self, Mistake> {
        let VmSpec {
            origin,
            settings,
            listener,
        } = spec;
        let cid = cid(&origin, settings.cid)?;
        let queue_size = queue_size(&origin, settings.queue_size)?;
        let access = rules.of_vm(&origin, &settings)?;
        let policy = Policy::default().with(&origin, cid, &settings)?;
        let uds_path = settings
            .uds_path
            .ok_or_else(|| origin.missing("uds-path", "/run/vm.vsock"))?;
        let limit = MAX_PATH_BEFORE_PORT;
        let mut claims = vec![Claim::new(&origin, "uds-path", &uds_path, limit)?];
        let socket = settings.socket;
        match &socket {
            Some(path) => {
                let claim = Claim::new(&origin, "socket", path, MAX_PATH)?;
                claims.push(claim.inherited(listener.is_some()));
            }
            None if listener.is_some() => (),
            None => return Err(origin.missing("socket", "/run/vm.sock")),
        }
        Ok(Self {
            cid,
            origin,
            socket,
            listener,
            uds_path,
            access,
            queue_size,
            policy,
            claims,
        })
    }

    /// Whether what cannot be changed while a VM is served is the same in both.
    pub(crate) fn is_same_but_for_policy(&self, other: &Self) -> bool {
        let places = |vm: &Self| -> Vec<_> {
            let claims = vm.claims.iter();
            claims
                .map(|claim| (claim.has_ports, claim.place.clone()))
                .collect()
        };
        let fixed = |vm: &Self| (vm.queue_size, vm.access);
        fixed(self) == fixed(other) && places(self) == places(other)
    }

    /// What the server is to be told of it.
    ///
    /// # Errors
    ///
    /// What the system said when it had no descriptor to spare.
    pub(crate) fn config(&self) -> io::Result<GuestConfig> {
        let socket = match &self.listener {
            Some(listener) => VhostUserSocket::Listener(listener.try_clone()?),
            None => VhostUserSocket::Path(self.socket.clone().unwrap_or_default()),
        };
        let policy = self.policy.clone();
        Ok(GuestConfig {
            socket,
            access: self.access,
            reaches_own_process: false,
            groups: policy.groups,
            host_cids: policy.host_cids,
            queue_size: self.queue_size,
            tx_buffer_size: policy.tx_buffer_size,
            max_connections: policy.max_connections,
            max_backlog: policy.max_backlog,
            max_buffered: policy.max_buffered,
            max_handshakes: policy.max_handshakes,
            max_bytes_per_second: policy.max_bytes_per_second,
            max_requests_per_second: policy.max_requests_per_second,
            ..GuestConfig::new(self.cid, "", &self.uds_path)
        })
    }

    /// A line for the log about a VM that is now served.
    pub(crate) fn summary(&self) -> String {
        let socket = match &self.socket {
            Some(path) => path.display().to_string(),
            None => "the inherited descriptor".to_owned(),
        };
        format!(
            "serving CID {}: socket {socket}, uds-path {}, socket-mode {:04o}, \
             socket-owner {}, groups {}, host-cids {}, queue-size {}, tx-buffer-size {}, \
             max-connections {}, max-backlog {}, max-buffered {}, max-handshakes {}, \
             max-bytes-per-second {}, max-requests-per-second {}",
            self.cid,
            self.uds_path.display(),
            self.access.mode,
            owner_text(self.access).as_deref().unwrap_or("none"),
            list(&self.policy.groups),
            list(&self.policy.host_cids),
            self.queue_size,
            self.policy.tx_buffer_size,
            self.policy.max_connections,
            self.policy.max_backlog,
            self.policy.max_buffered,
            self.policy.max_handshakes,
            self.policy.max_bytes_per_second.unwrap_or(0),
            self.policy.max_requests_per_second.unwrap_or(0),
        )
    }
}

impl Claim {
    /// The claim of the setting `key` to the place at `path`.
    ///
    /// # Errors
    ///
    /// No socket can have this path.
    pub(crate) fn new(
        origin: &Origin,
        key: &str,
        path: &Path,
        limit: usize,
    ) -> Result<Self, Mistake> {
        let setting = origin.setting(key, path.display());
        match Place::named(path, limit) {
            Ok(place) => Ok(Self {
                place,
                path: path.to_owned(),
                setting,
                has_ports: key == "uds-path",
                is_inherited: false,
            }),
            Err(error) => Err(mistake(&setting, &error)),
        }
    }

    /// The same for a socket that is there already, if so.
    pub(crate) fn inherited(self, is_inherited: bool) -> Self {
        Self {
            is_inherited,
            ..self
        }
    }

    /// Finds out whether a socket can be created at its place.
    ///
    /// # Errors
    ///
    /// It could not.
    pub(crate) fn examine(&self, allow: Allow) -> Result<(), Mistake> {
        if self.is_inherited {
            return Ok(());
        }
        self.place
            .examine(&self.path, allow)
            .map_err(|error| mistake(&self.setting, &error))
    }
}

fn mistake(setting: &str, error: &PathError) -> Mistake {
    let kind = match error {
        PathError::Live | PathError::NotASocket { .. } => Kind::PathTaken,
        _ => Kind::Invalid,
    };
    Mistake::of_kind(kind, setting, error, error.remedy())
}

fn cid(origin: &Origin, value: Option<u64>) -> Result<GuestCid, Mistake> {
    let value = value.ok_or_else(|| origin.missing("guest-cid", "3"))?;
    GuestCid::new(value).map_err(|_| {
        Mistake::new(
            origin.setting("guest-cid", value),
            "is reserved or too large",
            "choose a CID from 3 to 4294967294",
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
            "is no size of a ring",
            format!(
                "choose a power of two up to {}",
                GuestConfig::MAX_QUEUE_SIZE
            ),
        )),
    }
}
