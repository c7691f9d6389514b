//! What the daemon serves, and every change of it.
//!
//! ```text
//!   start, reload ──▶ plan ──▶ steps ─┐
//!   add, change, remove ─────▶ step ──┴─▶ Manager ─▶ Server
//! ```
//!
//! Changes come one after the other. Each is found right as a whole before its first step
//! is taken; a step that fails for want of something in the system has those before it
//! undone, and what cannot be undone is told.

mod failure;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tracing::{info, warn};
use vsock_packet::GuestCid;
use vsock_vhost_user::{
    ChangeError, Changes, ConnectionId, ConnectionStatus, Events, GuestState, GuestStatus, Server,
};

pub(crate) use failure::Failure;

use crate::access::{AccessRules, is_open_to_all};
use crate::config_file::{Config, Control};
use crate::mistake::{Kind, Mistake};
use crate::once::WrittenOnce;
use crate::place::Allow;
use crate::plan::{self, Step};
use crate::sandbox::{Directory, Territory};
use crate::spec::{Origin, Settings, VmSpec};
use crate::systemd::{Activation, Hint};
use crate::vm::Vm;
use crate::vms::Vms;

/// One VM as it is now, and who described it.
#[derive(Debug)]
pub(crate) struct VmStatus {
    pub(crate) vm: Arc<Vm>,
    pub(crate) guest: GuestStatus,
}

/// What a reload did, by CIDs.
#[derive(Default, Debug)]
pub(crate) struct Difference {
    pub(crate) added: Vec<GuestCid>,
    pub(crate) removed: Vec<GuestCid>,
    pub(crate) changed: Vec<GuestCid>,
}

/// How many there are of what.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Counts {
    pub(crate) vms: usize,
    pub(crate) running: usize,
}

/// The VMs of this process. Its methods may wait for a VM's threads, up to a second for
/// each VM that is removed.
pub(crate) struct Manager {
    server: Server,
    vms: Mutex<Vms>,
    /// Held through each change, from its examination to its last step.
    changing: Mutex<()>,
    /// Counts the steps that were begun and ended.
    progress: AtomicU64,
    sources: Sources,
    /// Is told of each step that was taken.
    hints: OnceLock<Sender<Hint>>,
}

/// Where VMs and sockets come from.
#[derive(Default, Debug)]
pub(crate) struct Sources {
    /// What is loaded again.
    pub(crate) config: Option<PathBuf>,
    /// The control socket's path.
    pub(crate) control: Option<PathBuf>,
    /// Sockets that the service manager opened.
    pub(crate) activation: Activation,
    /// What is there once, as it was at the start.
    pub(crate) once: WrittenOnce,
    /// How long workers look for more to do before they sleep.
    pub(crate) busy_poll: Duration,
    /// Who may connect.
    pub(crate) rules: AccessRules,
    /// Where sockets may be, if the daemon is confined.
    pub(crate) territory: Option<Territory>,
}

impl Sources {
    /// # Errors
    ///
    /// A socket would be where a daemon that is confined can create none.
    fn refuse_elsewhere<'a>(&self, vms: impl IntoIterator<Item = &'a Vm>) -> Result<(), Mistake> {
        let Some(territory) = &self.territory else {
            return Ok(());
        };
        let mut vms = vms.into_iter();
        vms.try_for_each(|vm| territory.refuse_elsewhere(vm))
    }

    fn refuse_new(&self, directories: &[Directory]) -> Result<(), Mistake> {
        let territory = self.territory.iter();
        territory
            .flat_map(|territory| directories.iter().map(|new| territory.refuse_new(new)))
            .collect()
    }
}

impl Manager {
    /// Nothing served yet: `none` has no VM.
    pub(crate) fn new(none: Vms, sources: Sources) -> Self {
        Self {
            server: Server::new().with_max_guests(none.most()),
            vms: Mutex::new(none),
            changing: Mutex::default(),
            progress: AtomicU64::default(),
            sources,
            hints: OnceLock::new(),
        }
    }

