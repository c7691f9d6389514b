//! One connection between the guest and the host.
//!
//! ```text
//!   requested()                        accepted()
//!       │  REQUEST out                     │  RESPONSE out
//!       ▼                                  │
//!   ┌─────────┐   RESPONSE in   ┌──────────▼──┐  both halves ended, or reset  ┌────────┐
//!   │Requested├────────────────▶│ Established ├──────────────────────────────▶│ Closed │
//!   └────┬────┘                 └─────────────┘                               └────────┘
//!        └───────────── RST in, time-out, anything else ──────────────────────────▲
//! ```
//!
//! While Established each half ends on its own, and for good: the guest's by SHUTDOWN in,
//! the host's by [`Connection::end_host`] and SHUTDOWN out. When the guest has ended both
//! and the host's application has got everything, [`Connection::finish`] answers with the
//! RST that completes a clean close (§5.10.6.5). When the host has ended both, the guest
//! owes that RST and a timer runs.

use std::time::{Duration, Instant};

use bitflags::bitflags;
use vsock_packet::{CreditRequests, Header, Op, ShutdownFlags, VsockAddr};

use crate::credit::{CreditViolation, GuestCredit, HostCredit};

/// How long a connection waits for the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// For the answer to a REQUEST.
    pub request: Duration,
    /// For the RST that answers a full SHUTDOWN.
    pub shutdown: Duration,
}

impl Default for Timeouts {
    /// 2 s and 8 s, as Linux has them for its own side.
    fn default() -> Self {
        Self {
            request: Duration::from_secs(2),
            shutdown: Duration::from_secs(8),
        }
    }
}

/// Why a connection is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The guest sent an RST, also when it refused a REQUEST or ended a clean close.
    GuestReset,
    /// The guest was reset, or its VM ended.
    GuestGone,
    /// Both ends are done and everything was delivered.
    Finished,
    /// The guest did not answer a REQUEST in time.
    RequestTimeout,
    /// The guest did not answer a full SHUTDOWN in time.
    ShutdownTimeout,
    /// The guest sent more than its credit.
    CreditViolation(CreditViolation),
    /// The guest sent a packet that its state does not allow.
    UnexpectedPacket(Op),
    /// The guest sent a packet that can't be read.
    MalformedPacket,
    /// The host's end failed.
    HostError,
    /// The operator ended it, or no longer allows it.
    Withdrawn,
}

/// What a packet of the guest's means for the host's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// Nothing; there may be something to send, or more credit.
    Nothing,
    /// The guest accepted the host's REQUEST.
    Accepted,
    /// The packet's payload is for the host's application.
    Payload,
    /// The guest ended one or both halves: see [`Connection::guest_ended`].
    Shutdown,
    /// The connection is closed. Payload that came before is still the application's.
    Closed(Cause),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Requested { deadline: Instant },
    Established,
    Closed(Cause),
}

bitflags! {
    /// Control packets that are to go to the guest.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Pending: u8 {
        const REQUEST = 1 << 0;
        const RESPONSE = 1 << 1;
        const CREDIT_REQUEST = 1 << 2;
        const CREDIT_UPDATE = 1 << 3;
        const SHUTDOWN = 1 << 4;
        const RST = 1 << 5;
    }
}

/// A connection between a guest and the host.
#[derive(Debug)]
pub struct Connection {
    guest: VsockAddr,
    host: VsockAddr,
    state: State,
    pending: Pending,
    guest_ended: ShutdownFlags,
    host_ended: ShutdownFlags,
    shutdown_deadline: Option<Instant>,
    guest_credit: GuestCredit,
    host_credit: HostCredit,
    credit_requests: CreditRequests,
    asked_for_packets: bool,
    timeouts: Timeouts,
}

impl Connection {
    /// A connection that the host asks the guest for. `buf_alloc` is what the guest may
    /// send ahead of the host's application, in bytes.
    pub fn requested(
        host: VsockAddr,
        guest: VsockAddr,
        buf_alloc: u32,
        timeouts: Timeouts,
        now: Instant,
    ) -> Self {
        let state = State::Requested {
            deadline: now + timeouts.request,
        };
        let credit = GuestCredit::new(0, 0);
        Self::new(
            host,
            guest,
            state,
            Pending::REQUEST,
            credit,
            buf_alloc,
            timeouts,
        )
    }

    /// A connection that the guest asked for with `request` and gets.
    pub fn accepted(request: &Header, buf_alloc: u32, timeouts: Timeouts) -> Self {
        let credit = GuestCredit::new(request.buf_alloc, request.fwd_cnt);
        let (guest, host) = (request.src, request.dst);
        let state = State::Established;
        Self::new(
            host,
            guest,
            state,
            Pending::RESPONSE,
            credit,
            buf_alloc,
            timeouts,
        )
    }

