//! The daemon's life, from its first socket to its last.

mod log;
mod prepared;
mod wanted_control;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use thiserror::Error;
use tracing::{error, info, warn};

use self::prepared::Prepared;
use self::wanted_control::WantedControl;
use crate::access::AccessRules;
use crate::config_file::{Config, Control};
use crate::control::ControlServer;
use crate::manager::{Counts, Difference, Failure, Manager};
use crate::mistake::Mistake;
use crate::once::WrittenOnce;
use crate::place::Allow;
use crate::plan;
use crate::process::Process;
use crate::sandbox::{Directory, Mode as SandboxMode, SandboxError, Territory};
use crate::spec::VmSpec;
use crate::systemd::{Notifier, Pulse};
use crate::vms::Vms;

/// What the daemon is to do.
#[derive(Default, Debug)]
pub(crate) struct Job {
    /// The VMs of the command line or the configuration.
    pub(crate) vms: Vec<VmSpec>,
    /// The configuration, to read it again.
    pub(crate) config: Option<PathBuf>,
    /// The control socket.
    pub(crate) control: Option<Control>,
    /// What holds for the whole daemon.
    pub(crate) once: WrittenOnce,
    /// Whether the daemon confines itself.
    pub(crate) sandbox: SandboxMode,
    /// Where sockets of VMs that come later may be.
    pub(crate) directories: Vec<Directory>,
}

