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

mod difference;
mod failure;
mod sources;
mod taking;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tracing::info;
use vsock_packet::GuestCid;
use vsock_vhost_user::{ConnectionId, ConnectionStatus, Events, GuestState, GuestStatus, Server};

pub(crate) use difference::Difference;
pub(crate) use failure::Failure;
pub(crate) use sources::Sources;

use crate::config_file::Config;
use crate::place::Allow;
use crate::plan::{self, Step};
use crate::spec::{Origin, Settings, VmSpec};
use crate::systemd::Hint;
use crate::vm::Vm;
use crate::vms::Vms;

/// One VM as it is now, and who described it.
#[derive(Debug)]
pub(crate) struct VmStatus {
    pub(crate) vm: Arc<Vm>,
    pub(crate) guest: GuestStatus,
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
        self.sources.refuse_other_control(config.control)?;
        config.once.refuse_other(&self.sources.once)?;
        self.sources.refuse_new(&config.directories)?;
        self.apply(config.vms)
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
}

/// What is behind a lock is whole between statements, so a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