    /// Has somebody told of each change from now on.
    pub(crate) fn hint_at(&self, hints: Sender<Hint>) {
        // Only the daemon does this, once.
        let _ = self.hints.set(hints);
    }

    /// Serves the VMs of the command line or the configuration.
    ///
    /// # Errors
    ///
    /// A mistake in any of them, or a shortage in the system.
    pub(crate) fn start(&self, specs: Vec<VmSpec>) -> Result<(), Failure> {
        let _changing = lock(&self.changing);
        self.apply(specs).map(|_| ())
    }

    /// Reads the configuration again and serves what it says now, beside what was added
    /// by other means.
    ///
    /// # Errors
    ///
    /// There is no configuration, it has a mistake, or the system lacks something.
    pub(crate) fn reload(&self) -> Result<Difference, Failure> {
        let path = self.sources.config.as_deref().ok_or(Failure::NoConfig)?;
        // Before it is read: what was read first is not to be applied last.
        let _changing = lock(&self.changing);
        let config = Config::read_again(path)?;
        self.refuse_other_control(config.control)?;
        config.once.refuse_other(&self.sources.once)?;
        self.sources.refuse_new(&config.directories)?;
        self.apply(config.vms)
    }

    /// The control socket stays where it is.
    fn refuse_other_control(&self, control: Option<Control>) -> Result<(), Mistake> {
        match control {
            Some(Control { path, origin }) if self.sources.control.as_ref() != Some(&path) => {
                Err(Mistake::of_kind(
                    Kind::Conflict,
                    origin.setting("control", path.display()),
                    "cannot be changed while the daemon runs",
                    "restart it, or write the former path",
                ))
            }
            _ => Ok(()),
        }
    }

    /// Goes from what is served to what `specs` say, while nothing else changes it.
    fn apply(&self, mut specs: Vec<VmSpec>) -> Result<Difference, Failure> {
        for spec in &mut specs {
            self.sources.activation.give(spec)?;
        }
        let now = lock(&self.vms).clone();
        let wanted = plan::wanted(&now, specs, &self.sources.rules)?;
        self.sources.refuse_elsewhere(wanted.iter())?;
        now.examine(wanted.iter(), Allow::Dead)?;
        let steps = plan::steps(&now, &wanted);
        self.take_all(&steps)?;
        // Also where nothing changed but the line that says so.
        *lock(&self.vms) = wanted;
        Ok(Difference::of(&steps))
    }

    /// Serves one more VM.
    ///
    /// # Errors
    ///
    /// A mistake in it, or a shortage in the system.
    pub(crate) fn add(&self, mut spec: VmSpec) -> Result<VmStatus, Failure> {
        let _changing = lock(&self.changing);
        self.sources.activation.give(&mut spec)?;
        let vm = Vm::parse(spec, &self.sources.rules)?;
        let cid = vm.cid;
        lock(&self.vms).refuse(&vm)?;
        self.sources.refuse_elsewhere([&vm])?;
        // None of its places is another VM's, so each is to be free.
        vm.claims
            .iter()
            .try_for_each(|claim| claim.examine(Allow::Dead))?;
        self.take(&Step::Add(vm))?;
        self.vm(cid)
    }

    /// Changes what `settings` say of a VM that is served.
    ///
    /// # Errors
    ///
    /// There is no such VM, or a mistake in the settings.
    pub(crate) fn change(&self, cid: GuestCid, settings: &Settings) -> Result<VmStatus, Failure> {
        let _changing = lock(&self.changing);
        let mut others = lock(&self.vms).clone();
        let from = others.remove(cid).ok_or(Failure::NoSuchVm(cid))?;
        let origin = Origin::Request(cid.cid().into());
        let from = Arc::unwrap_or_clone(from);
        let mut to = from.clone();
        to.policy = to.policy.with(&origin, cid, settings)?;
        // Who reads of a conflict is to read of this request.
        let mut tested = to.clone();
        tested.origin = origin;
        others.refuse(&tested)?;
        self.take(&Step::Change {
            from: Box::new(from),
            to: Box::new(to),
        })?;
        self.vm(cid)
    }

