//! The JSON of the control socket: what its answers hold, for both its sides.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use vsock_packet::{GuestCid, SocketType, VsockAddr};
use vsock_vhost_user::{
    ConnectionKind, ConnectionState, ConnectionStatus, CounterValues, Event, GuestState,
};

use crate::access::owner_text;
use crate::manager::{Difference, VmStatus};
use crate::spec::Origin;

/// Why a request was refused.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct ErrorView {
    /// For programs.
    pub(crate) code: String,
    /// What is wrong.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) remedy: String,
}

/// The daemon.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct VersionView {
    pub(crate) name: String,
    pub(crate) version: String,
}

impl Default for VersionView {
    fn default() -> Self {
        Self {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct VmsView {
    pub(crate) vms: Vec<VmView>,
}

/// A VM: its settings by the names that the configuration has for them, and how it is.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct VmView {
    pub(crate) cid: u32,
    /// `None` for an inherited descriptor.
    pub(crate) socket: Option<String>,
    pub(crate) uds_path: String,
    /// In four octal digits.
    pub(crate) socket_mode: String,
    /// By their numbers; `None` for the daemon's own user.
    pub(crate) socket_owner: Option<String>,
    pub(crate) groups: Vec<String>,
    pub(crate) host_cids: Vec<u32>,
    pub(crate) queue_size: u16,
    pub(crate) tx_buffer_size: u32,
    pub(crate) max_connections: usize,
    pub(crate) max_backlog: usize,
    pub(crate) max_buffered: usize,
    pub(crate) max_handshakes: usize,
    /// 0 for any amount.
    pub(crate) max_bytes_per_second: u64,
    /// 0 for any number.
    pub(crate) max_requests_per_second: u64,
    /// Who described it: `options`, `config` or `control`.
    pub(crate) source: String,
    /// `waiting`, `running` or `paused`.
    pub(crate) state: String,
    pub(crate) connections: usize,
    pub(crate) counters: BTreeMap<String, u64>,
}

impl VmView {
    pub(crate) fn of(status: &VmStatus) -> Self {
        let VmStatus { vm, guest } = status;
        Self {
            cid: vm.cid.cid().value(),
            socket: vm.socket.as_ref().map(|path| path.display().to_string()),
            uds_path: vm.uds_path.display().to_string(),
            socket_mode: format!("{:04o}", vm.access.mode),
            socket_owner: owner_text(vm.access),
            groups: guest.groups.clone(),
            host_cids: guest.host_cids.iter().map(|cid| cid.value()).collect(),
            queue_size: guest.queue_size,
            tx_buffer_size: guest.tx_buffer_size,
            max_connections: guest.max_connections,
            max_backlog: guest.max_backlog,
            max_buffered: guest.max_buffered,
            max_handshakes: guest.max_handshakes,
            max_bytes_per_second: guest.max_bytes_per_second.unwrap_or(0),
            max_requests_per_second: guest.max_requests_per_second.unwrap_or(0),
            source: source(&vm.origin).to_owned(),
            state: state(guest.state).to_owned(),
            connections: guest.connections,
            counters: counters(&guest.counters),
        }
    }
}

fn source(origin: &Origin) -> &'static str {
    match origin {
        Origin::Options | Origin::VmOption(_) => "options",
        Origin::File(_) => "config",
        Origin::Request(_) => "control",
    }
}

fn state(state: GuestState) -> &'static str {
    match state {
        GuestState::Waiting => "waiting",
        GuestState::Running => "running",
        GuestState::Paused => "paused",
    }
}

fn counters(values: &CounterValues) -> BTreeMap<String, u64> {
    let siblings = &values.siblings;
    let counters = [
        ("tx_packets", values.tx_packets),
        ("tx_bytes", values.tx_bytes),
        ("rx_packets", values.rx_packets),
        ("rx_bytes", values.rx_bytes),
        ("guest_connections", values.guest_connections),
        ("host_connections", values.host_connections),
        ("refused_requests", values.refused_requests),
        ("refused_clients", values.refused_clients),
        ("invalid_headers", values.invalid_headers),
        ("malformed_chains", values.malformed_chains),
        ("useless_buffers", values.useless_buffers),
        ("violations", values.violations + siblings.violations),
        ("timeouts", values.timeouts + siblings.timeouts),
        ("faults", values.faults),
        ("sibling_connections", siblings.opened),
        ("strangers", siblings.strangers),
    ];
    let named = counters.map(|(name, value)| (name.to_owned(), value));
    BTreeMap::from(named)
}

#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct ConnectionsView {
    pub(crate) connections: Vec<ConnectionView>,
}

/// One end of a connection.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct EndView {
    pub(crate) cid: u32,
    pub(crate) port: u32,
}

impl EndView {
    fn of(end: VsockAddr) -> Self {
        Self {
            cid: end.cid.value(),
            port: end.port.value(),
        }
    }
}

/// A connection.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct ConnectionView {
    pub(crate) id: u64,
    /// The end that asked.
    pub(crate) from: EndView,
    /// The end that was asked.
    pub(crate) to: EndView,
    /// `guest_to_host`, `host_to_guest` or `sibling`.
    pub(crate) kind: String,
    /// `stream` or `seqpacket`.
    pub(crate) socket_type: String,
    /// `requested`, `established` or `closing`.
    pub(crate) state: String,
    /// Payload that `from` has sent.
    pub(crate) sent_bytes: u64,
    /// Payload that `to` has sent.
    pub(crate) received_bytes: u64,
    pub(crate) age_seconds: f64,
}

