//! A guest's receiving side, as its VMM has it.

use vsock_packet::{Header, Op, Payload, RawHeader, RwFlags};

/// The receiving side of a guest: what a VMM implements over its RX queue.
///
/// The switch calls it from whichever thread has something for the guest, so the queue is
/// behind a lock of the port's own. No method may wait for anything else, nor call the
/// switch.
pub trait Port: Send + Sync {
    /// Whether the guest's driver is there to receive.
    fn is_up(&self) -> bool;

    /// One pass over the RX queue: `fill` is called once with the queue at hand, and then
    /// what it used is published, once. Where the driver is not there, `fill` is not called.
    fn pass(&self, fill: &mut dyn FnMut(&mut dyn Receiver));

    /// Notifies the guest of what was used since it was notified last, if it wants to be.
    /// Called after a pass, with nothing locked that the guest's next packet needs: a port
    /// may as well notify in the pass, but whom that wakes may then have to wait.
    fn notify(&self) {}

    /// Has the port's owner look at [`Member::next_timeout`](crate::Member::next_timeout)
    /// again: another guest's packet has brought it forward.
    fn wake(&self);
}

/// An RX queue at hand.
pub trait Receiver {
    /// Puts a packet with payload, or as much of it as fits, into the guest's next RX buffer:
    /// [`Packet::header_for`] the buffer's room, then the payload. `false` when there is
    /// no buffer; the port then calls [`Member::flush`](crate::Member::flush) when the
    /// guest has posted one.
    ///
    /// A buffer with room for the header only takes [`Packet::credit_update`] while there
    /// is payload.
    fn put(&mut self, packet: &mut Packet<'_>) -> bool;

    /// Puts a packet without payload into the guest's next RX buffer, as it is. `false`
    /// when there is no buffer.
    fn put_control(&mut self, header: &RawHeader) -> bool;
}

/// A packet on its way to a guest.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Its header. The `len` in it is that of the whole packet as it was sent.
    pub header: Header,
    /// The payload that no buffer has taken yet.
    pub payload: Payload<'a>,
}

impl<'a> Packet<'a> {
    /// A packet with all its payload to come.
    pub fn new(header: Header, payload: Payload<'a>) -> Self {
        Self { header, payload }
    }

    /// The header for a buffer with `room` bytes for payload: `len` is what fits, and the
    /// end of a message or record is marked on its last piece only (§5.10.6.6.1).
    pub fn header_for(&self, room: usize) -> RawHeader {
        let len = self.payload.len().min(room);
        let mut header = self.header;
        if header.op == Op::Rw {
            header.len = u32::try_from(len).unwrap_or(u32::MAX);
            if len < self.payload.len() {
                header.flags &= !RwFlags::all().bits();
            }
        }
        header.to_raw()
    }

    /// A packet of the same connection that has no payload and changes nothing.
    pub fn credit_update(&self) -> RawHeader {
        Header {
            op: Op::CreditUpdate,
            len: 0,
            flags: 0,
            ..self.header
        }
        .to_raw()
    }
}

#[cfg(test)]
mod tests {
    use vsock_packet::{Cid, SocketType, VsockAddr};

    use super::*;

    #[test]
    fn marks_the_end_of_a_message_on_its_last_piece_only() {
        let (one, other) = (
            VsockAddr::new(Cid::new(3), 1),
            VsockAddr::new(Cid::new(4), 2),
        );
        let header = Header {
            len: 5,
            flags: RwFlags::all().bits(),
            socket_type: SocketType::Seqpacket,
            ..Header::new(Op::Rw, one, other)
        };
        let mut packet = Packet::new(header, Payload::from_bytes(b"hello"));
        let first = packet.header_for(3);
        assert_eq!((first.len(), first.flags()), (3, 0));
        packet.payload.copy_to_bytes(&mut [0; 3]);
        let last = packet.header_for(3);
        assert_eq!((last.len(), last.flags()), (2, RwFlags::all().bits()));
    }
}
