//! How what a half carries gets to the receiver: control packets ahead of payload, payload in
//! its order and within the window, control packets behind it; and what there is no room for
//! waits.

use std::time::Instant;

use vsock_packet::{Header, Op, RwFlags, SocketType};

use super::{Half, LINGER, Pending, Rest, State, Violation};
use crate::outstanding::Aside;
use crate::port::{Packet, Receiver};
use crate::window::Window;

/// How a delivery ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Delivered {
    /// Nothing is left that may be delivered now.
    All,
    /// The receiver has no buffer for what is left.
    NoBuffer,
}

impl Half {
    /// Delivers what waits, and then this payload. What the receiver has no room for is
    /// kept.
    ///
    /// # Errors
    ///
    /// [`Violation::Backlog`] when more than `limit` bytes then wait because of the
    /// sender.
    pub(crate) fn deliver(
        &mut self,
        packet: &Packet<'_>,
        limit: usize,
        receiver: &mut dyn Receiver,
        now: Instant,
        out: &mut Aside<'_>,
    ) -> Result<(), Violation> {
        if self.takes(packet) {
            let clear = self.put_control(Pending::AHEAD, receiver, now, out)
                && self.put_backlog(receiver, now, out) == Put::All;
            let header = self.header(Op::Rw, packet.header.flags);
            let mut packet = Packet::new(header, packet.payload);
            let may = clear && self.window.takes_packets(out);
            if !may || put(&mut packet, &mut self.window, out, receiver) != Put::All {
                self.keep(&packet, limit)?;
            }
        }
        self.flush(receiver, now, out);
        Ok(())
    }

    /// Keeps the payload of a packet until there is room for it.
    ///
    /// # Errors
    ///
    /// [`Violation::Backlog`] when more than `limit` bytes then wait because of the
    /// sender.
    pub(crate) fn keep(&mut self, packet: &Packet<'_>, limit: usize) -> Result<(), Violation> {
        if !self.takes(packet) {
            return Ok(());
        }
        self.has_backlog = true;
        let Rest {
            backlog, charge, ..
        } = &mut *self.rest;
        let before = backlog.cost();
        backlog.push(
            packet.payload,
            packet.header.flags,
            self.window.socket_type(),
        );
        if charge.add(backlog.cost() - before, limit) {
            Ok(())
        } else {
            Err(Violation::Backlog)
        }
    }

    /// Whether a packet has something for the payload's way. An empty one has where it
    /// is a message.
    fn takes(&self, packet: &Packet<'_>) -> bool {
        let void = packet.payload.is_empty() && self.window.socket_type() == SocketType::Stream;
        let wanted = self.state == State::Open && !self.reads_no_more();
        packet.header.op == Op::Rw && wanted && !void
    }

    /// What changes when something is delivered.
    pub(crate) fn progress(&self, out: &Aside<'_>) -> (u8, u32) {
        (self.pending.bits(), out.delivered_bytes())
    }

    /// Delivers what waits, as far as the receiver has room.
    pub(crate) fn flush(
        &mut self,
        receiver: &mut dyn Receiver,
        now: Instant,
        out: &mut Aside<'_>,
    ) -> Delivered {
        if !self.put_control(Pending::AHEAD, receiver, now, out) {
            return Delivered::NoBuffer;
        }
        let put = self.put_backlog(receiver, now, out);
        if self.is_waiting() && self.window.wants_news(now, out) {
            self.pending |= Pending::CREDIT_REQUEST;
        }
        match put {
            Put::NoBuffer => return Delivered::NoBuffer,
            Put::NoWindow if self.put_control(Pending::AHEAD, receiver, now, out) => {
                return Delivered::All;
            }
            Put::All
                if self.put_control(Pending::AHEAD, receiver, now, out)
                    && self.put_control(Pending::BEHIND, receiver, now, out) =>
            {
                return Delivered::All;
            }
            _ => (),
        }
        Delivered::NoBuffer
    }

