//! A guest's rings as a place where packets go and come from.

use std::collections::HashMap;
use std::fmt;

use vm_memory::GuestAddress;
use vsock_packet::{HEADER_LEN, Header, HeaderError, Op, RawHeader};

use crate::{Error, Layout, Memory, Piece, Ring};

/// The index of each queue (§5.10.2).
pub mod queue {
    /// Device to guest.
    pub const RX: usize = 0;
    /// Guest to device.
    pub const TX: usize = 1;
    /// Events of the device.
    pub const EVENT: usize = 2;
}

/// A packet from the device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// The header as it lay in the RX buffer.
    pub header: RawHeader,
    /// `len` bytes of payload.
    pub payload: Vec<u8>,
}

impl Packet {
    /// The validated header.
    ///
    /// # Errors
    ///
    /// [`HeaderError`] as [`Header::parse`] has it.
    pub fn parse(&self) -> Result<Header, HeaderError> {
        Header::parse(&self.header)
    }

    /// The operation; `None` when it is unknown.
    pub fn op(&self) -> Option<Op> {
        Op::from_wire(self.header.op())
    }
}

/// What the guest gives the device to receive into.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RxBuffers {
    /// Lengths in bytes of the pieces of one buffer, header included.
    pub pieces: Vec<usize>,
    /// Whether the pieces are listed in an indirect table.
    pub indirect: bool,
    /// Whether pieces lie across two memory regions, as long as there are boundaries.
    pub across_regions: bool,
    /// At most how many buffers the device has at a time; the ring may hold fewer.
    pub count: usize,
    /// When the buffers are replaced.
    pub refill: Refill,
}

/// When a guest replaces the RX buffers that came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refill {
    /// As Linux does: all at once, when fewer than half of the buffers remain.
    BelowHalf,
    /// Each at once.
    Always,
    /// Not at all, but for [`Guest::refill_rx`](crate::Guest::refill_rx).
    ByHand,
}

impl RxBuffers {
    /// Buffers of these pieces, each replaced at once.
    pub fn of(pieces: impl Into<Vec<usize>>) -> Self {
        Self {
            pieces: pieces.into(),
            refill: Refill::Always,
            ..Self::default()
        }
    }
}

impl Default for RxBuffers {
    /// As Linux has them: one descriptor of 3776 bytes, the ring full of them.
    fn default() -> Self {
        Self {
            pieces: vec![3776],
            indirect: false,
            across_regions: false,
            count: usize::MAX,
            refill: Refill::BelowHalf,
        }
    }
}

/// The memory a chain in flight occupies.
type Buffers = Vec<(GuestAddress, usize)>;

/// RX, TX and perhaps an event ring, with the buffers that are in them.
pub struct PacketRings {
    memory: Memory,
    rings: Vec<Ring>,
    rx: RxBuffers,
    /// How many buffers the RX ring held when it was filled last.
    rx_filled: usize,
    buffers: [HashMap<u16, Buffers>; 2],
}

impl PacketRings {
    /// Empty rings of `size` descriptors: two, or three with an event ring.
    ///
    /// # Panics
    ///
    /// When guest memory is too small, or `size` is not a power of two.
    pub fn new(memory: &Memory, queues: usize, size: u16, event_idx: bool, rx: RxBuffers) -> Self {
        let rings = (0..queues)
            .map(|_| Ring::new(memory, size, event_idx))
            .collect();
        let buffers = [HashMap::new(), HashMap::new()];
        Self {
            memory: memory.clone(),
            rings,
            rx,
            rx_filled: 0,
            buffers,
        }
    }

    /// One of the rings: see [`queue`].
    pub fn ring(&self, queue: usize) -> &Ring {
        &self.rings[queue]
    }

    /// The same, to break rules with.
    pub fn ring_mut(&mut self, queue: usize) -> &mut Ring {
        &mut self.rings[queue]
    }

    /// All rings, in the order of their queues.
    pub fn rings(&self) -> &[Ring] {
        &self.rings
    }

    /// What RX buffers are like from the next refill on.
    pub fn set_rx_buffers(&mut self, rx: RxBuffers) {
        self.rx = rx;
    }

    /// Empties all rings, as a driver does that starts afresh.
    pub fn reset(&mut self) {
        for (queue, ring) in self.rings.iter_mut().enumerate() {
            ring.reset();
            for (_, buffers) in self
                .buffers
                .get_mut(queue)
                .into_iter()
                .flat_map(HashMap::drain)
            {
                buffers
                    .iter()
                    .for_each(|&(address, len)| self.memory.free(address, len));
            }
        }
        self.rx_filled = 0;
    }

