//! A guest's receiving side: its RX ring.
//!
//! [`RxPort`] is the one thing of a guest's session that other threads get hold of, through
//! the switch. Whoever has a packet for the guest locks it for one [pass](RxPort::with),
//! takes buffers, fills them and lets go; used entries are published once a pass, and the
//! guest is notified once, when nothing is locked that its answer needs. The order of locks is
//! member, port, ring; nobody holds two ports.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tracing::debug;
use vhost_user_backend::VringT;
use virtio_queue::{DescriptorChain, QueueT};
use vm_memory::GuestAddressSpace;
use vsock_packet::chain::{RxBuffer, write_buffer};
use vsock_packet::{HEADER_LEN, RawHeader};
use vsock_router::{Packet, Port, Receiver};

use crate::backend::lock;
use crate::counters::Counters;
use crate::memory::{Memory, Piece, SharedMemory};
use crate::memory_faults;
use crate::poller::Waker;
use crate::ring::RingPass;
use crate::vring::Vring;

/// Buffers of no use to a packet that one pass puts up with. Each costs whoever makes the
/// pass, perhaps a sibling, so more of them are left to the guest's own worker.
const USELESS_PER_PASS: usize = 4;

/// The receiving side of one guest.
pub(crate) struct RxPort {
    state: Mutex<State>,
    /// The guest is to be notified.
    owed: AtomicBool,
    waker: Waker,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct State {
    ring: Option<(Vring, SharedMemory)>,
    /// The guest's worker has seen the ring where it was started. Until then nobody
    /// touches it: it may be that of a new driver, which the worker is to find out.
    open: bool,
    /// Buffers ran out and the driver was asked to kick. It stays asked until it has:
    /// without EVENT_IDX it may just be about to look whether it should.
    starved: bool,
}

impl RxPort {
    /// The port of a guest whose worker is woken by `waker`.
    pub(crate) fn new(waker: Waker, counters: Arc<Counters>) -> Self {
        Self {
            state: Mutex::default(),
            owed: AtomicBool::new(false),
            waker,
            counters,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// A frontend has connected: this is the RX ring.
    pub(crate) fn attach(&self, ring: Vring, memory: SharedMemory) {
        self.lock().ring = Some((ring, memory));
    }

    /// The frontend is gone.
    pub(crate) fn detach(&self) {
        *self.lock() = State::default();
    }

    /// The ring may be used from now on; its driver may have `kicked`.
    pub(crate) fn open(&self, kicked: bool) {
        let mut state = self.lock();
        state.open = true;
        state.starved &= !kicked;
    }

    /// The ring was stopped: nobody uses it until it is [opened](Self::open) again.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        (state.open, state.starved) = (false, false);
    }

    /// Whether buffers that ran out are there again. Nobody is waited for to know it.
    pub(crate) fn is_refilled(&self) -> bool {
        let Ok(state) = self.state.try_lock() else {
            return false;
        };
        let State {
            ring: Some((ring, memory)),
            open: true,
            starved: true,
        } = &*state
        else {
            return false;
        };
        let memory = memory.memory();
        let mut ring_state = ring.get_mut();
        memory_faults::within(&memory, ring.fault(), || {
            RingPass::begin(ring_state.get_queue_mut(), &memory)
                .is_some_and(|mut pass| pass.is_ready())
        })
    }

    /// One pass over the RX ring, to be followed by [`Port::notify`]. `None` when the guest
    /// does not receive now, else what `fill` returns.
    pub(crate) fn with<R>(&self, fill: impl FnOnce(&mut RxPass<'_, '_>) -> R) -> Option<R> {
        let mut state = self.lock();
        let State {
            ring: Some((ring, memory)),
            open: true,
            starved,
        } = &mut *state
        else {
            return None;
        };
        let fault = ring.fault();
        if fault.get().is_some() {
            return None;
        }
        let mut ring = ring.get_mut();
        if !ring.is_enabled() {
            return None;
        }
        let memory = memory.memory();
        let result = memory_faults::within(&memory, fault, || {
            let begun = RingPass::begin(ring.get_queue_mut(), &memory)?;
            let mut pass = RxPass::begin(begun, &memory, *starved);
            let result = fill(&mut pass);
            *starved = pass.starved;
            if pass.useless > 0 {
                self.counters.useless_buffers.add(pass.useless);
            }
            if pass.ring.is_exhausted() {
                self.waker.wake();
            }
            if pass.end() {
                self.owed.store(true, Ordering::Relaxed);
            }
            Some(result)
        });
        if fault.get().is_some() {
            // The guest's worker is to end the session, whoever found it out.
            self.waker.wake();
        }
        result
    }
}

impl Port for RxPort {
    fn is_up(&self) -> bool {
        let state = self.lock();
        state.open
            && state.ring.as_ref().is_some_and(|(ring, _)| {
                let state = ring.get_ref();
                ring.fault().get().is_none() && state.get_queue().ready() && state.is_enabled()
            })
    }

