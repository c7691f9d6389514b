//! A guest's receiving side: its RX queue, as the switch fills it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vsock_packet::chain::write_buffer;
use vsock_packet::{HEADER_LEN, RawHeader};
use vsock_router::{Packet, Port, Receiver};

/// An RX queue behind the one lock that whoever has something for the guest takes.
pub(crate) struct RxPort(Mutex<RxQueue>);

/// The queue at hand.
struct RxQueue {
    queue: Queue,
    memory: GuestMemoryMmap,
}

impl RxPort {
    /// The port of a guest with this RX queue.
    pub(crate) fn new(queue: Queue, memory: GuestMemoryMmap) -> Self {
        Self(Mutex::new(RxQueue { queue, memory }))
    }

    fn lock(&self) -> MutexGuard<'_, RxQueue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Port for RxPort {
    fn is_up(&self) -> bool {
        self.lock().queue.ready()
    }

    fn pass(&self, fill: &mut dyn FnMut(&mut dyn Receiver)) {
        let mut rx = self.lock();
        if rx.queue.ready() {
            fill(&mut *rx);
            // Here a VMM raises its interrupt, if `Queue::needs_notification` says so.
            // These guests look at their rings anyway.
        }
    }

    fn wake(&self) {
        // A VMM with an event loop signals it. This one looks at the deadlines each time.
    }
}

impl Receiver for RxQueue {
    fn put(&mut self, packet: &mut Packet<'_>) -> bool {
        let mut done = false;
        while !done && let Some(chain) = self.queue.pop_descriptor_chain(&self.memory) {
            let head = chain.head_index();
            let mut pieces = Vec::new();
            let len = packet.payload.len();
            let used = match write_buffer(&self.memory, chain, len, &mut pieces) {
                Ok(buffer) if len > 0 && buffer.capacity() == 0 => {
                    // Room for the header only: something harmless, and on to the next.
                    buffer.write_header(&packet.credit_update());
                    HEADER_LEN
                }
                Ok(buffer) => {
                    buffer.write_header(&packet.header_for(buffer.capacity()));
                    for piece in &pieces {
                        packet.payload.copy_to_piece(piece);
                    }
                    done = true;
                    HEADER_LEN + buffer.capacity()
                }
                Err(_) => 0,
            };
            self.give_back(head, used);
        }
        done
    }

    fn put_control(&mut self, header: &RawHeader) -> bool {
        let mut done = false;
        while !done && let Some(chain) = self.queue.pop_descriptor_chain(&self.memory) {
            let head = chain.head_index();
            let buffer = write_buffer(&self.memory, chain, 0, &mut Vec::new());
            done = buffer.is_ok_and(|buffer| {
                buffer.write_header(header);
                true
            });
            self.give_back(head, if done { HEADER_LEN } else { 0 });
        }
        done
    }
}

impl RxQueue {
    fn give_back(&mut self, head: u16, used: usize) {
        // No buffer of a guest's is longer than a descriptor can say; and a used ring
        // outside memory is the guest's own loss.
        let used = u32::try_from(used).unwrap_or(u32::MAX);
        let _ = self.queue.add_used(&self.memory, head, used);
    }
}
