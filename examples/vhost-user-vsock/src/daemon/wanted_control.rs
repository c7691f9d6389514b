//! The control socket that the daemon is to have, until it has it.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use tracing::warn;
use vsock_vhost_user::SocketAccess;

use super::Fault;
use crate::access::is_open_to_all;
use crate::config_file::Control;
use crate::control::ControlSocket;
use crate::mistake::Mistake;
use crate::once::WrittenOnce;
use crate::place::{Allow, MAX_PATH};
use crate::systemd::Activation;
use crate::vm::Claim;

/// The control socket of the options, the configuration or the service manager, or none.
pub(super) struct WantedControl {
    control: Option<Control>,
    /// The service manager's, which listens already.
    listener: Option<Arc<UnixListener>>,
}

impl WantedControl {
    /// The one of the service manager, or else the one that was written.
    ///
    /// # Errors
    ///
    /// They are at different paths, or it is said who may connect where there is none.
    pub(super) fn new(
        activation: &Activation,
        control: Option<Control>,
        once: &WrittenOnce,
    ) -> Result<Self, Mistake> {
        let (control, listener) = activation.control(control)?;
        let wanted = Self { control, listener };
        wanted.examine_access(once)?;
        Ok(wanted)
    }

    /// The one that was written.
    pub(super) fn written(control: Option<Control>) -> Self {
        Self {
            control,
            listener: None,
        }
    }

    pub(super) fn path(&self) -> Option<&Path> {
        self.control.as_ref().map(|control| control.path.as_path())
    }

    /// Who may connect is said of a control socket that the daemon creates: where there is
    /// none this is a mistake, and an inherited one stays as it is.
    fn examine_access(&self, once: &WrittenOnce) -> Result<(), Mistake> {
        let settings = ["control-mode", "control-owner"].map(|key| once.get(key));
        for written in settings.into_iter().flatten() {
            if self.control.is_none() {
                return Err(Mistake::new(
                    written.setting(),
                    "there is no control socket",
                    "name one by --control, or leave this out",
                ));
            }
            if self.listener.is_some() {
                warn!(
                    "{}: has no effect, since the service manager made the control socket: it is \
                     for the daemon's own user and root",
                    written.setting()
                );
            }
        }
        Ok(())
    }

    /// The place it takes.
    ///
    /// # Errors
    ///
    /// It can be no socket's, or there is something already that is not allowed.
    pub(super) fn claim(&self, allow: Allow) -> Result<Option<Claim>, Mistake> {
        let Some(Control { path, origin }) = &self.control else {
            return Ok(None);
        };
        let claim = Claim::new(origin, "control", path, MAX_PATH)?;
        let claim = claim.inherited(self.listener.is_some());
        claim.examine(allow)?;
        Ok(Some(claim))
    }

    /// Has it.
    ///
    /// # Errors
    ///
    /// The system refuses it.
    pub(super) fn bind(self, access: SocketAccess) -> Result<Option<ControlSocket>, Fault> {
        if let Some(listener) = self.listener {
            return Ok(Some(ControlSocket::inherited(listener)));
        }
        let Some(Control { path, .. }) = self.control else {
            return Ok(None);
        };
        if is_open_to_all(access) {
            warn!("any user of this host can use the control socket");
        }
        let socket = ControlSocket::bind(&path, access).map_err(Fault::Control)?;
        Ok(Some(socket))
    }
}
