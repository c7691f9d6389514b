//! The RX queue of a simulated guest.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use vsock_packet::{Header, Op, RawHeader};
use vsock_router::{Packet, Port, Receiver};

/// A queue of buffers of one size, and what they were filled with.
#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) buffers: usize,
    pub(crate) room: usize,
    pub(crate) received: VecDeque<(Header, Vec<u8>)>,
}

#[derive(Default)]
pub(crate) struct SimPort {
    pub(crate) up: AtomicBool,
    pub(crate) woken: AtomicBool,
    queue: Mutex<Queue>,
}

impl SimPort {
    pub(crate) fn new(room: usize) -> Self {
        let port = Self::default();
        port.up.store(true, Ordering::Relaxed);
        port.with(|queue| queue.room = room);
        port
    }

    pub(crate) fn with<R>(&self, what: impl FnOnce(&mut Queue) -> R) -> R {
        // One thread: a lock that is taken is one that nobody will give back.
        let mut queue = self.queue.try_lock().expect("a port is entered once");
        what(&mut queue)
    }
}

impl Port for SimPort {
    fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    fn pass(&self, fill: &mut dyn FnMut(&mut dyn Receiver)) {
        if self.is_up() {
            self.with(|queue| fill(queue));
        }
    }

    fn wake(&self) {
        self.woken.store(true, Ordering::Relaxed);
    }
}

impl Queue {
    fn fill(&mut self, raw: &RawHeader, bytes: Vec<u8>) -> bool {
        let header = Header::parse(raw).expect("the switch sends valid headers");
        assert_eq!(header.len as usize, bytes.len(), "{header}");
        assert!(bytes.len() <= self.room, "{header} exceeds its buffer");
        self.buffers -= 1;
        self.received.push_back((header, bytes));
        true
    }
}

impl Receiver for Queue {
    fn put(&mut self, packet: &mut Packet<'_>) -> bool {
        if self.buffers == 0 {
            return false;
        }
        assert_eq!(packet.header.op, Op::Rw, "payload is in RW packets only");
        let header = packet.header_for(self.room);
        let mut bytes = vec![0; header.len() as usize];
        packet.payload.copy_to_bytes(&mut bytes);
        self.fill(&header, bytes)
    }

    fn put_control(&mut self, header: &RawHeader) -> bool {
        self.buffers > 0 && self.fill(header, Vec::new())
    }
}