    /// Whether somebody may wait for the receiver to make room.
    pub(super) fn is_waiting(&self) -> bool {
        match self.state {
            State::Asked | State::Asking => false,
            State::Open => !self.reads_no_more(),
            State::Closing => self.has_backlog,
        }
    }

    /// Whether what waits may be delivered. The receiver can't read a message before it has
    /// all of it, so one that has begun is not held up, but comes in no small pieces.
    pub(super) fn may_go_on(&self, out: &Aside<'_>) -> bool {
        let finishes = || self.window.is_within_message() && self.rest.backlog.front_is_whole();
        self.window.takes_packets(out) || finishes()
    }

    fn put_backlog(
        &mut self,
        receiver: &mut dyn Receiver,
        now: Instant,
        out: &mut Aside<'_>,
    ) -> Put {
        if !self.has_backlog {
            return Put::All;
        }
        let before = out.delivered_bytes();
        let put = self.put_payload(receiver, out);
        if self.state == State::Closing && out.delivered_bytes() != before {
            self.rest.answer_deadline = Some(now + LINGER);
        }
        put
    }

    fn put_payload(&mut self, receiver: &mut dyn Receiver, out: &mut Aside<'_>) -> Put {
        while self.has_backlog {
            if !self.may_go_on(out) {
                return Put::NoWindow;
            }
            let mut header = self.header(Op::Rw, 0);
            let Rest {
                backlog, charge, ..
            } = &mut *self.rest;
            let Some((payload, flags)) = backlog.front() else {
                break;
            };
            header.flags = flags;
            let mut packet = Packet::new(header, payload);
            let put = put(&mut packet, &mut self.window, out, receiver);
            let rest = packet.payload.len();
            let before = backlog.cost();
            if put == Put::All || rest > 0 {
                backlog.consume_front(rest);
            }
            charge.sub(before - backlog.cost());
            self.has_backlog = !backlog.is_empty();
            if put != Put::All {
                return put;
            }
        }
        Put::All
    }

    /// Puts control packets, of those given. `false` when the receiver has no buffer.
    fn put_control<const N: usize>(
        &mut self,
        which: [(Pending, Op); N],
        receiver: &mut dyn Receiver,
        now: Instant,
        out: &mut Aside<'_>,
    ) -> bool {
        if self.pending.is_empty() {
            return true;
        }
        for (flag, op) in which {
            if !self.pending.contains(flag) {
                continue;
            }
            let flags = if op == Op::Shutdown {
                self.shut_down.by_sender().bits()
            } else {
                0
            };
            if !receiver.put_control(&self.header(op, flags).to_raw()) {
                return false;
            }
            self.pending -= flag;
            if op == Op::CreditRequest {
                self.window.asked(now, out);
            }
        }
        true
    }

    fn header(&self, op: Op, flags: u32) -> Header {
        let (src, dst) = (self.ends.from, self.ends.to);
        let socket_type = self.window.socket_type();
        Header {
            socket_type,
            flags,
            buf_alloc: self.window.sender_buf_alloc(),
            fwd_cnt: self.fwd_cnt,
            ..Header::new(op, src, dst)
        }
    }
}

/// How putting payload ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Put {
    All,
    NoBuffer,
    NoWindow,
}

/// Puts a packet's payload, in as many packets as the receiver's buffers need.
fn put(
    packet: &mut Packet<'_>,
    window: &mut Window,
    out: &mut Aside<'_>,
    receiver: &mut dyn Receiver,
) -> Put {
    let ends_message = RwFlags::from_bits_retain(packet.header.flags).contains(RwFlags::EOM);
    loop {
        let before = packet.payload.len();
        if !receiver.put(packet) {
            return Put::NoBuffer;
        }
        let is_all = packet.payload.is_empty();
        window.delivered(before - packet.payload.len(), is_all && ends_message, out);
        if is_all {
            return Put::All;
        }
        if !window.takes_packets(out) && !window.is_within_message() {
            return Put::NoWindow;
        }
    }
}