    /// Puts a packet into the TX ring; `false` when the ring has no room for it now.
    pub fn send(&mut self, header: &RawHeader, payload: &[u8], layout: &Layout) -> bool {
        let packet = [header.as_bytes(), payload].concat();
        let lengths = layout.cut(packet.len());
        let needed = if layout.is_indirect() {
            1
        } else {
            lengths.len()
        };
        if self.rings[queue::TX].free_descriptors() < needed {
            return false;
        }
        let buffers = self.allocate(&lengths, layout.is_across_regions());
        let mut written = 0;
        for &(address, len) in &buffers {
            self.memory.write(address, &packet[written..written + len]);
            written += len;
        }
        self.add(queue::TX, buffers, layout.is_indirect())
    }

    /// Takes back the TX chains the device returned; tells how many.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] for a chain the device did not have.
    pub fn reclaim_tx(&mut self) -> Result<usize, Error> {
        let mut count = 0;
        while let Some(used) = self.rings[queue::TX].pop_used()? {
            self.release(queue::TX, used.head);
            count += 1;
        }
        Ok(count)
    }

    /// Fills the RX ring when [`RxBuffers::refill`] says so.
    pub fn refill_rx_when_due(&mut self) {
        let in_flight = self.rings[queue::RX].in_flight();
        let due = match self.rx.refill {
            Refill::BelowHalf => in_flight == 0 || in_flight < self.rx_filled / 2,
            Refill::Always => true,
            Refill::ByHand => false,
        };
        if due {
            self.refill_rx(usize::MAX);
        }
    }

    /// Adds up to `count` RX buffers.
    pub fn refill_rx(&mut self, count: usize) {
        let room = self
            .rx
            .count
            .saturating_sub(self.rings[queue::RX].in_flight());
        let needed = if self.rx.indirect {
            1
        } else {
            self.rx.pieces.len()
        };
        for _ in 0..count.min(room) {
            if self.rings[queue::RX].free_descriptors() < needed {
                break;
            }
            let buffers = self.allocate(&self.rx.pieces, self.rx.across_regions);
            self.add(queue::RX, buffers, self.rx.indirect);
        }
        self.rx_filled = self.rings[queue::RX].in_flight();
    }

    /// The next packet from the device. Its RX buffer is free again.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] for a chain the device did not have, or a used length that is
    /// less than the packet's or more than the buffer's: such a packet a driver drops.
    pub fn receive(&mut self) -> Result<Option<Packet>, Error> {
        let Some(used) = self.rings[queue::RX].pop_used()? else {
            return Ok(None);
        };
        let buffers = self.buffers[queue::RX]
            .remove(&used.head)
            .unwrap_or_default();
        let mut bytes = Vec::new();
        for &(address, len) in &buffers {
            bytes.extend(self.memory.read(address, len));
            self.memory.free(address, len);
        }
        unpack(bytes, used.len as usize).map(Some)
    }

    fn allocate(&self, lengths: &[usize], across_regions: bool) -> Buffers {
        let place = |&len: &usize| {
            let across = (across_regions && len > 1).then(|| self.memory.alloc_across(len));
            (
                across.flatten().unwrap_or_else(|| self.memory.alloc(len)),
                len,
            )
        };
        lengths.iter().map(place).collect()
    }

    fn add(&mut self, queue: usize, buffers: Buffers, indirect: bool) -> bool {
        let writable = queue == queue::RX;
        let piece = |&(address, len): &(GuestAddress, usize)| Piece {
            address,
            len: u32::try_from(len).unwrap_or(u32::MAX),
            writable,
        };
        let pieces: Vec<Piece> = buffers.iter().map(piece).collect();
        let head = self.rings[queue].add(&pieces, indirect);
        if let Some(head) = head {
            self.buffers[queue].insert(head, buffers);
        }
        head.is_some()
    }

    fn release(&mut self, queue: usize, head: u16) {
        for (address, len) in self.buffers[queue].remove(&head).unwrap_or_default() {
            self.memory.free(address, len);
        }
    }
}

impl fmt::Debug for PacketRings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PacketRings").field(&self.rings).finish()
    }
}

fn unpack(mut bytes: Vec<u8>, used: usize) -> Result<Packet, Error> {
    if used > bytes.len() {
        let buffer = bytes.len();
        return Err(Error::Device(format!(
            "it used {used} bytes of an RX buffer of {buffer}"
        )));
    }
    let Some((header, _)) = bytes[..used].split_first_chunk::<HEADER_LEN>() else {
        return Err(Error::Device(format!(
            "it used an RX buffer with {used} bytes, no header"
        )));
    };
    let header = RawHeader::from_bytes(*header);
    let end = HEADER_LEN + header.len() as usize;
    if end > used {
        return Err(Error::Device(format!(
            "it used {used} bytes for a packet of {end}"
        )));
    }
    bytes.truncate(end);
    bytes.drain(..HEADER_LEN);
    Ok(Packet {
        header,
        payload: bytes,
    })
}
