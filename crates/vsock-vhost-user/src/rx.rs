//! A guest's receiving side: its RX ring.
//!
//! [`RxPort`] is the one thing of a guest's session that other threads get hold of, through
//! the switch. Whoever has a packet for the guest locks it for one [pass](RxPort::with),
//! takes buffers, fills them and lets go; used entries are published once and the guest is
//! notified at most once a pass. The order of locks is member, port, ring; nobody holds
//! two ports.

use std::sync::{Mutex, MutexGuard};

use tracing::debug;
use vhost_user_backend::VringT;
use virtio_queue::{DescriptorChain, QueueT};
use vm_memory::GuestAddressSpace;
use vsock_packet::chain::{RxBuffer, write_buffer};
use vsock_packet::{HEADER_LEN, RawHeader};
use vsock_router::{Packet, Port, Receiver};

use crate::backend::lock;
use crate::memory::{Memory, Piece, SharedMemory, Vring};
use crate::poller::Waker;
use crate::ring::RingPass;

/// The receiving side of one guest.
pub(crate) struct RxPort {
    ring: Mutex<Option<(Vring, SharedMemory)>>,
    waker: Waker,
}

impl RxPort {
    /// The port of a guest whose worker is woken by `waker`.
    pub(crate) fn new(waker: Waker) -> Self {
        Self {
            ring: Mutex::new(None),
            waker,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Vring, SharedMemory)>> {
        lock(&self.ring)
    }

    /// A frontend has connected: this is the RX ring.
    pub(crate) fn attach(&self, ring: Vring, memory: SharedMemory) {
        *self.lock() = Some((ring, memory));
    }

    /// The frontend is gone.
    pub(crate) fn detach(&self) {
        *self.lock() = None;
    }

    /// One pass over the RX ring. `None` when the guest does not receive now, else what
    /// `fill` returns.
    pub(crate) fn with<R>(&self, fill: impl FnOnce(&mut RxPass<'_, '_>) -> R) -> Option<R> {
        let state = self.lock();
        let (ring, memory) = state.as_ref()?;
        let mut ring = ring.get_mut();
        if !ring.is_enabled() {
            return None;
        }
        let memory = memory.memory();
        let mut pass = RxPass::begin(RingPass::begin(ring.get_queue_mut(), &memory)?, &memory);
        let result = fill(&mut pass);
        if pass.ring.is_exhausted() {
            self.waker.wake();
        }
        if pass.end() {
            // Nobody listening to the call is the frontend's choice.
            let _ = ring.signal_used_queue();
        }
        Some(result)
    }
}

impl Port for RxPort {
    fn is_up(&self) -> bool {
        self.lock().as_ref().is_some_and(|(ring, _)| {
            let ring = ring.get_ref();
            ring.get_queue().ready() && ring.is_enabled()
        })
    }

    fn pass(&self, fill: &mut dyn FnMut(&mut dyn Receiver)) {
        self.with(|pass| fill(pass));
    }

    fn wake(&self) {
        self.waker.wake();
    }
}

impl Receiver for RxPass<'_, '_> {
    fn put(&mut self, packet: &mut Packet<'_>) -> bool {
        if packet.payload.is_empty() {
            return self.put_control(&packet.header_for(0));
        }
        loop {
            match self.reserve(packet.payload.len(), 1) {
                Room::Payload(room) => {
                    let header = packet.header_for(room);
                    for piece in &self.pieces {
                        packet.payload.copy_to_piece(piece);
                    }
                    self.commit(room, |_| header);
                    return true;
                }
                Room::Header => self.commit_control(&packet.credit_update()),
                Room::None => return false,
            }
        }
    }

    fn put_control(&mut self, header: &RawHeader) -> bool {
        let reserved = self.reserve_control();
        if reserved {
            self.commit_control(header);
        }
        reserved
    }
}

/// What was reserved for payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Room {
    /// So many bytes; [`RxPass::room`] are their pieces. To be followed by
    /// [`RxPass::commit`] or [`RxPass::put_back`].
    Payload(usize),
    /// A buffer that ends with the header. To be followed by [`RxPass::commit_control`].
    Header,
    /// Nothing: the ring is out of buffers.
    None,
}

/// A pass over the RX ring: buffers are taken, filled and returned.
pub(crate) struct RxPass<'q, 'm> {
    ring: RingPass<'q, 'm>,
    mem: &'m Memory,
    /// Buffers taken and not yet returned, and the pieces of their payload.
    taken: Vec<(u16, RxBuffer<'m, Memory>)>,
    pieces: Vec<Piece<'m>>,
}

impl<'q, 'm> RxPass<'q, 'm> {
    fn begin(mut ring: RingPass<'q, 'm>, mem: &'m Memory) -> Self {
        ring.disable_kicks();
        Self {
            ring,
            mem,
            taken: Vec::new(),
            pieces: Vec::new(),
        }
    }