    fn pass(&self, fill: &mut dyn FnMut(&mut dyn Receiver)) {
        self.with(|pass| fill(pass));
    }

    fn notify(&self) {
        if !self.owed.swap(false, Ordering::Relaxed) {
            return;
        }
        // Nothing is locked while the VMM's descriptor is written to.
        let ring = self.lock().ring.as_ref().map(|(ring, _)| ring.clone());
        if let Some(ring) = ring {
            ring.notify();
        }
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
        if self.put_at_once(packet) {
            return true;
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
    /// Buffers met that no packet, or no payload, fits into.
    useless: usize,
    /// See [`State::starved`].
    starved: bool,
}

impl<'q, 'm> RxPass<'q, 'm> {
    fn begin(mut ring: RingPass<'q, 'm>, mem: &'m Memory, starved: bool) -> Self {
        if !starved {
            ring.disable_kicks();
        }
        Self {
            ring,
            mem,
            taken: Vec::new(),
            pieces: Vec::new(),
            useless: 0,
            starved,
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

    /// Puts a packet into the next buffer if that is what most drivers post: one descriptor
    /// with room for payload. Any other is left for [`Self::reserve`].
    fn put_at_once(&mut self, packet: &mut Packet<'_>) -> bool {
        let Some((head, piece)) = self.ring.next_buffer() else {
            return false;
        };
        match piece.offset(HEADER_LEN) {
            Ok(room) if !room.is_empty() => {
                let header = packet.header_for(room.len());
                piece.copy_from(header.as_bytes());
                let len = packet.payload.copy_to_piece(&room);
                give_back(&mut self.ring, head, HEADER_LEN + len);
                true
            }
            _ => {
                self.ring.put_back(1);
                false
            }
        }
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
            (_, 0) => {
                self.count_useless();
                Room::Header
            }
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
            let pieces = self.pieces.len();
            let (head, buffer) = if let Some((head, piece)) = self.ring.next_buffer() {
                let buffer = RxBuffer::of_piece(&piece, wanted, &mut self.pieces);
                (head, buffer)
            } else if let Some(chain) = self.next_chain() {
                let head = chain.head_index();
                (
                    head,
                    write_buffer(self.mem, chain, wanted, &mut self.pieces),
                )
            } else {
                return false;
            };
            match buffer {
                Ok(buffer) if wanted == 0 || buffer.capacity() > 0 || self.taken.is_empty() => {
                    let useful = wanted == 0 || buffer.capacity() > 0;
                    self.taken.push((head, buffer));
                    return useful;
                }
                Err(_) if self.taken.is_empty() => {
                    self.pieces.truncate(pieces);
                    debug!(head, "an RX buffer too small for a packet");
                    give_back(&mut self.ring, head, 0);
                    self.count_useless();
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

    fn count_useless(&mut self) {
        self.useless += 1;
        if self.useless == USELESS_PER_PASS {
            self.ring.exhaust();
        }
    }

    /// The next buffer. When they have run out, a kick tells of new ones.
    fn next_chain(&mut self) -> Option<DescriptorChain<&'m Memory>> {
        let chain = self.ring.next_chain();
        if chain.is_some() || self.ring.is_exhausted() {
            return chain;
        }
        self.starved = true;
        if self.ring.enable_kicks() {
            return self.ring.next_chain();
        }
        None
    }
}

/// Returns a buffer. One that the ring does not take is lost to the guest that broke it.
fn give_back(ring: &mut RingPass<'_, '_>, head: u16, len: usize) {
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    if let Err(error) = ring.add_used(head, len) {
        debug!(head, %error, "cannot return an RX buffer");
    }
}
