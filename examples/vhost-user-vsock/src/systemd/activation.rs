//! Sockets that the service manager listens on for us (`LISTEN_FDS`), known by their names:
//! `control`, and `vm3` for the VM with CID 3.

use std::collections::BTreeMap;
use std::env;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;

use crate::config_file::Control;
use crate::inherited;
use crate::mistake::Mistake;
use crate::number::decimal;
use crate::place::{MAX_PATH, Place};
use crate::spec::{Origin, VmSpec};

/// The number of the first descriptor that is handed over.
const FIRST: u64 = 3;

/// The sockets by their names.
#[derive(Default, Debug)]
pub(crate) struct Activation {
    sockets: BTreeMap<String, Socket>,
}

#[derive(Debug)]
struct Socket {
    listener: Arc<UnixListener>,
    path: PathBuf,
}

impl Activation {
    /// The sockets that the environment tells of.
    ///
    /// # Errors
    ///
    /// One has no name of ours, has that of another, or is no UNIX socket that listens at
    /// a path.
    pub(crate) fn from_env() -> Result<Self, Mistake> {
        let variable = |name| env::var(name).unwrap_or_default();
        if variable("LISTEN_PID") != process::id().to_string() {
            return Ok(Self::default());
        }
        let count = variable("LISTEN_FDS").parse().unwrap_or_default();
        let names = variable("LISTEN_FDNAMES");
        let mut names = names.split(':').map(str::to_owned);
        let mut activation = Self::default();
        for number in (FIRST..).take(count) {
            let name = names.next().unwrap_or_default();
            activation.take(number, name)?;
        }
        Ok(activation)
    }

    fn take(&mut self, number: u64, name: String) -> Result<(), Mistake> {
        let setting = format!("LISTEN_FDNAMES={name}");
        let mistake = |problem: &dyn ToString, remedy| {
            Err(Mistake::new(&setting, problem.to_string(), remedy))
        };
        if !is_ours(&name) {
            let remedy = "write FileDescriptorName=control, or vm and a CID, in the socket's unit";
            return mistake(&"is no name of a socket of this program", remedy);
        }
        let listener = match inherited::listener(number) {
            Ok((listener, None)) => listener,
            Ok(_) => return mistake(&"is connected", "have it listen, with Accept=no"),
            Err(error) => return mistake(&error, error.remedy()),
        };
        let address = listener.local_addr().ok();
        let path = address.and_then(|address| address.as_pathname().map(Path::to_owned));
        let Some(path) = path else {
            let remedy = "write ListenStream= and a path in the socket's unit";
            return mistake(&"listens at no path", remedy);
        };
        let listener = Arc::new(listener);
        match self.sockets.insert(name, Socket { listener, path }) {
            None => Ok(()),
            Some(_) => mistake(&"is there twice", "give each socket a name of its own"),
        }
    }

    /// Gives a VM its socket, if there is one for it.
    ///
    /// # Errors
    ///
    /// It is at another path than the VM's.
    pub(crate) fn give(&self, vm: &mut VmSpec) -> Result<(), Mistake> {
        let name = vm.settings.cid.map(|cid| format!("vm{cid}"));
        let Some(socket) = name.and_then(|name| self.sockets.get(&name)) else {
            return Ok(());
        };
        match &vm.settings.socket {
            Some(path) => socket.refuse_other(&vm.origin, "socket", path)?,
            None => vm.settings.socket = Some(socket.path.clone()),
        }
        vm.listener = Some(Arc::clone(&socket.listener));
        Ok(())
    }

    /// The control socket, if there is one, and what it would be otherwise.
    ///
    /// # Errors
    ///
    /// It is at another path than `control`.
    pub(crate) fn control(
        &self,
        control: Option<Control>,
    ) -> Result<(Option<Control>, Option<Arc<UnixListener>>), Mistake> {
        let Some(socket) = self.sockets.get("control") else {
            return Ok((control, None));
        };
        if let Some(Control { path, origin }) = &control {
            socket.refuse_other(origin, "control", path)?;
        }
        let control = control.unwrap_or_else(|| Control {
            path: socket.path.clone(),
            origin: Origin::Options,
        });
        Ok((Some(control), Some(Arc::clone(&socket.listener))))
    }
}

impl Socket {
    fn refuse_other(&self, origin: &Origin, key: &str, path: &Path) -> Result<(), Mistake> {
        let place = |path| Place::named(path, MAX_PATH).ok();
        if path == self.path || place(path).is_some_and(|one| Some(one) == place(&self.path)) {
            return Ok(());
        }
        Err(Mistake::new(
            origin.setting(key, path.display()),
            format!("the service manager listens at {}", self.path.display()),
            "have both the same",
        ))
    }
}

/// A VM's socket is found by its CID alone: as one would print it.
fn is_ours(name: &str) -> bool {
    let is_cid = |text| decimal(text).is_some_and(|cid: u32| cid.to_string() == text);
    name == "control" || name.strip_prefix("vm").is_some_and(is_cid)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::spec::Settings;

    fn activation(name: &str, path: &Path) -> Activation {
        let listener = UnixListener::bind(path).unwrap();
        let mut activation = Activation::default();
        let number = listener.as_raw_fd().try_into().unwrap();
        activation.take(number, name.to_owned()).unwrap();
        activation
    }

    fn vm(cid: u64, socket: Option<PathBuf>) -> VmSpec {
        let settings = Settings {
            cid: Some(cid),
            socket,
            ..Settings::default()
        };
        VmSpec::new(Origin::Options, settings)
    }

    #[test]
    fn gives_each_vm_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("3.sock");
        let activation = activation("vm3", &path);
        let mut three = vm(3, None);
        activation.give(&mut three).unwrap();
        assert_eq!(three.settings.socket.as_deref(), Some(path.as_path()));
        assert!(three.listener.is_some());
        let mut four = vm(4, None);
        activation.give(&mut four).unwrap();
        assert!(four.listener.is_none());
    }

    #[test]
    fn refuses_a_path_at_which_nobody_would_listen() {
        let dir = tempfile::tempdir().unwrap();
        let activation = activation("vm3", &dir.path().join("3.sock"));
        let same = dir.path().join(".").join("3.sock");
        assert!(activation.give(&mut vm(3, Some(same))).is_ok());
        let other = dir.path().join("other");
        assert!(activation.give(&mut vm(3, Some(other))).is_err());
    }

    #[test]
    fn refuses_names_that_say_nothing() {
        let names = [
            "", "vm", "vmx", "vm-3", "vm+3", "vm03", "stored", "x.socket",
        ];
        for name in names {
            assert!(Activation::default().take(FIRST, name.to_owned()).is_err());
        }
    }
}