    /// Publishes; whether the guest wants to be notified.
    fn end(&mut self) -> bool {
        debug_assert!(
            self.taken.is_empty(),
            "every buffer is committed or put back"
        );
        self.ring.publish().unwrap_or_else(|error| {
            debug!(%error, "the RX ring is broken");
            false
        })
    }

    /// Takes a buffer for a packet without payload. `false` when there is none. To be
    /// followed by [`Self::commit_control`].
    pub(crate) fn reserve_control(&mut self) -> bool {
        self.take(0)
    }

    /// Returns the reserved buffer with this header.
    pub(crate) fn commit_control(&mut self, header: &RawHeader) {
        self.return_first(1, |_| *header, 0);
    }

    /// Takes buffers for at most `bytes` of payload in at most `packets` packets, neither
    /// of them zero.
    pub(crate) fn reserve(&mut self, bytes: usize, packets: usize) -> Room {
        let mut room = 0;
        while room < bytes && self.taken.len() < packets && self.take(bytes - room) {
            room += self.taken.last().map_or(0, |(_, buffer)| buffer.capacity());
        }
        match (self.taken.len(), room) {
            (0, _) => Room::None,
            (_, 0) => Room::Header,
            _ => Room::Payload(room),
        }
    }

    /// The pieces of the room reserved.
    pub(crate) fn room(&self) -> &[Piece<'m>] {
        &self.pieces
    }

    /// Returns as many of the reserved buffers as `len` bytes of payload fill, each with
    /// the header that `header` makes for its share, and puts the others back.
    pub(crate) fn commit(&mut self, len: usize, mut header: impl FnMut(usize) -> RawHeader) {
        let mut filled = 0;
        let mut left = len;
        for (_, buffer) in &self.taken {
            if left == 0 {
                break;
            }
            left -= buffer.capacity().min(left);
            filled += 1;
        }
        self.return_first(filled, &mut header, len);
    }

    /// Puts all reserved buffers back.
    pub(crate) fn put_back(&mut self) {
        self.commit(0, |_| unreachable!("no byte, no packet"));
    }

    fn return_first(
        &mut self,
        filled: usize,
        mut header: impl FnMut(usize) -> RawHeader,
        mut len: usize,
    ) {
        let unused = self.taken.len() - filled;
        for (head, buffer) in self.taken.drain(..filled) {
            let share = buffer.capacity().min(len);
            len -= share;
            buffer.write_header(&header(share));
            give_back(&mut self.ring, head, HEADER_LEN + share);
        }
        self.taken.clear();
        self.pieces.clear();
        // Not more than the ring is long.
        self.ring.put_back(unused as u16);
    }

    /// Takes the next buffer with room for a header and, if any is `wanted`, payload. One
    /// without room for payload is taken only when it is the first, and is not enough.
    fn take(&mut self, wanted: usize) -> bool {
        loop {
            let Some(chain) = self.next_chain() else {
                return false;
            };
            let head = chain.head_index();
            let pieces = self.pieces.len();
            match write_buffer(self.mem, chain, wanted, &mut self.pieces) {
                Ok(buffer) if wanted == 0 || buffer.capacity() > 0 || self.taken.is_empty() => {
                    let useful = wanted == 0 || buffer.capacity() > 0;
                    self.taken.push((head, buffer));
                    return useful;
                }
                Err(_) if self.taken.is_empty() => {
                    self.pieces.truncate(pieces);
                    debug!(head, "an RX buffer too small for a packet");
                    give_back(&mut self.ring, head, 0);
                }
                // Buffers are put back from the end only: look at this one again, first.
                _ => {
                    self.pieces.truncate(pieces);
                    self.ring.put_back(1);
                    return false;
                }
            }
        }
    }

    /// The next buffer. When they have run out, a kick tells of new ones.
    fn next_chain(&mut self) -> Option<DescriptorChain<&'m Memory>> {
        let chain = self.ring.next_chain();
        if chain.is_some() || self.ring.is_exhausted() || !self.ring.enable_kicks() {
            return chain;
        }
        self.ring.next_chain()
    }
}

/// Returns a buffer. One that the ring does not take is lost to the guest that broke it.
fn give_back(ring: &mut RingPass<'_, '_>, head: u16, len: usize) {
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    if let Err(error) = ring.add_used(head, len) {
        debug!(head, %error, "cannot return an RX buffer");
    }
}
