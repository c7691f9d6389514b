//! What an operator says of a guest.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use vsock_packet::{Cid, GuestCid};

use crate::unix_socket::SocketAccess;

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
    /// Who may connect to the two sockets, where the server creates them. What this guest's
    /// sockets allow says nothing of another's.
    pub access: SocketAccess,
    /// Whether host applications may be in this process. If not, a guest that is led back
    /// here is refused: whoever may put symbolic links beside `uds_path` could have it
    /// connected to another guest's sockets, or to those that control this process.
    pub reaches_own_process: bool,
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
    /// The most connections the guest may have with the host's applications at once, and
    /// the most it may have opened to siblings.
    pub max_connections: usize,
    /// The most that may wait for siblings because of this guest, in bytes. What waits at
    /// one of them may be half of it at most.
    pub max_backlog: usize,
    /// What may be kept for host applications that do not read altogether, in bytes. When
    /// little is left of it, new connections get less than `tx_buffer_size`, but at least
    /// [`MIN_TX_BUFFER_SIZE`](Self::MIN_TX_BUFFER_SIZE).
    pub max_buffered: usize,
    /// Host applications that may be about to say which port they want.
    pub max_handshakes: usize,
    /// Payload the guest may send in a second, and as much again that host applications
    /// may send to it; `None` for any amount.
    pub max_bytes_per_second: Option<u64>,
    /// Connections the guest may ask for in a second; `None` for any number.
    pub max_requests_per_second: Option<u64>,
    /// How long the worker looks for more to do before it sleeps, where that has made it
    /// faster lately: time of a processor for latency. Zero to sleep at once, always.
    pub busy_poll: Duration,
}

impl GuestConfig {
    /// The default `busy_poll`.
    pub const DEFAULT_BUSY_POLL: Duration = Duration::from_micros(50);
    /// The longest `busy_poll`; a longer one is taken for this. The VMM's requests may wait
    /// for some dozens of looks, each of which found something.
    pub const MAX_BUSY_POLL: Duration = Duration::from_millis(1);
    /// The default and the largest `queue_size`.
    pub const MAX_QUEUE_SIZE: u16 = 1024;
    /// The default `tx_buffer_size`: what Linux gives its own sockets.
    pub const DEFAULT_TX_BUFFER_SIZE: u32 = 256 * 1024;
    /// The default `max_connections`.
    pub const DEFAULT_MAX_CONNECTIONS: usize = 4096;

    /// The default `max_backlog`.
    pub const DEFAULT_MAX_BACKLOG: usize = 64 << 20;

    /// The default `max_buffered`.
    pub const DEFAULT_MAX_BUFFERED: usize = 256 << 20;
    /// What a connection gets of `max_buffered` at least.
    pub const MIN_TX_BUFFER_SIZE: u32 = 16 * 1024;
    /// The default `max_handshakes`.
    pub const DEFAULT_MAX_HANDSHAKES: usize = 128;

    /// A guest with defaults for all but its addresses.
    pub fn new(cid: GuestCid, socket: impl Into<PathBuf>, uds_path: impl Into<PathBuf>) -> Self {
        Self {
            cid,
            socket: VhostUserSocket::Path(socket.into()),
            uds_path: uds_path.into(),
            access: SocketAccess::default(),
            reaches_own_process: true,
            groups: Vec::new(),
            host_cids: Vec::new(),
            queue_size: Self::MAX_QUEUE_SIZE,
            tx_buffer_size: Self::DEFAULT_TX_BUFFER_SIZE,
            max_connections: Self::DEFAULT_MAX_CONNECTIONS,
            max_backlog: Self::DEFAULT_MAX_BACKLOG,
            max_buffered: Self::DEFAULT_MAX_BUFFERED,
            max_handshakes: Self::DEFAULT_MAX_HANDSHAKES,
            max_bytes_per_second: None,
            max_requests_per_second: None,
            busy_poll: Self::DEFAULT_BUSY_POLL,
        }
    }
}

/// What is to be different about a guest; `None` leaves it as it is.
#[derive(Clone, Default, Debug)]
pub struct Changes {
    /// Other groups. Connections that they no longer allow are reset at once.
    pub groups: Option<Vec<String>>,
    /// Other CIDs that mean the host, beside 2. Connections with one that no longer does
    /// are reset at once.
    pub host_cids: Option<Vec<Cid>>,
    /// Another `tx_buffer_size`, for connections to come.
    pub tx_buffer_size: Option<u32>,
    /// Another `max_connections`. Connections beyond it stay.
    pub max_connections: Option<usize>,
    /// Another `max_backlog`, for what comes.
    pub max_backlog: Option<usize>,
    /// Another `max_buffered`, for connections to come.
    pub max_buffered: Option<usize>,
    /// Another `max_handshakes`.
    pub max_handshakes: Option<usize>,
    /// Another `max_bytes_per_second`; `Some(None)` for any amount.
    pub max_bytes_per_second: Option<Option<u64>>,
    /// Another `max_requests_per_second`; `Some(None)` for any number.
    pub max_requests_per_second: Option<Option<u64>>,
}