impl ConnectionView {
    pub(crate) fn of(connection: &ConnectionStatus) -> Self {
        Self {
            id: connection.id.value(),
            from: EndView::of(connection.from),
            to: EndView::of(connection.to),
            kind: kind(connection.kind).to_owned(),
            socket_type: socket_type(connection.socket_type).to_owned(),
            state: connection_state(connection.state).to_owned(),
            sent_bytes: connection.sent,
            received_bytes: connection.received,
            age_seconds: seconds(connection.age),
        }
    }
}

fn kind(kind: ConnectionKind) -> &'static str {
    match kind {
        ConnectionKind::GuestToHost => "guest_to_host",
        ConnectionKind::HostToGuest => "host_to_guest",
        ConnectionKind::Sibling => "sibling",
    }
}

fn socket_type(socket_type: SocketType) -> &'static str {
    match socket_type {
        SocketType::Stream => "stream",
        SocketType::Seqpacket => "seqpacket",
    }
}

fn connection_state(state: ConnectionState) -> &'static str {
    match state {
        ConnectionState::Requested => "requested",
        ConnectionState::Established => "established",
        ConnectionState::Closing => "closing",
    }
}

/// To the millisecond.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

/// What a reload did, by CIDs.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct DifferenceView {
    pub(crate) added: Vec<u32>,
    pub(crate) removed: Vec<u32>,
    pub(crate) changed: Vec<u32>,
}

impl DifferenceView {
    pub(crate) fn of(difference: &Difference) -> Self {
        let numbers =
            |cids: &[GuestCid]| -> Vec<u32> { cids.iter().map(|cid| cid.cid().value()).collect() };
        Self {
            added: numbers(&difference.added),
            removed: numbers(&difference.removed),
            changed: numbers(&difference.changed),
        }
    }
}

/// Something that happened, and when.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct EventView {
    /// Seconds since 1970, in UTC.
    pub(crate) time: f64,
    #[serde(flatten)]
    pub(crate) what: What,
}

/// What happened.
#[derive(Serialize, Deserialize, Debug)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum What {
    VmAdded {
        cid: u32,
    },
    VmChanged {
        cid: u32,
    },
    VmRemoved {
        cid: u32,
    },
    VmUp {
        cid: u32,
    },
    VmPaused {
        cid: u32,
    },
    VmDown {
        cid: u32,
    },
    ConnectionOpened {
        id: u64,
        from: EndView,
        to: EndView,
        kind: String,
        socket_type: String,
    },
    ConnectionClosed {
        id: u64,
        from: EndView,
        to: EndView,
        kind: String,
        socket_type: String,
        sent_bytes: u64,
        received_bytes: u64,
        age_seconds: f64,
    },
    ConnectionRefused {
        from: EndView,
        to: EndView,
        reason: String,
        message: String,
    },
    ClientRefused {
        cid: u32,
        port: Option<u32>,
        reason: String,
        message: String,
    },
    Missed {
        count: u64,
    },
}

impl EventView {
    /// `None` for what this program does not know.
    pub(crate) fn of(event: &Event, time: SystemTime) -> Option<Self> {
        let time = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Some(Self {
            time: seconds(time),
            what: What::of(event)?,
        })
    }
}

impl What {
    fn of(event: &Event) -> Option<Self> {
        let number = |cid: &GuestCid| cid.cid().value();
        Some(match event {
            Event::GuestAdded { cid } => Self::VmAdded { cid: number(cid) },
            Event::GuestChanged { cid } => Self::VmChanged { cid: number(cid) },
            Event::GuestRemoved { cid } => Self::VmRemoved { cid: number(cid) },
            Event::GuestUp { cid } => Self::VmUp { cid: number(cid) },
            Event::GuestPaused { cid } => Self::VmPaused { cid: number(cid) },
            Event::GuestDown { cid } => Self::VmDown { cid: number(cid) },
            Event::ConnectionOpened { .. } | Event::ConnectionClosed { .. } => {
                return Self::of_connection(event);
            }
            Event::Refused { from, to, why } => Self::ConnectionRefused {
                from: EndView::of(*from),
                to: EndView::of(*to),
                reason: snake_case(&format!("{why:?}")),
                message: why.to_string(),
            },
            Event::ClientRefused { cid, port, why } => Self::ClientRefused {
                cid: number(cid),
                port: port.map(vsock_packet::PortNumber::value),
                reason: snake_case(&format!("{why:?}")),
                message: why.to_string(),
            },
            Event::Missed { count } => Self::Missed { count: *count },
            _ => return None,
        })
    }

    fn of_connection(event: &Event) -> Option<Self> {
        Some(match event {
            Event::ConnectionOpened {
                id,
                kind: of_kind,
                socket_type: of_type,
                from,
                to,
            } => Self::ConnectionOpened {
                id: id.value(),
                from: EndView::of(*from),
                to: EndView::of(*to),
                kind: kind(*of_kind).to_owned(),
                socket_type: socket_type(*of_type).to_owned(),
            },
            Event::ConnectionClosed {
                id,
                kind: of_kind,
                socket_type: of_type,
                from,
                to,
                sent,
                received,
                age,
            } => Self::ConnectionClosed {
                id: id.value(),
                from: EndView::of(*from),
                to: EndView::of(*to),
                kind: kind(*of_kind).to_owned(),
                socket_type: socket_type(*of_type).to_owned(),
                sent_bytes: *sent,
                received_bytes: *received,
                age_seconds: seconds(*age),
            },
            _ => return None,
        })
    }
}

/// The name of a variant as JSON has it.
fn snake_case(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 2);
    for c in name.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_a_reason_for_programs() {
        assert_eq!(snake_case("NoSharedGroup"), "no_shared_group");
    }
}
