//! The options that say of a VM what a request at the control socket may say of it, too: both
//! the daemon and its client have them.

use clap::Args;

use crate::mistake::Mistake;
use crate::spec::{Origin, Settings};

/// Who may connect to VMs' sockets.
#[derive(Debug, Args)]
pub(crate) struct AccessOptions {
    /// The mode of a VM's sockets, in octal digits [default: 0600]
    #[arg(long, value_name = "MODE", allow_hyphen_values = true)]
    pub(crate) socket_mode: Option<String>,

    /// Who owns a VM's sockets, by names or numbers [default: the daemon's user]
    #[arg(long, value_name = "USER[:GROUP]")]
    pub(crate) socket_owner: Option<String>,
}

/// What can be changed of a VM while it is served.
#[derive(Debug, Args)]
pub(crate) struct PolicyOptions {
    /// The groups the guest is in: it reaches the guests it shares one with, and with none
    /// it reaches the host only
    #[arg(long, value_name = "NAME+NAME")]
    pub(crate) groups: Option<String>,

    /// CIDs that mean the host to this guest, beside 2; a nitro enclave dials 3
    #[arg(long, value_name = "CID+CID", allow_hyphen_values = true)]
    pub(crate) host_cids: Option<String>,

    /// Bytes kept for each connection while the host application does not read
    /// [default: 262144]
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) tx_buffer_size: Option<String>,

    /// The connections with the host that the guest may have at once, from 1 to 65536
    /// [default: 4096]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) max_connections: Option<String>,

    /// Bytes that may wait for the guest's siblings because of it, from 65536 to
    /// 1073741824 [default: 67108864]
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) max_backlog: Option<String>,

    /// Bytes that may be kept for all host applications that do not read, from 262144 to
    /// 68719476736 [default: 268435456]
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) max_buffered: Option<String>,

    /// Host applications that may be about to say which port they want, from 1 to 4096
    /// [default: 128]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) max_handshakes: Option<String>,

    /// Bytes the guest may send in a second, and the host may send to it, from 65536 to
    /// 1099511627776, or 0 for any amount [default: 0]
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) max_bytes_per_second: Option<String>,

    /// Connections the guest may ask for in a second, from 1 to 1000000, or 0 for any
    /// number [default: 0]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) max_requests_per_second: Option<String>,
}

impl PolicyOptions {
    /// Those that were given: their names and texts.
    pub(super) fn given(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [
            ("groups", &self.groups),
            ("host-cids", &self.host_cids),
            ("tx-buffer-size", &self.tx_buffer_size),
            ("max-connections", &self.max_connections),
            ("max-backlog", &self.max_backlog),
            ("max-buffered", &self.max_buffered),
            ("max-handshakes", &self.max_handshakes),
            ("max-bytes-per-second", &self.max_bytes_per_second),
            ("max-requests-per-second", &self.max_requests_per_second),
        ];
        let all = all.into_iter();
        all.filter_map(|(key, text)| Some((key, text.as_deref()?)))
    }

    /// The settings that were given.
    ///
    /// # Errors
    ///
    /// One of the numbers is none.
    pub(crate) fn settings(&self) -> Result<Settings, Mistake> {
        let mut settings = Settings::default();
        for (key, text) in self.given() {
            settings.set(&Origin::Options, key, text)?;
        }
        Ok(settings)
    }
}

/// The number that an option was given.
///
/// # Errors
///
/// It is none.
pub(crate) fn number(key: &str, text: Option<&str>) -> Result<Option<u64>, Mistake> {
    text.map(|text| Origin::Options.number(key, text))
        .transpose()
}
