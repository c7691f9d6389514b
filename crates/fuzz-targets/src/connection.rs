//! One connection between a guest and its host, with a model of both ends' credit.

use std::num::Wrapping;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use vsock_connection::{Cause, Connection, Received, Timeouts};
use vsock_packet::{Cid, Header, Op, ShutdownFlags, VsockAddr};

use crate::packets::{AnyOp, Bytes};
use crate::steps::Steps;

#[derive(Arbitrary, Debug)]
struct Start {
    requested: bool,
    buf_alloc: Bytes,
    guest_alloc: Bytes,
    guest_fwd_cnt: u32,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Receive(Packet),
    /// The application takes so much of what came.
    Forward(Bytes),
    /// The caller puts payload into the RX ring.
    Send(Bytes),
    Poll,
    EndHost(u8),
    Blocked,
    Unblocked,
    CreditUpdate,
    PassTime(u16),
    /// Time goes by up to the deadline.
    Expire,
    Finish,
    Reset,
    Abandon,
}

#[derive(Arbitrary, Debug)]
struct Packet {
    op: AnyOp,
    len: Bytes,
    flags: u8,
    buf_alloc: Bytes,
    forwarded: Forwarded,
}

/// What a guest says it has read.
#[derive(Arbitrary, Debug)]
enum Forwarded {
    /// All it got.
    All,
    /// All but so much.
    But(u16),
    Any(u32),
}

/// A connection, and what is known of it from outside.
struct Scenario {
    connection: Connection,
    now: Instant,
    buf_alloc: u32,
    established: bool,
    /// What went out so far: nothing, or the packet that begins the connection.
    begun: bool,
    begins_with: Op,
    /// Payload that came, that the application took, and what the guest was told of that.
    rx_cnt: Wrapping<u32>,
    fwd_cnt: Wrapping<u32>,
    told_fwd_cnt: Wrapping<u32>,
    tx_cnt: Wrapping<u32>,
    guest_alloc: u32,
    guest_fwd_cnt: Wrapping<u32>,
    closed: Option<Cause>,
    /// The guest has said RST: it gets nothing any more.
    silent: bool,
    reset_sent: bool,
}

/// Runs an input.
pub(crate) fn run(data: &[u8]) {
    let mut steps = Steps::new(data);
    let Some(start) = steps.next::<Start>() else {
        return;
    };
    let mut scenario = Scenario::new(&start);
    while let Some(step) = steps.next::<Step>() {
        scenario.take(&step);
        scenario.check();
    }
    scenario.poll();
}

fn guest() -> VsockAddr {
    VsockAddr::new(Cid::new(3), 1000)
}

fn host() -> VsockAddr {
    VsockAddr::new(Cid::HOST, 80)
}

impl Scenario {
    fn new(start: &Start) -> Self {
        let now = Instant::now();
        let buf_alloc = start.buf_alloc.value();
        let request = Header {
            buf_alloc: start.guest_alloc.value(),
            fwd_cnt: start.guest_fwd_cnt,
            ..Header::new(Op::Request, guest(), host())
        };
        let timeouts = Timeouts::default();
        let (connection, guest_alloc, guest_fwd_cnt) = if start.requested {
            let connection = Connection::requested(host(), guest(), buf_alloc, timeouts, now);
            (connection, 0, 0)
        } else {
            let connection = Connection::accepted(&request, buf_alloc, timeouts);
            (connection, request.buf_alloc, request.fwd_cnt)
        };
        Self {
            connection,
            now,
            buf_alloc,
            established: !start.requested,
            begun: false,
            begins_with: match start.requested {
                true => Op::Request,
                false => Op::Response,
            },
            rx_cnt: Wrapping(0),
            fwd_cnt: Wrapping(0),
            told_fwd_cnt: Wrapping(0),
            tx_cnt: Wrapping(0),
            guest_alloc,
            guest_fwd_cnt: Wrapping(guest_fwd_cnt),
            closed: None,
            silent: false,
            reset_sent: false,
        }
    }

    fn take(&mut self, step: &Step) {
        let now = self.now;
        match step {
            Step::Receive(packet) => self.receive(packet),
            Step::Forward(count) => {
                let count = count.value().min((self.rx_cnt - self.fwd_cnt).0);
                self.connection.forwarded(count as usize);
                self.fwd_cnt += count;
            }
            Step::Send(count) => self.send(count.value()),
            Step::Poll => self.poll(),
            Step::EndHost(flags) => {
                let before = self.connection.host_ended();
                let flags = ShutdownFlags::from_bits_truncate((flags & 3).into());
                self.connection.end_host(flags, now);
                assert!(self.connection.host_ended().contains(before));
            }
            Step::Blocked => self.block(),
            Step::Unblocked => self.connection.unblocked(),
            Step::CreditUpdate if self.established && self.closed.is_none() && self.begun => {
                let header = self.connection.credit_update();
                assert_eq!(header.op, Op::CreditUpdate);
                self.note_told(&header);
            }
            Step::CreditUpdate => (),
            Step::PassTime(millis) => {
                self.now += Duration::from_millis((*millis).into());
                self.expire();
            }
            Step::Expire => {
                if let Some(deadline) = self.connection.deadline() {
                    self.now = self.now.max(deadline);
                    self.expire();
                }
            }
            Step::Finish => self.connection.finish(),
            Step::Reset => self.connection.reset(Cause::HostError),
            Step::Abandon => {
                self.connection.abandon();
                self.silent = true;
            }
        }
    }

