//! What the service manager is told (`NOTIFY_SOCKET`): sd_notify(3), without its library.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tracing::warn;

/// How long a service manager may take to take a message.
const PATIENCE: Duration = Duration::from_secs(5);

/// The way to the service manager, if there is one that wants to be told.
#[derive(Debug, Default)]
pub(crate) struct Notifier(Option<UnixDatagram>);

impl Notifier {
    /// The one that the environment tells of.
    pub(crate) fn from_env() -> Self {
        let Some(address) = env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty())
        else {
            return Self(None);
        };
        match connect(&address) {
            Ok(socket) => Self(Some(socket)),
            Err(error) => {
                warn!(%error, "cannot tell the service manager at {}", address.display());
                Self(None)
            }
        }
    }

    #[cfg(test)]
    pub(super) fn to(socket: UnixDatagram) -> Self {
        Self(Some(socket))
    }

    /// Whether anybody is told.
    pub(crate) fn is_heard(&self) -> bool {
        self.0.is_some()
    }

    /// Tells of the daemon's state: `READY=1` and the like, a line for each.
    pub(crate) fn tell(&self, state: &str) {
        if let Some(socket) = &self.0
            && let Err(error) = socket.send(state.as_bytes())
        {
            warn!(%error, "cannot tell the service manager: {state}");
        }
    }

    /// Tells that the configuration is read again; `READY=1` is to follow.
    pub(crate) fn tell_reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let microseconds = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
    }
}

fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    match address.as_bytes().strip_prefix(b"@") {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => socket.connect(address)?,
    }
    Ok(socket)
}

/// How often the service manager wants to hear `WATCHDOG=1`; it acts after that time.
pub(crate) fn watchdog_time() -> Option<Duration> {
    let variable = |name| env::var(name).ok();
    let pid = variable("WATCHDOG_PID");
    let is_ours = pid.is_none_or(|pid| pid == process::id().to_string());
    let microseconds = variable("WATCHDOG_USEC")?.parse().ok()?;
    (is_ours && microseconds > 0).then(|| Duration::from_micros(microseconds))
}