    /// Stops serving a VM.
    ///
    /// # Errors
    ///
    /// There is no such VM.
    pub(crate) fn remove(&self, cid: GuestCid) -> Result<(), Failure> {
        let _changing = lock(&self.changing);
        let vm = lock(&self.vms).get(cid).cloned();
        let vm = vm.ok_or(Failure::NoSuchVm(cid))?;
        self.take(&Step::Remove(Arc::unwrap_or_clone(vm)))
    }

    /// One VM as it is now.
    ///
    /// # Errors
    ///
    /// There is no such VM.
    pub(crate) fn vm(&self, cid: GuestCid) -> Result<VmStatus, Failure> {
        let vm = lock(&self.vms).get(cid).cloned();
        let status = vm.and_then(|vm| {
            let guest = self.server.guest(cid)?;
            Some(VmStatus { vm, guest })
        });
        status.ok_or(Failure::NoSuchVm(cid))
    }

    /// All VMs as they are now, by their CIDs.
    pub(crate) fn vms(&self) -> Vec<VmStatus> {
        let vms = lock(&self.vms).clone();
        let guests = self.server.guests().into_iter();
        guests
            .filter_map(|guest| {
                let vm = vms.get(guest.cid)?.clone();
                Some(VmStatus { vm, guest })
            })
            .collect()
    }

    /// How many there are.
    pub(crate) fn counts(&self) -> Counts {
        let guests = self.server.guests();
        let is_running = |guest: &&GuestStatus| guest.state == GuestState::Running;
        Counts {
            vms: guests.len(),
            running: guests.iter().filter(is_running).count(),
        }
    }

    /// The connections, of one VM or of all, by their numbers.
    ///
    /// # Errors
    ///
    /// There is no such VM.
    pub(crate) fn connections(
        &self,
        cid: Option<GuestCid>,
    ) -> Result<Vec<ConnectionStatus>, Failure> {
        if let Some(cid) = cid {
            self.vm(cid)?;
        }
        Ok(self.server.connections(cid))
    }

    /// Ends a connection, for both its ends.
    ///
    /// # Errors
    ///
    /// There is no such connection.
    pub(crate) fn kill(&self, id: ConnectionId) -> Result<(), Failure> {
        if self.server.kill(id) {
            info!("connection {id} was killed");
            Ok(())
        } else {
            Err(Failure::NoSuchConnection(id))
        }
    }

    /// What happens from now on.
    pub(crate) fn events(&self) -> Events {
        self.server.events()
    }

    /// Whether no change is under way for which `progress` stands still. It is the number
    /// to compare with next time.
    pub(crate) fn is_alive(&self, progress: &mut u64) -> bool {
        let former = std::mem::replace(progress, self.progress.load(Ordering::Relaxed));
        let is_idle = self.changing.try_lock().is_ok();
        // Neither waits for anything but a lock that is held for a moment.
        let _ = self.server.guests();
        is_idle || former != *progress
    }

    /// Ends all VMs.
    pub(crate) fn shutdown(self) {
        self.server.shutdown();
    }

    fn take_all(&self, steps: &[Step]) -> Result<(), Failure> {
        for (index, step) in steps.iter().enumerate() {
            let Err(failure) = self.take(step) else {
                continue;
            };
            let remains = self.undo(&steps[..index]);
            return Err(failure.with(remains));
        }
        Ok(())
    }

    /// Undoes these steps, the last one first; returns what is not as it was.
    fn undo(&self, taken: &[Step]) -> Vec<String> {
        let undone = taken.iter().rev().map(|step| {
            let failure = self.take(&step.clone().inverse()).err();
            step.remains(failure.map(|failure| failure.message()).as_deref())
        });
        undone.flatten().collect()
    }

