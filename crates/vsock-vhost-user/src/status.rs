//! What a server tells of its guests and their connections.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use vsock_packet::{Cid, GuestCid, SocketType, VsockAddr};
use vsock_router::{ConnectionId, ConnectionKind, ConnectionState, SiblingConnection};

use crate::counters::CounterValues;

/// A guest at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct GuestStatus {
    /// The guest's CID.
    pub cid: GuestCid,
    /// Where its frontend connects; `None` for a listener that the server was given.
    pub socket: Option<PathBuf>,
    /// The hybrid vsock socket.
    pub uds_path: PathBuf,
    /// The groups it is in.
    pub groups: Vec<String>,
    /// CIDs that mean the host to it, beside 2.
    pub host_cids: Vec<Cid>,
    /// The largest ring its frontend may ask for, in descriptors.
    pub queue_size: u16,
    /// What is kept of each new connection for a host application that does not read, in
    /// bytes.
    pub tx_buffer_size: u32,
    /// The most connections it may have with the host, and the most it may open to
    /// siblings.
    pub max_connections: usize,
    /// The most that may wait for siblings because of it, in bytes.
    pub max_backlog: usize,
    /// The most that may be kept for host applications altogether, in bytes.
    pub max_buffered: usize,
    /// Host applications that may be about to say which port they want.
    pub max_handshakes: usize,
    /// Payload it may send in a second, and as much again that the host may send to it.
    pub max_bytes_per_second: Option<u64>,
    /// Connections it may ask for in a second.
    pub max_requests_per_second: Option<u64>,
    /// Whether its VM is there.
    pub state: GuestState,
    /// Connections with the host and with siblings.
    pub connections: usize,
    /// What was counted.
    pub counters: CounterValues,
}

/// Whether a guest's VM is there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum GuestState {
    /// There is no VM, or its driver has not started the device.
    Waiting,
    /// The guest can send and receive.
    Running,
    /// The VM was stopped, and may go on with its connections.
    Paused,
}

/// A connection at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ConnectionStatus {
    /// Its number.
    pub id: ConnectionId,
    /// Who asked whom.
    pub kind: ConnectionKind,
    /// The kind of socket.
    pub socket_type: SocketType,
    /// How far it has come.
    pub state: ConnectionState,
    /// The end that asked.
    pub from: VsockAddr,
    /// The end that was asked.
    pub to: VsockAddr,
    /// Payload in bytes that `from` has sent.
    pub sent: u64,
    /// Payload in bytes that `to` has sent.
    pub received: u64,
    /// How long ago it was asked for.
    pub age: Duration,
}

/// What a worker shows of itself to other threads at any time.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    state: AtomicU8,
    /// Connections with the host.
    connections: AtomicUsize,
}

impl Gauges {
    pub(crate) fn state(&self) -> GuestState {
        match self.state.load(Ordering::Relaxed) {
            0 => GuestState::Waiting,
            1 => GuestState::Running,
            _ => GuestState::Paused,
        }
    }

    /// Returns the state before.
    pub(crate) fn set_state(&self, state: GuestState) -> GuestState {
        let before = self.state();
        self.state.store(state as u8, Ordering::Relaxed);
        before
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub(crate) fn set_connections(&self, count: usize) {
        self.connections.store(count, Ordering::Relaxed);
    }
}

impl From<SiblingConnection> for ConnectionStatus {
    fn from(connection: SiblingConnection) -> Self {
        Self {
            id: connection.id,
            kind: ConnectionKind::Sibling,
            socket_type: connection.socket_type,
            state: connection.state,
            from: connection.from,
            to: connection.to,
            sent: connection.sent,
            received: connection.received,
            age: connection.since.elapsed(),
        }
    }
}
