//! From what the daemon is to do to what it can do, before a VM is served.

use std::path::Path;
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::process::umask;

use super::wanted_control::WantedControl;
use super::{Fault, Job};
use crate::access::AccessRules;
use crate::control::ControlSocket;
use crate::inherited;
use crate::manager::{Manager, Sources};
use crate::mistake::Mistake;
use crate::place::Allow;
use crate::process::{Process, raise_descriptor_limit};
use crate::relay::Relay;
use crate::sandbox::{self, Mode as SandboxMode, Outcome, SandboxError, Territory};
use crate::spec::VmSpec;
use crate::systemd::Activation;
use crate::vms::Vms;

/// A daemon that is confined and has its control socket, but serves nothing yet.
pub(super) struct Prepared {
    pub(super) socket: Option<ControlSocket>,
    pub(super) relay: Option<Relay>,
    /// What came of the confinement.
    pub(super) outcome: Outcome,
    pub(super) manager: Manager,
    /// What the manager is to serve.
    pub(super) vms: Vec<VmSpec>,
}

impl Prepared {
    /// # Errors
    ///
    /// A mistake of the operator's, or the system refuses something.
    pub(super) fn new(mut job: Job) -> Result<Self, Fault> {
        let activation = Activation::from_env()?;
        let control = WantedControl::new(&activation, job.control.take(), &job.once)?;
        let path = control.path().map(Path::to_owned);
        if job.vms.is_empty() && job.config.is_none() && path.is_none() {
            return Err(nothing_to_do().into());
        }
        let relay = take_inherited(&mut job.vms)?;
        let claim = control.claim(Allow::Dead)?;
        let process = Process::new(&job.once)?;
        let mut rules = AccessRules::new(&job.once)?;
        let access = rules.of_control(&job.once)?;
        let territory = territory(&job, path.as_deref())?;
        // All that it creates are sockets, and each has the mode it is to have.
        umask(Mode::empty());
        let socket = control.bind(access)?;
        raise_descriptor_limit();
        if job.sandbox == SandboxMode::On && !gives_sockets(&job) {
            rules.renounce();
        }
        let (territory, outcome) = confine(job.sandbox, territory)?;
        let sources = Sources {
            config: job.config,
            control: path,
            activation,
            once: job.once,
            busy_poll: process.busy_poll,
            rules,
            territory,
        };
        let none = Vms::beside(claim).at_most(process.max_guests);
        Ok(Self {
            socket,
            relay,
            outcome,
            manager: Manager::new(none, sources),
            vms: job.vms,
        })
    }
}

fn nothing_to_do() -> Mistake {
    Mistake::new(
        "command line",
        "no VM",
        "give --guest-cid, --socket and --uds-path, or --vm, or --config, or --control \
         (see --help)",
    )
}

/// Takes the socket that is named by `--fd`.
fn take_inherited(vms: &mut [VmSpec]) -> Result<Option<Relay>, Mistake> {
    let mut relay = None;
    for vm in vms {
        if let Some(fd) = vm.settings.fd {
            let inherited = inherited::listener(fd);
            let (listener, its_relay) = inherited.map_err(|error| {
                Mistake::new(vm.origin.setting("fd", fd), &error, error.remedy())
            })?;
            vm.listener = Some(Arc::new(listener));
            relay = its_relay;
        }
    }
    Ok(relay)
}

/// Where the daemon has its sockets, and reads its configuration.
fn territory(job: &Job, control: Option<&Path>) -> Result<Territory, Mistake> {
    let mut territory = Territory::new(&job.directories)?;
    let sockets = job.vms.iter().flat_map(VmSpec::sockets);
    for path in sockets.chain(control) {
        territory.add_socket(path);
    }
    if let Some(config) = &job.config {
        territory.set_config(config);
    }
    if gives_sockets(job) {
        territory.allow_giving();
    }
    Ok(territory)
}

/// Whether sockets are to be other users', now or of VMs that come later.
fn gives_sockets(job: &Job) -> bool {
    let has_owner = |vm: &VmSpec| vm.settings.socket_owner.is_some();
    job.once.get("socket-owner").is_some() || job.vms.iter().any(has_owner)
}

/// Confines all of the daemon, which has no second thread yet; it keeps to the territory
/// only if it has to.
fn confine(
    mode: SandboxMode,
    territory: Territory,
) -> Result<(Option<Territory>, Outcome), SandboxError> {
    match mode {
        SandboxMode::On => {
            let outcome = sandbox::confine(&territory)?;
            Ok((Some(territory), outcome))
        }
        SandboxMode::Off => Ok((None, Outcome::Free)),
    }
}
