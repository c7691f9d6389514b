//! The vsock device of one guest: its TX queue, its place in the switch.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{GuestMemoryMmap, VolatileSlice};
use vsock_packet::chain::read_packet;
use vsock_packet::{GuestCid, Header, Op, Payload, RawHeader};
use vsock_router::{Member, Packet, Refusal, Request, Route, Router};

/// A guest's device. The guest's RX queue is its [port](crate::rx_port::RxPort).
pub(crate) struct Device {
    pub(crate) guest: GuestCid,
    pub(crate) member: Arc<Member>,
    pub(crate) router: Arc<dyn Router>,
    pub(crate) tx: Queue,
    pub(crate) memory: GuestMemoryMmap,
}

/// Packets that have not been handed to the switch, and the pieces of their payload.
#[derive(Default)]
struct Batch<'m> {
    packets: Vec<(Header, Range<usize>)>,
    pieces: Vec<VolatileSlice<'m>>,
}

impl Device {
    /// Does all there is to do for the guest. `false` when there was nothing.
    pub(crate) fn run(&mut self, now: Instant) -> bool {
        let memory = self.memory.clone();
        let mut batch = Batch::default();
        let mut heads = Vec::new();
        while let Some(chain) = self.tx.pop_descriptor_chain(&memory) {
            heads.push(chain.head_index());
            self.take_chain(&memory, chain, &mut batch, now);
        }
        self.hand_on(&mut batch, now);
        for head in &heads {
            // A used ring outside memory is the guest's own loss.
            let _ = self.tx.add_used(&memory, *head, 0);
        }
        if self.member.next_timeout().is_some_and(|at| at <= now) {
            self.member.handle_timeouts(now);
        }
        // The guest may have posted RX buffers, or be owed an RST.
        self.member.flush(now);
        !heads.is_empty()
    }

    fn take_chain<'m>(
        &self,
        memory: &'m GuestMemoryMmap,
        chain: DescriptorChain<&'m GuestMemoryMmap>,
        batch: &mut Batch<'m>,
        now: Instant,
    ) {
        let start = batch.pieces.len();
        let raw = match read_packet(memory, chain, &mut batch.pieces) {
            Ok(raw) => raw,
            Err(error) => {
                self.hand_on(batch, now);
                if let Some(raw) = error.header() {
                    self.ruin(raw, now);
                }
                return;
            }
        };
        match Header::parse(&raw) {
            Ok(header) if header.src.cid != self.guest.cid() => self.member.refuse(&raw),
            Ok(header) if header.op == Op::Request => {
                self.hand_on(batch, now);
                if self.open(&header, now).is_err() {
                    self.member.refuse(&raw);
                }
            }
            Ok(header) => batch.packets.push((header, start..batch.pieces.len())),
            Err(_) => {
                self.hand_on(batch, now);
                self.ruin(&raw, now);
            }
        }
    }

    /// A packet cannot be read: what it carried is lost, and with it its connection.
    fn ruin(&self, raw: &RawHeader, now: Instant) {
        let ends = raw.ends();
        if !ends.is_some_and(|(src, dst)| self.member.ruin(src, dst, now)) {
            self.member.refuse(raw);
        }
    }

    /// Asks the router, once a connection.
    fn open(&self, request: &Header, now: Instant) -> Result<(), Refusal> {
        match self.router.route(&Request::new(self.guest, request)) {
            Route::Member(target) => self.member.open(request, &target, now),
            Route::Refuse(why) => Err(why),
            // This VMM has no host sockets.
            _ => Err(Refusal::NoRoute),
        }
    }

    fn hand_on(&self, batch: &mut Batch<'_>, now: Instant) {
        let packet = |(header, range): &(Header, Range<usize>)| {
            Packet::new(*header, Payload::from_pieces(&batch.pieces[range.clone()]))
        };
        let packets: Vec<_> = batch.packets.iter().map(packet).collect();
        self.member.send(&packets, now);
        batch.packets.clear();
        batch.pieces.clear();
    }
}