/// Why the daemon ends otherwise than by a signal.
#[derive(Debug, Error)]
pub(crate) enum Fault {
    /// The operator's, before anything was created.
    #[error(transparent)]
    Mistake(#[from] Mistake),
    /// The system's, with nothing left behind.
    #[error("cannot watch for signals: {0}")]
    Signals(#[source] io::Error),
    /// The system refuses the handler of a signal.
    #[error("cannot watch for guest memory that is taken back: {0}")]
    MemoryFaults(#[source] io::Error),
    /// The system refuses to confine us.
    #[error("{0}; use a kernel with seccomp, or --sandbox off")]
    Sandbox(#[from] SandboxError),
    /// The system refused the socket, or has no thread to spare for it.
    #[error("cannot answer at the control socket: {0}")]
    Control(#[source] io::Error),
    /// The system has no threads to spare.
    #[error("cannot keep the service manager informed: {0}")]
    Notify(#[source] io::Error),
    /// The system has no threads to spare.
    #[error("cannot serve the inherited connection: {0}")]
    Relay(#[source] io::Error),
    /// Another program took a path meanwhile, or the system ran short.
    #[error("{0}")]
    Start(Failure),
}

/// Finds all mistakes that can be found without starting; returns how many VMs there are.
///
/// # Errors
///
/// The first mistake. A socket in use is none: a daemon may serve this configuration.
pub(crate) fn check(path: &Path) -> Result<usize, Mistake> {
    let config = Config::read(path)?;
    let claim = WantedControl::written(config.control).claim(Allow::Live)?;
    Territory::new(&config.directories)?;
    let rules = AccessRules::new(&config.once)?;
    rules.of_control(&config.once)?;
    let process = Process::new(&config.once)?;
    let none = Vms::beside(claim).at_most(process.max_guests);
    let vms = plan::wanted(&none, config.vms, &rules)?;
    none.examine(vms.iter(), Allow::Live)?;
    Ok(vms.len())
}

/// Serves VMs until a signal, or the end of an inherited connection, ends it in order:
/// connections, threads, sockets.
pub(crate) fn serve(job: Job) -> Result<(), Fault> {
    // From here on a signal is kept for the wait below, so it never finds a socket
    // that nobody will remove.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(Fault::Signals)?;
    log::start()?;
    let notifier = Arc::new(Notifier::from_env());
    let can_reload = job.config.is_some();
    let prepared = Prepared::new(job)?;
    let handle = signals.handle();
    let serving = Serving::start(prepared, move || handle.close())?;

    info!("ready, VMs: {}", serving.manager.counts().vms);
    notifier.tell("READY=1");
    let pulse = start_pulse(&notifier, &serving)?;
    let reload = || can_reload.then(|| reload(&serving.manager, &notifier));
    wait(&mut signals, reload);

    // Nothing follows the last word.
    drop(pulse);
    notifier.tell("STOPPING=1");
    serving.end();
    info!("ended");
    Ok(())
}

/// A daemon that serves its VMs, and answers at its control socket.
struct Serving {
    control: Option<Arc<ControlServer>>,
    relay: Option<JoinHandle<()>>,
    manager: Arc<Manager>,
}

impl Serving {
    /// Serves what was prepared; the end of an inherited connection is told to `on_end`.
    fn start(prepared: Prepared, on_end: impl FnOnce() + Send + 'static) -> Result<Self, Fault> {
        let Prepared {
            socket,
            relay,
            outcome,
            manager,
            vms,
        } = prepared;
        vsock_vhost_user::catch_memory_faults().map_err(Fault::MemoryFaults)?;
        manager.start(vms).map_err(|failure| match failure {
            Failure::Mistake(mistake) => Fault::Mistake(mistake),
            failure => Fault::Start(failure),
        })?;
        outcome.log();
        let manager = Arc::new(manager);
        let control = socket.map(|socket| ControlServer::start(socket, Arc::clone(&manager)));
        let control = control.transpose().map_err(Fault::Control)?.map(Arc::new);
        let relay = relay.map(|relay| relay.start(on_end));
        let relay = relay.transpose().map_err(Fault::Relay)?;
        Ok(Self {
            control,
            relay,
            manager,
        })
    }

    /// Ends in order.
    fn end(self) {
        // Its jobs have ended, too, so the manager is ours alone.
        drop(self.control);
        if let Ok(manager) = Arc::try_unwrap(self.manager) {
            manager.shutdown();
        }
        if let Some(relay) = self.relay
            && relay.join().is_err()
        {
            warn!("the relay has panicked");
        }
    }
}

/// Has the service manager know that both the VMs' manager and the control socket answer,
/// if it wants to know anything.
fn start_pulse(notifier: &Arc<Notifier>, serving: &Serving) -> Result<Option<Pulse>, Fault> {
    if !notifier.is_heard() {
        return Ok(None);
    }
    let (manager, control) = (&serving.manager, serving.control.clone());
    let (counted, observed) = (Arc::clone(manager), Arc::clone(manager));
    let mut progress = 0;
    let is_alive = move |patience| {
        let control = control.as_ref();
        observed.is_alive(&mut progress) && control.is_none_or(|control| control.is_alive(patience))
    };
    let status = move || {
        let Counts { vms, running } = counted.counts();
        format!("VMs: {vms}, running: {running}")
    };
    let pulse = Pulse::start(Arc::clone(notifier), is_alive, status).map_err(Fault::Notify)?;
    manager.hint_at(pulse.hints());
    Ok(Some(pulse))
}

/// Waits for what ends the daemon. `reload` returns `None` when there is nothing to load
/// again, so that SIGHUP is the end, too.
fn wait(signals: &mut Signals, reload: impl Fn() -> Option<()>) {
    for signal in signals.forever() {
        if signal == SIGHUP && reload().is_some() {
            continue;
        }
        let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
        info!("{name}: ending");
        return;
    }
    info!("the inherited connection is closed: ending");
}

fn reload(manager: &Manager, notifier: &Notifier) {
    notifier.tell_reloading();
    match manager.reload() {
        Ok(Difference {
            added,
            removed,
            changed,
        }) => {
            let [added, removed, changed] = [added, removed, changed].map(|cids| cids.len());
            info!("loaded again, VMs added: {added}, removed: {removed}, changed: {changed}");
        }
        Err(failure) => error!("not loaded again: {failure}"),
    }
    notifier.tell("READY=1");
}
