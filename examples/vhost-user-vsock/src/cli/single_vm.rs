//! The options that describe a single VM.

use std::path::PathBuf;

use clap::Args;

use super::excluded;
use super::vm_options::{PolicyOptions, number};
use crate::mistake::Mistake;
use crate::spec::{Origin, Settings, VmSpec};

/// A VM by options of its own.
#[derive(Debug, Args)]
pub(super) struct SingleVm {
    /// The guest's CID, from 3 to 4294967294
    #[arg(long, value_name = "CID", allow_hyphen_values = true)]
    guest_cid: Option<String>,

    /// The vhost-user socket to create, for the VMM to connect to
    #[arg(long, value_name = "PATH", visible_alias = "socket-path")]
    socket: Option<PathBuf>,

    /// An inherited vhost-user socket's descriptor, listening or connected to the VMM,
    /// instead of --socket
    #[arg(long, value_name = "FD", allow_hyphen_values = true)]
    fd: Option<String>,

    /// The UNIX socket to create for host applications; the guest's connections to port P
    /// of the host go to the socket at this path with _P appended
    #[arg(long, value_name = "PATH")]
    uds_path: Option<PathBuf>,

    /// The longest ring the VMM may ask for, a power of two up to 1024 [default: 1024]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    queue_size: Option<String>,

    #[command(flatten)]
    policy: PolicyOptions,
}

impl SingleVm {
    /// The name of one of them that was given, if any was.
    pub(super) fn first_given(&self) -> Option<&'static str> {
        let own = [
            ("guest-cid", self.guest_cid.is_some()),
            ("socket", self.socket.is_some()),
            ("fd", self.fd.is_some()),
            ("uds-path", self.uds_path.is_some()),
            ("queue-size", self.queue_size.is_some()),
        ];
        let own = own.into_iter().filter(|(_, is_given)| *is_given);
        let policy = self.policy.given().map(|(key, _)| key);
        own.map(|(key, _)| key).chain(policy).next()
    }

    /// The VM.
    ///
    /// # Errors
    ///
    /// One of the numbers is none, or two options exclude each other.
    pub(super) fn into_spec(self) -> Result<VmSpec, Mistake> {
        let origin = Origin::Options;
        let settings = Settings {
            cid: number("guest-cid", self.guest_cid.as_deref())?,
            socket: self.socket,
            fd: number("fd", self.fd.as_deref())?,
            uds_path: self.uds_path,
            queue_size: number("queue-size", self.queue_size.as_deref())?,
            ..self.policy.settings()?
        };
        if let (Some(socket), Some(fd)) = (&settings.socket, settings.fd) {
            return Err(excluded(
                format!("--socket {}", socket.display()),
                &format!("--fd {fd}"),
            ));
        }
        Ok(VmSpec::new(origin, settings))
    }
}
