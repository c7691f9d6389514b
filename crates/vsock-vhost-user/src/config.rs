//! What an operator says of a guest.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use vsock_packet::{Cid, GuestCid};

/// Where a guest's frontend connects.
#[derive(Debug)]
pub enum VhostUserSocket {
    /// A path, at which the server creates a listening socket and removes it in the end.
    Path(PathBuf),
    /// A socket that already listens; nobody's to remove.
    Listener(UnixListener),
}

/// One guest of a [`Server`](crate::Server).
#[derive(Debug)]
pub struct GuestConfig {
    /// The guest's CID.
    pub cid: GuestCid,
    /// Where its frontend (the VMM) connects.
    pub socket: VhostUserSocket,
    /// The hybrid vsock socket: host applications connect here, and the guest's
    /// connections to host port P go to the socket at this path with `_P` appended.
    pub uds_path: PathBuf,
    /// The groups this guest is in. It reaches the guests it shares one with; with none,
    /// it reaches the host only.
    pub groups: Vec<String>,
    /// CIDs that mean the host to this guest, beside 2. A nitro enclave dials CID 3.
    pub host_cids: Vec<Cid>,
    /// The largest ring the frontend may ask for, in descriptors: a power of two.
    pub queue_size: u16,
    /// What is kept for a host application that does not read, in bytes for each
    /// connection. It is the `buf_alloc` the guest is told.
    pub tx_buffer_size: u32,
    /// The most connections the guest and the host's applications may have at once.
    pub max_connections: usize,
}

impl GuestConfig {
    /// The default and the largest `queue_size`.
    pub const MAX_QUEUE_SIZE: u16 = 1024;
    /// The default `tx_buffer_size`: what Linux gives its own sockets.
    pub const DEFAULT_TX_BUFFER_SIZE: u32 = 256 * 1024;
    /// The default `max_connections`.
    pub const DEFAULT_MAX_CONNECTIONS: usize = 4096;

    /// A guest with defaults for all but its addresses.
    pub fn new(cid: GuestCid, socket: impl Into<PathBuf>, uds_path: impl Into<PathBuf>) -> Self {
        Self {
            cid,
            socket: VhostUserSocket::Path(socket.into()),
            uds_path: uds_path.into(),
            groups: Vec::new(),
            host_cids: Vec::new(),
            queue_size: Self::MAX_QUEUE_SIZE,
            tx_buffer_size: Self::DEFAULT_TX_BUFFER_SIZE,
            max_connections: Self::DEFAULT_MAX_CONNECTIONS,
        }
    }
}