    fn receive(&mut self, packet: &Packet) {
        let fwd_cnt = match packet.forwarded {
            Forwarded::All => self.tx_cnt.0,
            Forwarded::But(rest) => (self.tx_cnt - Wrapping(rest.into())).0,
            Forwarded::Any(count) => count,
        };
        let header = Header {
            len: packet.len.value(),
            flags: packet.flags.into(),
            buf_alloc: packet.buf_alloc.value(),
            fwd_cnt,
            ..Header::new(packet.op.into(), guest(), host())
        };
        let expected = self.expected(&header);
        if self.closed.is_none() && header.op != Op::Rst {
            self.guest_alloc = header.buf_alloc;
            self.guest_fwd_cnt = Wrapping(header.fwd_cnt);
        }
        self.silent |= header.op == Op::Rst;
        let received = self.connection.receive(&header, self.now);
        match (received, expected) {
            (Received::Closed(Cause::CreditViolation(_)), Expected::CreditViolation) => (),
            (Received::Payload, Expected::Is(Received::Payload)) => self.rx_cnt += header.len,
            (Received::Accepted, Expected::Is(Received::Accepted)) => self.established = true,
            (received, Expected::Is(expected)) => assert_eq!(received, expected, "{header}"),
            (received, _) => panic!("{received:?} for {header}"),
        }
    }

    /// What the specification says of a packet.
    fn expected(&self, header: &Header) -> Expected {
        let credit = self
            .buf_alloc
            .saturating_sub((self.rx_cnt - self.told_fwd_cnt).0);
        let sends = !self.connection.guest_ended().contains(ShutdownFlags::SEND);
        let unexpected = Received::Closed(Cause::UnexpectedPacket(header.op));
        Expected::Is(match header.op {
            _ if self.closed.is_some() => Received::Nothing,
            Op::Rst => Received::Closed(Cause::GuestReset),
            Op::Response if !self.established => Received::Accepted,
            _ if !self.established => unexpected,
            Op::Rw if !sends => unexpected,
            Op::Rw if header.len > credit => return Expected::CreditViolation,
            Op::Rw => Received::Payload,
            Op::Shutdown => Received::Shutdown,
            Op::CreditUpdate | Op::CreditRequest => Received::Nothing,
            Op::Request | Op::Response => unexpected,
        })
    }

    /// Takes all control packets there are.
    fn poll(&mut self) {
        let mut seen = Vec::new();
        while let Some(header) = self.connection.poll_control(self.now) {
            assert!(!seen.contains(&header.op), "{header} twice");
            assert!(seen.len() < 6);
            seen.push(header.op);
            assert!(!self.silent, "{header} to a guest that has said RST");
            assert!(!self.reset_sent, "{header} behind an RST");
            assert_eq!((header.src, header.dst, header.len), (host(), guest(), 0));
            if header.op == Op::Rst {
                assert!(self.connection.closed().is_some());
                self.reset_sent = true;
            } else {
                assert_eq!(header.op == self.begins_with, !self.begun, "{header}");
                self.begun = true;
            }
            self.note_told(&header);
        }
        assert!(!self.connection.has_control());
    }

    fn note_told(&mut self, header: &Header) {
        assert_eq!(header.buf_alloc, self.buf_alloc, "{header}");
        assert_eq!(header.fwd_cnt, self.fwd_cnt.0, "{header}");
        self.told_fwd_cnt = self.fwd_cnt;
    }

    fn may_send(&self) -> bool {
        self.established
            && self.closed.is_none()
            && !(self.connection.guest_ended()).contains(ShutdownFlags::RECEIVE)
            && !self.connection.host_ended().contains(ShutdownFlags::SEND)
    }

    fn send(&mut self, count: u32) {
        // Control packets go first.
        self.poll();
        let (bytes, packets) = self.connection.sendable();
        let len = bytes.min(count as usize);
        if packets == 0 || len == 0 {
            return;
        }
        assert!(self.may_send());
        let header = self.connection.data_header(len);
        assert_eq!((header.op, header.len as usize), (Op::Rw, len));
        self.tx_cnt += header.len;
        self.note_told(&header);
    }

    fn block(&mut self) {
        self.connection.blocked();
        let waits = self.connection.has_control() || self.connection.deadline().is_some();
        assert!(waits || !self.may_send(), "it waits for nothing");
    }

    fn expire(&mut self) {
        self.connection.handle_timeout(self.now);
        let deadline = self.connection.deadline();
        assert!(deadline.is_none_or(|at| at > self.now), "it would spin");
    }

    /// What holds at any time.
    fn check(&mut self) {
        let closed = self.connection.closed();
        if self.closed.is_some() {
            assert_eq!(closed, self.closed, "closed is for good");
        }
        self.closed = closed;
        let free = match self.may_send() {
            true => (self.guest_alloc).saturating_sub((self.tx_cnt - self.guest_fwd_cnt).0),
            false => 0,
        };
        let (bytes, packets) = self.connection.sendable();
        assert!(bytes == free as usize || (bytes, packets) == (0, 0));
        assert!(packets <= 4096);
        if closed.is_some() {
            assert_eq!(self.connection.deadline(), None);
        }
    }
}

enum Expected {
    Is(Received),
    CreditViolation,
}
