//! Where VMs and sockets come from, for as long as the daemon runs.

use std::path::PathBuf;
use std::time::Duration;

use crate::access::AccessRules;
use crate::config_file::Control;
use crate::mistake::{Kind, Mistake};
use crate::once::WrittenOnce;
use crate::sandbox::{Directory, Territory};
use crate::systemd::Activation;
use crate::vm::Vm;

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
    pub(super) fn refuse_elsewhere<'a>(
        &self,
        vms: impl IntoIterator<Item = &'a Vm>,
    ) -> Result<(), Mistake> {
        let Some(territory) = &self.territory else {
            return Ok(());
        };
        let mut vms = vms.into_iter();
        vms.try_for_each(|vm| territory.refuse_elsewhere(vm))
    }

    /// # Errors
    ///
    /// A directory lies outside of what a daemon that is confined can reach.
    pub(super) fn refuse_new(&self, directories: &[Directory]) -> Result<(), Mistake> {
        let territory = self.territory.iter();
        territory
            .flat_map(|territory| directories.iter().map(|new| territory.refuse_new(new)))
            .collect()
    }

    /// The control socket stays where it is.
    ///
    /// # Errors
    ///
    /// It would be elsewhere.
    pub(super) fn refuse_other_control(&self, control: Option<Control>) -> Result<(), Mistake> {
        match control {
            Some(Control { path, origin }) if self.control.as_ref() != Some(&path) => {
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
}
