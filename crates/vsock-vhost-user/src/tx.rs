//! Draining a guest's TX ring.
//!
//! Every chain taken is dealt with and returned in the same pass (invariant: TX never
//! waits). Payload of one connection that comes in several packets is gathered and
//! written by one system call, straight from guest memory; so chains are published only
//! after what they hold was written or kept.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType as NetType};
use tracing::{debug, trace};
use vhost_user_backend::VringT;
use virtio_queue::DescriptorChain;
use vm_memory::GuestAddressSpace;
use vsock_connection::ConnectionId;
use vsock_packet::chain::{ChainError, read_packet};
use vsock_packet::{Header, Op, RawHeader, SocketType};
use vsock_router::{HostEndpoint, Refusal, Request, Route};

use crate::memory::{Memory, Piece};
use crate::ring::RingPass;
use crate::worker::Worker;

/// Chains taken in one turn of the worker, before everything else gets its turn.
const CHAINS_PER_TURN: usize = 512;
/// Chains after which the guest gets back what was dealt with.
const CHAINS_PER_PUBLISH: usize = 32;

/// Payload of one connection, gathered.
struct Gathered<'m> {
    connection: Option<ConnectionId>,
    pieces: Vec<Piece<'m>>,
    len: usize,
}

impl Worker {
    /// Takes what the guest sent. `true` when there is more than fits a turn.
    pub(crate) fn drain_tx(&mut self) -> bool {
        let Some((ring, memory)) = self.tx_ring() else {
            return false;
        };
        let mut ring = ring.get_mut();
        if !ring.is_enabled() {
            return false;
        }
        let memory = memory.memory();
        let Some(mut pass) = RingPass::begin(ring.get_queue_mut(), &memory) else {
            return false;
        };
        let mut gathered = Gathered {
            connection: None,
            pieces: Vec::new(),
            len: 0,
        };
        let mut notify = false;
        let mut left = CHAINS_PER_TURN;
        pass.disable_kicks();
        loop {
            let mut batch = left.min(CHAINS_PER_PUBLISH);
            while batch > 0
                && let Some(chain) = pass.next_chain()
            {
                batch -= 1;
                left -= 1;
                let head = chain.head_index();
                self.take_chain(&memory, chain, &mut gathered);
                if let Err(error) = pass.add_used(head, 0) {
                    debug!(head, %error, "cannot return a TX chain");
                }
            }
            self.write_gathered(&mut gathered);
            notify |= pass.publish().unwrap_or_else(|error| {
                debug!(%error, "the TX ring is broken");
                false
            });
            if left == 0 || (batch > 0 && !pass.enable_kicks()) {
                break;
            }
        }
        if notify {
            // Nobody listening to the call is the frontend's choice.
            let _ = ring.signal_used_queue();
        }
        left == 0
    }

    fn take_chain<'m>(
        &mut self,
        memory: &'m Memory,
        chain: DescriptorChain<&'m Memory>,
        gathered: &mut Gathered<'m>,
    ) {
        self.counters.tx_packets.add(1);
        let start = gathered.pieces.len();
        match read_packet(memory, chain, &mut gathered.pieces) {
            Ok(raw) => self.take_packet(&raw, start, gathered),
            Err(error) => self.refuse_chain(&error),
        }
    }

    /// Deals with a packet whose payload are the gathered pieces from `start` on.
    fn take_packet(&mut self, raw: &RawHeader, start: usize, gathered: &mut Gathered<'_>) {
        let header = match Header::parse(raw) {
            Ok(header) => header,
            Err(error) => {
                debug!(guest = %self.guest, %error, "an invalid header");
                self.counters.invalid_headers.add(1);
                self.port.answer_stranger(raw);
                gathered.pieces.truncate(start);
                return;
            }
        };
        trace!(%header, "from the guest");
        let connection = self.connection_of(&header);
        if connection.is_none() || connection != gathered.connection || header.op != Op::Rw {
            let payload = gathered.pieces.split_off(start);
            self.write_gathered(gathered);
            gathered.pieces = payload;
            gathered.connection = connection;
        }
        match connection {
            None => {
                gathered.pieces.clear();
                self.take_stranger(raw, &header);
            }
            Some(id) if self.connections.receive(id, &header) => {
                self.counters.tx_bytes.add(header.len as usize);
                gathered.len += header.len as usize;
            }
            Some(_) => gathered.pieces.truncate(gathered.pieces.len().min(start)),
        }
    }

    /// The connection of a packet, if it has the right to one.
    fn connection_of(&mut self, header: &Header) -> Option<ConnectionId> {
        let own = header.src.cid == self.guest.cid() && header.socket_type == SocketType::Stream;
        own.then(|| self.connections.find(header)).flatten()
    }

    fn write_gathered(&mut self, gathered: &mut Gathered<'_>) {
        if let Some(id) = gathered.connection.take()
            && gathered.len > 0
        {
            self.connections.write(id, &gathered.pieces, gathered.len);
        }
        gathered.pieces.clear();
        gathered.len = 0;
    }

    fn refuse_chain(&mut self, error: &ChainError) {
        debug!(guest = %self.guest, %error, "a malformed chain");
        self.counters.malformed_chains.add(1);
        if let Some(raw) = error.header() {
            self.port.answer_stranger(raw);
        }
    }

    /// Deals with a packet of no connection.
    fn take_stranger(&mut self, raw: &RawHeader, header: &Header) {
        match header.op {
            Op::Request => {
                if let Err(why) = self.open(header) {
                    debug!(request = %header, %why, "refused");
                    self.counters.refused_requests.add(1);
                    self.port.answer_stranger(raw);
                }
            }
            Op::Rst => (),
            _ => {
                self.counters.strangers.add(1);
                self.port.answer_stranger(raw);
            }
        }
    }

    /// Opens the connection that the guest asks for.
    fn open(&mut self, request: &Header) -> Result<(), Refusal> {
        if request.src.cid != self.guest.cid() {
            return Err(Refusal::ForgedSource);
        }
        if !self.takes(request.socket_type) {
            return Err(Refusal::TypeNotSupported);
        }
        match self.router.route(&Request::new(self.guest, request)) {
            Route::Host(HostEndpoint::Unix(path)) => self.open_unix(request, &path),
            Route::Refuse(why) => Err(why),
            _ => Err(Refusal::NoRoute),
        }
    }

    fn open_unix(&mut self, request: &Header, path: &Path) -> Result<(), Refusal> {
        if self.connections.is_full() {
            return Err(Refusal::TooManyConnections);
        }
        let socket = connect(path).map_err(|error| {
            debug!(path = %path.display(), %error, "cannot connect");
            Refusal::NotListening
        })?;
        if !self.connections.accept(request, socket, &self.poller) {
            return Err(Refusal::TooManyConnections);
        }
        self.counters.guest_connections.add(1);
        Ok(())
    }
}

/// Connects without waiting. An AF_UNIX connection is there at once or not at all: a
/// listener whose backlog is full is EAGAIN.
fn connect(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, NetType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}