    fn new(
        host: VsockAddr,
        guest: VsockAddr,
        state: State,
        pending: Pending,
        guest_credit: GuestCredit,
        buf_alloc: u32,
        timeouts: Timeouts,
    ) -> Self {
        Self {
            guest,
            host,
            state,
            pending,
            guest_ended: ShutdownFlags::empty(),
            host_ended: ShutdownFlags::empty(),
            shutdown_deadline: None,
            guest_credit,
            host_credit: HostCredit::new(buf_alloc),
            credit_requests: CreditRequests::default(),
            asked_for_packets: false,
            timeouts,
        }
    }

    /// The guest's end.
    pub fn guest(&self) -> VsockAddr {
        self.guest
    }

    /// The host's end.
    pub fn host(&self) -> VsockAddr {
        self.host
    }

    /// Why the connection is closed; `None` while it is not.
    pub fn closed(&self) -> Option<Cause> {
        match self.state {
            State::Closed(cause) => Some(cause),
            _ => None,
        }
    }

    /// The halves the guest has ended, by what the guest will no longer do.
    pub fn guest_ended(&self) -> ShutdownFlags {
        self.guest_ended
    }

    /// The halves the host has ended, by what the host will no longer do.
    pub fn host_ended(&self) -> ShutdownFlags {
        self.host_ended
    }

    /// Takes a packet of the guest's.
    pub fn receive(&mut self, header: &Header, now: Instant) -> Received {
        if self.closed().is_some() {
            if header.op == Op::Rst {
                self.pending = Pending::empty();
            }
            return Received::Nothing;
        }
        if header.op == Op::Rst {
            return self.close(Cause::GuestReset, Pending::empty());
        }
        self.take_credit(header);
        match (self.state, header.op) {
            (State::Requested { .. }, Op::Response) => {
                self.state = State::Established;
                Received::Accepted
            }
            (State::Established, Op::Rw) => self.receive_payload(header.len),
            (State::Established, Op::Shutdown) => self.receive_shutdown(header, now),
            (State::Established, Op::CreditUpdate) => Received::Nothing,
            (State::Established, Op::CreditRequest) => {
                self.pending |= Pending::CREDIT_UPDATE;
                Received::Nothing
            }
            (_, op) => self.close(Cause::UnexpectedPacket(op), Pending::RST),
        }
    }

    fn take_credit(&mut self, header: &Header) {
        self.guest_credit.update(header.buf_alloc, header.fwd_cnt);
        self.asked_for_packets = false;
        // A guest that has made its window smaller may have to be told of less room.
        self.tell_when_due();
    }

    fn receive_payload(&mut self, len: u32) -> Received {
        if self.guest_ended.contains(ShutdownFlags::SEND) {
            return self.close(Cause::UnexpectedPacket(Op::Rw), Pending::RST);
        }
        match self.host_credit.received(len) {
            Ok(()) => Received::Payload,
            Err(violation) => self.close(Cause::CreditViolation(violation), Pending::RST),
        }
    }

    fn receive_shutdown(&mut self, header: &Header, now: Instant) -> Received {
        self.guest_ended |= header.shutdown_flags();
        self.watch_shutdown(now);
        Received::Shutdown
    }

    fn close(&mut self, cause: Cause, pending: Pending) -> Received {
        self.state = State::Closed(cause);
        self.pending = pending;
        self.shutdown_deadline = None;
        self.credit_requests.end();
        Received::Closed(cause)
    }

    /// Counts payload that left for the host's application, or that it will never get
    /// because it receives no more.
    pub fn forwarded(&mut self, len: usize) {
        self.host_credit.forwarded(wire_len(len));
        self.tell_when_due();
    }

    fn tell_when_due(&mut self) {
        let guest_sends = !self.guest_ended.contains(ShutdownFlags::SEND);
        if self.state == State::Established
            && guest_sends
            && self
                .host_credit
                .update_is_due(self.guest_credit.buf_alloc())
        {
            self.pending |= Pending::CREDIT_UPDATE;
        }
    }

    /// The host's application ended one or both halves. What it sent before must have
    /// been put into the RX ring by then.
    pub fn end_host(&mut self, flags: ShutdownFlags, now: Instant) {
        if self.state != State::Established || self.host_ended.contains(flags) {
            return;
        }
        self.host_ended |= flags;
        self.pending |= Pending::SHUTDOWN;
        self.watch_shutdown(now);
    }

    /// Runs the timer for the guest's RST when the connection has nothing more to do but
    /// for the guest to say so.
    fn watch_shutdown(&mut self, now: Instant) {
        if self.host_ended.is_all() && self.shutdown_deadline.is_none() {
            self.shutdown_deadline = Some(now + self.timeouts.shutdown);
        }
    }

