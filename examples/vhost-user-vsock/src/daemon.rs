//! The daemon's life, from its first socket to its last.

use std::io::{self, IsTerminal};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use thiserror::Error;
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;
use vsock_vhost_user::SocketAccess;

use crate::access::{AccessRules, is_open_to_all};
use crate::config_file::{Config, Control};
use crate::control::{ControlServer, ControlSocket};
use crate::inherited;
use crate::manager::{Counts, Difference, Failure, Manager, Sources};
use crate::mistake::Mistake;
use crate::once::WrittenOnce;
use crate::place::{Allow, MAX_PATH};
use crate::plan;
use crate::process::Process;
use crate::relay::Relay;
use crate::sandbox::{self, Directory, Mode as SandboxMode, Outcome, SandboxError, Territory};
use crate::spec::VmSpec;
use crate::systemd::{Activation, Notifier, Pulse};
use crate::vm::Claim;
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
    let claim = control_claim(config.control.as_ref(), false)?;
    claim
        .iter()
        .try_for_each(|claim| claim.examine(Allow::Live))?;
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
    let Job {
        mut vms,
        config,
        control,
        once,
        sandbox,
        directories,
    } = job;
    // From here on a signal is kept for the wait below, so it never finds a socket
    // that nobody will remove.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(Fault::Signals)?;
    start_log()?;
    let notifier = Arc::new(Notifier::from_env());
    let activation = Activation::from_env()?;
    let (control, listener) = activation.control(control)?;
    examine_control_access(&once, control.is_some(), listener.is_some())?;
    if vms.is_empty() && config.is_none() && control.is_none() {
        return Err(nothing_to_do().into());
    }
    let relay = take_inherited(&mut vms)?;
    let claim = control_claim(control.as_ref(), listener.is_some())?;
    claim
        .iter()
        .try_for_each(|claim| claim.examine(Allow::Dead))?;
    let can_reload = config.is_some();
    let control = control.map(|control| control.path);
    let process = Process::new(&once)?;
    let mut rules = AccessRules::new(&once)?;
    let control_access = rules.of_control(&once)?;
    let mut territory = Territory::new(&directories)?;
    // All that it creates are sockets, and each has the mode it is to have.
    umask(Mode::empty());
    let socket = control_socket(control.as_deref(), control_access, listener)?;
    let sockets = vms.iter().flat_map(VmSpec::sockets);
    for path in sockets.chain(control.as_deref()) {
        territory.add_socket(path);
    }
    if let Some(config) = &config {
        territory.set_config(config);
    }
    raise_descriptor_limit();
    let has_owner = |vm: &VmSpec| vm.settings.socket_owner.is_some();
    if once.get("socket-owner").is_some() || vms.iter().any(has_owner) {
        territory.allow_giving();
    } else if sandbox == SandboxMode::On {
        rules.renounce();
    }
    let (territory, outcome) = confine(sandbox, territory)?;
    let sources = Sources {
        config,
        control,
        activation,
        once,
        busy_poll: process.busy_poll,
        rules,
        territory,
    };
    let manager = Arc::new(Manager::new(
        Vms::beside(claim).at_most(process.max_guests),
        sources,
    ));
    vsock_vhost_user::catch_memory_faults().map_err(Fault::MemoryFaults)?;
    manager.start(vms).map_err(|failure| match failure {
        Failure::Mistake(mistake) => Fault::Mistake(mistake),
        failure => Fault::Start(failure),
    })?;
    outcome.log();
    let control = socket.map(|socket| ControlServer::start(socket, Arc::clone(&manager)));
    let control = control.transpose().map_err(Fault::Control)?.map(Arc::new);
    let handle = signals.handle();
    let relay = relay.map(|relay| relay.start(move || handle.close()));
    let relay = relay.transpose().map_err(Fault::Relay)?;

    info!("ready, VMs: {}", manager.counts().vms);
    notifier.tell("READY=1");
    let pulse = start_pulse(&notifier, &manager, control.as_ref())?;
    let reload = || can_reload.then(|| reload(&manager, &notifier));
    wait(&mut signals, reload);

    // Nothing follows the last word.
    drop(pulse);
    notifier.tell("STOPPING=1");
    // Its jobs have ended, too, so the manager is ours alone.
    drop(control);
    if let Ok(manager) = Arc::try_unwrap(manager) {
        manager.shutdown();
    }
    if let Some(relay) = relay
        && relay.join().is_err()
    {
        warn!("the relay has panicked");
    }
    info!("ended");
    Ok(())
}

fn nothing_to_do() -> Mistake {
    Mistake::new(
        "command line",
        "no VM",
        "give --guest-cid, --socket and --uds-path, or --vm, or --config, or --control \
         (see --help)",
    )
}

/// Who may connect is said of a control socket that the daemon creates: where there is none
/// this is a mistake, and an inherited one stays as it is.
fn examine_control_access(
    written: &WrittenOnce,
    has_control: bool,
    is_inherited: bool,
) -> Result<(), Mistake> {
    let settings = ["control-mode", "control-owner"].map(|key| written.get(key));
    for written in settings.into_iter().flatten() {
        if !has_control {
            return Err(Mistake::new(
                written.setting(),
                "there is no control socket",
                "name one by --control, or leave this out",
            ));
        }
        if is_inherited {
            warn!(
                "{}: has no effect, since the service manager made the control socket: it is for \
                 the daemon's own user and root",
                written.setting()
            );
        }
    }
    Ok(())
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

fn control_socket(
    path: Option<&Path>,
    access: SocketAccess,
    listener: Option<Arc<UnixListener>>,
) -> Result<Option<ControlSocket>, Fault> {
    if let Some(listener) = listener {
        return Ok(Some(ControlSocket::inherited(listener)));
    }
    if path.is_some() && is_open_to_all(access) {
        warn!("any user of this host can use the control socket");
    }
    let socket = path.map(|path| ControlSocket::bind(path, access));
    socket.transpose().map_err(Fault::Control)
}

/// Has the service manager know that both the VMs' manager and the control socket answer,
/// if it wants to know anything.
fn start_pulse(
    notifier: &Arc<Notifier>,
    manager: &Arc<Manager>,
    control: Option<&Arc<ControlServer>>,
) -> Result<Option<Pulse>, Fault> {
    if !notifier.is_heard() {
        return Ok(None);
    }
    let (counted, observed, control) = (Arc::clone(manager), Arc::clone(manager), control.cloned());
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

fn control_claim(control: Option<&Control>, is_inherited: bool) -> Result<Option<Claim>, Mistake> {
    let claim = control
        .map(|Control { path, origin }| Claim::new(origin, "control", path, MAX_PATH))
        .transpose()?;
    Ok(claim.map(|claim| claim.inherited(is_inherited)))
}

/// Logs to standard error what `RUST_LOG` asks for, by default `info`.
fn start_log() -> Result<(), Mistake> {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text).map_err(|error| {
            Mistake::new(
                format!("RUST_LOG={text}"),
                error,
                "write a level (error, warn, info, debug, trace) or target=level",
            )
        })?,
        _ => EnvFilter::new("info"),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    Ok(())
}

/// Raises the soft limit of open descriptors to the hard one: each connection to the
/// host is one descriptor, and the customary 1,024 would be few for many guests.
fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    if let Err(error) = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    ) {
        warn!("the limit of open descriptors stays at {current:?}: {error}");
    }
}
