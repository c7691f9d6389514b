//! The guest's driver: what it writes into the rings.

use arbitrary::Arbitrary;
use vsock_packet::{Cid, Header, Op, SocketType, VsockAddr};

use super::frontend::{Frontend, SharedMemory};
use super::house::{CID, PORTS, WITNESS};
use crate::packets::{AnyOp, Bytes};

/// Where a ring lies in the guest's memory.
pub(super) struct Ring {
    pub(super) table: u64,
    pub(super) available: u64,
    pub(super) used: u64,
    pub(super) size: u16,
    /// Where its buffers are.
    buffers: u64,
}

/// RX and TX.
pub(super) const RINGS: [Ring; 2] = [
    Ring {
        table: 0,
        available: 0x400,
        used: 0x600,
        size: 32,
        buffers: 0x4000,
    },
    Ring {
        table: 0x1000,
        available: 0x1400,
        used: 0x1600,
        size: 32,
        buffers: 0x1_0000,
    },
];

const RX: usize = 0;
const TX: usize = 1;
/// Room for each buffer.
const BUFFER: u64 = 0x1000;

/// A packet of the guest's.
#[derive(Arbitrary, Debug)]
pub(super) struct Say {
    op: AnyOp,
    /// To the other guest, not to the host.
    to_sibling: bool,
    src_port: u8,
    port: u8,
    is_seqpacket: bool,
    flags: u8,
    len: Bytes,
    buf_alloc: Bytes,
    fwd_cnt: Bytes,
    spoofs: bool,
}

/// A chain of one descriptor that may be wrong in any way.
#[derive(Arbitrary, Debug)]
pub(super) struct Offer {
    queue: bool,
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
    head: u16,
    /// How far the available index goes.
    jump: u16,
}

/// How far each ring has come.
pub(super) struct Driver {
    next: [u16; 2],
}

impl Driver {
    pub(super) fn new() -> Self {
        Self { next: [0; 2] }
    }

    /// Empties the rings.
    pub(super) fn start(&mut self, memory: &SharedMemory) {
        self.next = [0; 2];
        for ring in &RINGS {
            memory.write(ring.available, &[0; 0x100]);
            memory.write(ring.used, &[0; 0x200]);
        }
    }

    pub(super) fn refill(&mut self, frontend: &Frontend, count: u8) {
        for _ in 0..count.min(32) {
            let slot = self.next[RX] % RINGS[RX].size;
            let address = RINGS[RX].buffers + u64::from(slot) * 0x800;
            self.describe(frontend.memory(), RX, address, 0x800, 2);
        }
        frontend.kick(RX);
    }

    pub(super) fn send(&mut self, frontend: &Frontend, say: &Say) {
        let slot = u64::from(self.next[TX] % RINGS[TX].size);
        let address = RINGS[TX].buffers + slot * BUFFER;
        let header = header(say);
        let len = match header.op {
            Op::Rw => header.len.min(BUFFER as u32 - 44),
            _ => 0,
        };
        let raw = header.to_raw();
        frontend.memory().write(address, raw.as_bytes());
        self.describe(frontend.memory(), TX, address, 44 + len, 0);
        frontend.kick(TX);
    }

    /// Makes a chain of one descriptor available.
    fn describe(&mut self, memory: &SharedMemory, queue: usize, at: u64, len: u32, flags: u16) {
        let (ring, next) = (&RINGS[queue], self.next[queue]);
        let slot = next % ring.size;
        let words = [flags, 0].map(u16::to_le_bytes).concat();
        let entry = [&at.to_le_bytes()[..], &len.to_le_bytes(), &words].concat();
        memory.write(ring.table + 16 * u64::from(slot), &entry);
        self.publish(memory, queue, slot, 1);
    }

    fn publish(&mut self, memory: &SharedMemory, queue: usize, head: u16, jump: u16) {
        let (ring, next) = (&RINGS[queue], self.next[queue]);
        let slot = u64::from(next % ring.size);
        memory.write(ring.available + 4 + 2 * slot, &head.to_le_bytes());
        self.next[queue] = next.wrapping_add(jump);
        memory.write(ring.available + 2, &self.next[queue].to_le_bytes());
    }

    pub(super) fn offer(&mut self, frontend: &Frontend, offer: &Offer) {
        let queue = usize::from(offer.queue);
        let words = [offer.flags, offer.next].map(u16::to_le_bytes).concat();
        let (address, len) = (offer.address.to_le_bytes(), offer.len.to_le_bytes());
        let entry = [&address[..], &len, &words].concat();
        let slot = u64::from(offer.head % RINGS[queue].size);
        let memory = frontend.memory();
        memory.write(RINGS[queue].table + 16 * slot, &entry);
        self.publish(memory, queue, offer.head, offer.jump);
        frontend.kick(queue);
    }
}

fn header(say: &Say) -> Header {
    let cid = match say.spoofs {
        true => WITNESS,
        false => CID,
    };
    let src = VsockAddr::new(Cid::new(cid), say.src_port.into());
    let port = PORTS[usize::from(say.port) % PORTS.len()];
    let dst = match say.to_sibling {
        true => VsockAddr::new(Cid::new(WITNESS), port),
        false => VsockAddr::new(Cid::HOST, port),
    };
    Header {
        len: say.len.value(),
        socket_type: match say.is_seqpacket {
            true => SocketType::Seqpacket,
            false => SocketType::Stream,
        },
        flags: say.flags.into(),
        buf_alloc: say.buf_alloc.value(),
        fwd_cnt: say.fwd_cnt.value(),
        ..Header::new(say.op.into(), src, dst)
    }
}