    /// Completes the guest's clean close: it ended both halves, and everything it sent was
    /// delivered.
    pub fn finish(&mut self) {
        if self.state == State::Established {
            self.close(Cause::Finished, Pending::RST);
        }
    }

    /// Closes the connection at once; the guest gets an RST.
    pub fn reset(&mut self, cause: Cause) {
        if self.closed().is_none() {
            self.close(cause, Pending::RST);
        }
    }

    /// Closes the connection because the guest is gone: nothing is to be sent any more.
    pub fn abandon(&mut self) {
        if self.closed().is_none() {
            self.close(Cause::GuestGone, Pending::empty());
        }
        self.pending = Pending::empty();
    }

    /// Whether a control packet is to go to the guest.
    pub fn has_control(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The next control packet for the guest, with fresh credit in it. The caller puts it
    /// into the RX ring; it does not come again.
    pub fn poll_control(&mut self, now: Instant) -> Option<Header> {
        const ORDER: [(Pending, Op); 6] = [
            (Pending::RST, Op::Rst),
            (Pending::REQUEST, Op::Request),
            (Pending::RESPONSE, Op::Response),
            (Pending::CREDIT_REQUEST, Op::CreditRequest),
            (Pending::CREDIT_UPDATE, Op::CreditUpdate),
            (Pending::SHUTDOWN, Op::Shutdown),
        ];
        let (pending, op) = ORDER
            .into_iter()
            .find(|(flag, _)| self.pending.contains(*flag))?;
        self.pending -= pending;
        let mut header = self.header(op);
        match op {
            Op::Shutdown => header.flags = self.host_ended.bits(),
            Op::CreditRequest => self.credit_requests.sent(now),
            _ => (),
        }
        Some(header)
    }

    /// A CREDIT_UPDATE, which is valid at any time once the connection is established.
    pub fn credit_update(&mut self) -> Header {
        self.header(Op::CreditUpdate)
    }

    fn header(&mut self, op: Op) -> Header {
        let (buf_alloc, fwd_cnt) = self.host_credit.tell();
        self.pending -= Pending::CREDIT_UPDATE;
        Header {
            buf_alloc,
            fwd_cnt,
            ..Header::new(op, self.host, self.guest)
        }
    }

    /// Payload that may go to the guest now: at most so many bytes, in at most so many
    /// packets. Control packets go first.
    pub fn sendable(&self) -> (usize, usize) {
        match self.guest_credit.packets() {
            packets if packets > 0 && self.may_send() => {
                (self.guest_credit.bytes() as usize, packets)
            }
            _ => (0, 0),
        }
    }

    /// Whether payload may go to the guest at all, given credit.
    fn may_send(&self) -> bool {
        self.state == State::Established
            && !self.guest_ended.contains(ShutdownFlags::RECEIVE)
            && !self.host_ended.contains(ShutdownFlags::SEND)
    }

    /// The header of an RW packet with `len` bytes of payload, which the caller puts into
    /// the RX ring. Counted as sent; `len` must be within [`Self::sendable`].
    pub fn data_header(&mut self, len: usize) -> Header {
        let len = wire_len(len);
        self.guest_credit.sent(len);
        self.credit_requests.end();
        if self.guest_credit.news_are_due() && !self.asked_for_packets {
            self.asked_for_packets = true;
            self.pending |= Pending::CREDIT_REQUEST;
        }
        Header {
            len,
            ..self.header(Op::Rw)
        }
    }

    /// The caller has payload for the guest and no credit: asks for some, once, and
    /// again by the timer. More credit that is still too little asks no more, so two
    /// blocked ends do not keep each other busy.
    pub fn blocked(&mut self) {
        if self.may_send() && self.credit_requests.begin() {
            self.pending |= Pending::CREDIT_REQUEST;
        }
    }

    /// The caller has no payload for the guest any more, so nobody waits for credit.
    pub fn unblocked(&mut self) {
        self.credit_requests.end();
        self.pending -= Pending::CREDIT_REQUEST;
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Requested { deadline } => Some(deadline),
            State::Established => [self.shutdown_deadline, self.credit_requests.deadline()]
                .into_iter()
                .flatten()
                .min(),
            State::Closed(_) => None,
        }
    }

    /// Does what is due by `now`. The connection may be closed afterwards.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.state {
            State::Requested { deadline } if deadline <= now => {
                self.close(Cause::RequestTimeout, Pending::RST);
            }
            State::Established if self.shutdown_deadline.is_some_and(|at| at <= now) => {
                self.close(Cause::ShutdownTimeout, Pending::RST);
            }
            State::Established if !self.may_send() => self.credit_requests.end(),
            State::Established if self.credit_requests.expire(now) => {
                self.pending |= Pending::CREDIT_REQUEST;
            }
            _ => (),
        }
    }
}

/// A length of payload as the wire has it: pieces of one packet never exceed 32 bits.
fn wire_len(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
