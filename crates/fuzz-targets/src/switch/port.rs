//! A guest's RX queue.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use vsock_packet::{Cid, Header, Op, RawHeader};
use vsock_router::{Packet, Port, Receiver};

/// An RX queue: so many buffers of one size, and what was put into them.
pub(crate) struct Queue {
    up: AtomicBool,
    buffers: Mutex<Buffers>,
}

struct Buffers {
    owner: Cid,
    left: usize,
    room: usize,
    /// What came, each with the one byte that its payload is made of.
    received: Vec<(Header, Option<u8>)>,
}

impl Queue {
    /// A queue with plenty of buffers, as large as those of Linux.
    pub(crate) fn new(owner: Cid) -> Self {
        Self {
            up: AtomicBool::new(true),
            buffers: Mutex::new(Buffers {
                owner,
                left: 128,
                room: 3732,
                received: Vec::new(),
            }),
        }
    }

    fn buffers(&self) -> MutexGuard<'_, Buffers> {
        self.buffers.lock().unwrap()
    }

    pub(crate) fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Relaxed);
    }

    pub(crate) fn is_receiving(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Posts buffers; all there are have this room from now on.
    pub(crate) fn post(&self, count: usize, room: usize) {
        let mut buffers = self.buffers();
        buffers.left = (buffers.left + count).min(1024);
        buffers.room = room;
    }

    pub(crate) fn is_exhausted(&self) -> bool {
        self.buffers().left == 0
    }

    /// What came since this was asked last.
    pub(crate) fn take(&self) -> Vec<(Header, Option<u8>)> {
        std::mem::take(&mut self.buffers().received)
    }
}

impl Port for Queue {
    fn is_up(&self) -> bool {
        self.is_receiving()
    }

    fn pass(&self, fill: &mut dyn FnMut(&mut dyn Receiver)) {
        if self.is_receiving() {
            fill(&mut *self.buffers());
        }
    }

    fn wake(&self) {}
}

impl Buffers {
    fn receive(&mut self, raw: &RawHeader, byte: Option<u8>) {
        let header = Header::parse(raw).unwrap();
        assert_eq!(header.dst.cid, self.owner, "{header}");
        // Only the refusal of what it has asked of itself comes from itself.
        let from_another = header.src.cid != self.owner && header.buf_alloc <= 4 << 20;
        assert!(from_another || header.op == Op::Rst, "{header}");
        self.received.push((header, byte));
    }
}

impl Receiver for Buffers {
    fn put(&mut self, packet: &mut Packet<'_>) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        if self.room == 0 && !packet.payload.is_empty() {
            self.receive(&packet.credit_update(), None);
            return true;
        }
        let raw = packet.header_for(self.room);
        let len = packet.payload.len().min(self.room);
        assert_eq!(raw.len() as usize, len);
        let mut bytes = vec![0; len];
        assert_eq!(packet.payload.copy_to_bytes(&mut bytes), len);
        let same = bytes.windows(2).all(|pair| pair[0] == pair[1]);
        assert!(same, "payload of two ways in one packet");
        self.receive(&raw, bytes.first().copied());
        true
    }

    fn put_control(&mut self, header: &RawHeader) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        assert_ne!(header.op(), Op::Rw as u16);
        self.receive(header, None);
        true
    }
}