    fn take(&self, step: &Step) -> Result<(), Failure> {
        self.progress.fetch_add(1, Ordering::Relaxed);
        let result = match step {
            Step::Add(vm) => self.serve(vm),
            Step::Remove(vm) => {
                self.server.remove(vm.cid);
                lock(&self.vms).remove(vm.cid);
                info!("no longer serving CID {}", vm.cid);
                Ok(())
            }
            Step::Change { from, to } => self.tell(from, to),
        };
        self.progress.fetch_add(1, Ordering::Relaxed);
        if let Some(hints) = self.hints.get() {
            // It fails at the daemon's end, when nobody needs it.
            let _ = hints.send(Hint::Look);
        }
        result
    }

    fn serve(&self, vm: &Vm) -> Result<(), Failure> {
        let shortage = |error: &dyn ToString| Failure::System(error.to_string());
        let mut config = vm.config().map_err(|error| shortage(&error))?;
        config.busy_poll = self.sources.busy_poll;
        self.server.add(config).map_err(|error| shortage(&error))?;
        lock(&self.vms).put(vm.clone());
        info!("{}", vm.summary());
        if is_open_to_all(vm.access) {
            warn!(
                "any user of this host can connect to the sockets of CID {}",
                vm.cid
            );
        }
        Ok(())
    }

    fn tell(&self, from: &Vm, to: &Vm) -> Result<(), Failure> {
        let cid = to.cid;
        match self.server.change(cid, &changes(from, to)) {
            Ok(()) => {
                lock(&self.vms).put(to.clone());
                info!("now {}", to.summary());
                Ok(())
            }
            Err(ChangeError::NoSuchGuest(cid)) => Err(Failure::NoSuchVm(cid)),
            Err(error) => Err(Failure::System(error.to_string())),
        }
    }
}

/// Only what is different.
fn changes(from: &Vm, to: &Vm) -> Changes {
    fn changed<T: PartialEq + Clone>(from: &T, to: &T) -> Option<T> {
        (from != to).then(|| to.clone())
    }
    let (from, to) = (&from.policy, &to.policy);
    Changes {
        groups: changed(&from.groups, &to.groups),
        host_cids: changed(&from.host_cids, &to.host_cids),
        tx_buffer_size: changed(&from.tx_buffer_size, &to.tx_buffer_size),
        max_connections: changed(&from.max_connections, &to.max_connections),
        max_backlog: changed(&from.max_backlog, &to.max_backlog),
        max_buffered: changed(&from.max_buffered, &to.max_buffered),
        max_handshakes: changed(&from.max_handshakes, &to.max_handshakes),
        max_bytes_per_second: changed(&from.max_bytes_per_second, &to.max_bytes_per_second),
        max_requests_per_second: changed(
            &from.max_requests_per_second,
            &to.max_requests_per_second,
        ),
    }
}

impl Difference {
    /// A VM that was removed and added again has changed.
    fn of(steps: &[Step]) -> Self {
        let mut difference = Self::default();
        for step in steps {
            match step {
                Step::Add(vm) => difference.added.push(vm.cid),
                Step::Remove(vm) => difference.removed.push(vm.cid),
                Step::Change { to, .. } => difference.changed.push(to.cid),
            }
        }
        let (added, removed) = (&mut difference.added, &mut difference.removed);
        let both: Vec<_> = added
            .iter()
            .copied()
            .filter(|cid| removed.contains(cid))
            .collect();
        added.retain(|cid| !both.contains(cid));
        removed.retain(|cid| !both.contains(cid));
        difference.changed.extend(both);
        for cids in [added, removed, &mut difference.changed] {
            cids.sort();
        }
        difference
    }
}

/// What is behind a lock is whole between statements, so a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
