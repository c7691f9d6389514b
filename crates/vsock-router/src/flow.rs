//! One direction of a connection between siblings: what goes to one of its ends.
//!
//! A connection between two guests is two [`Half`]s, each under the lock of the member it
//! leads to:
//!
//! ```text
//!            lock of A                          lock of B
//!   ┌──────────────────────────┐       ┌──────────────────────────┐
//!   │ half B→A                 │       │ half A→B                 │
//!   │  what B tells A          │       │  what A tells B          │
//!   │  what A lets B send      │       │  what B lets A send      │
//!   │  payload waiting for A   │       │  payload waiting for B   │
//!   └──────────────────────────┘       └──────────────────────────┘
//! ```
//!
//! A packet of A's first meets the half that leads to A ([`Half::note_sent`]: may A say
//! that now, and what does A let B send?), then the half that leads to B
//! ([`Half::accept`], [`Half::deliver`]). No two locks are held at once.
//!
//! ```text
//!   asking: REQUEST sent ──RESPONSE──▶ Open ◀──RESPONSE── asked: REQUEST received
//!      │                                │                        │
//!      └──────── RST, violation, deadline, an end that leaves ───┘──▶ Closing ──▶ gone
//! ```

mod delivery;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bitflags::bitflags;
use vsock_packet::{Header, Op, ShutdownFlags, VsockAddr};

pub(crate) use self::delivery::Delivered;
use crate::account::{Charge, Slot};
use crate::backlog::Backlog;
use crate::outstanding::{Aside, Outstanding};
use crate::record::{ConnectionState, Record, SiblingConnection};
use crate::shut_down::ShutDown;
use crate::window::Window;

/// How long an end may take over its answer to a REQUEST, or to a full SHUTDOWN. Guests
/// have shorter time-outs of their own; this one is for those that have none.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an end that is slow to read keeps what was sent before a close waiting.
const LINGER: Duration = Duration::from_secs(60);

/// The two ends of a half: where it leads, and where it comes from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct Ends {
    pub(crate) to: VsockAddr,
    pub(crate) from: VsockAddr,
}

impl Ends {
    /// The half that a packet travels.
    pub(crate) fn of(header: &Header) -> Self {
        Self {
            to: header.dst,
            from: header.src,
        }
    }

    /// The other half of the same connection.
    pub(crate) fn reversed(self) -> Self {
        Self {
            to: self.from,
            from: self.to,
        }
    }
}

/// How far the connection has come, as the end that this half leads to knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// This end was asked, and has not answered.
    Asked,
    /// This end has asked, and got no answer.
    Asking,
    /// The connection is established.
    Open,
    /// An RST is on its way to this end; behind it there is nothing.
    Closing,
}

bitflags! {
    /// Control packets that are to go to the end that the half leads to.
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

impl Pending {
    /// What goes out ahead of payload, in this order.
    const AHEAD: [(Self, Op); 4] = [
        (Self::REQUEST, Op::Request),
        (Self::RESPONSE, Op::Response),
        (Self::CREDIT_REQUEST, Op::CreditRequest),
        (Self::CREDIT_UPDATE, Op::CreditUpdate),
    ];
    /// What goes out behind it.
    const BEHIND: [(Self, Op); 2] = [(Self::SHUTDOWN, Op::Shutdown), (Self::RST, Op::Rst)];
}

/// Why a connection between siblings is reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Violation {
    /// A packet that the state does not allow.
    Unexpected,
    /// A packet that exceeds the receiver's credit.
    Credit,
    /// The sender has too much waiting for others already.
    Backlog,
}

/// What both halves of a connection share.
#[derive(Debug)]
pub(crate) struct Claim {
    /// The opener's place for the connection.
    pub(crate) _slot: Slot,
    pub(crate) record: Record,
}

/// One direction of a connection: what each packet needs of it. Among many connections a
/// packet's time is that of fetching its halves from memory, so the rest lies apart.
#[derive(Debug)]
pub(crate) struct Half {
    ends: Ends,
    state: State,
    shut_down: ShutDown,
    /// The sender's `fwd_cnt`, for every header that goes out.
    fwd_cnt: u32,
    pending: Pending,
    /// Whether there is payload in [`Rest::backlog`].
    has_backlog: bool,
    window: Window,
    rest: Box<Rest>,
}

/// What of a half matters only while something waits, and when it begins or ends.
#[derive(Debug)]
struct Rest {
    /// This end has asked, or shut down, and waits until then. `None` while it is open and
    /// has not shut down.
    answer_deadline: Option<Instant>,
    /// How often the count of bytes sent has wrapped.
    wraps: u32,
    backlog: Backlog,
    charge: Charge,
    claim: Arc<Claim>,
    plan: Plan,
}

/// Where a half stands in its member's lists.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Its turn among its member's halves with something to deliver.
    pub(crate) turn: Option<u64>,
    /// When its member looks at it, at the latest: no later than its deadline.
    pub(crate) scheduled: Option<Instant>,
}

impl Half {
    /// The half that carries a REQUEST to its destination.
    pub(crate) fn asked(request: &Header, charge: Charge, claim: Arc<Claim>) -> Self {
        let mut half = Self::new(Ends::of(request), request, State::Asked, charge, claim);
        half.pending = Pending::REQUEST;
        half.take_credit(request);
        half
    }

    /// The half that will carry the answer to a REQUEST.
    pub(crate) fn asking(
        request: &Header,
        charge: Charge,
        claim: Arc<Claim>,
        now: Instant,
    ) -> Self {
        let ends = Ends::of(request).reversed();
        let mut half = Self::new(ends, request, State::Asking, charge, claim);
        half.rest.answer_deadline = Some(now + ANSWER_TIMEOUT);
        let mut nothing = [Outstanding::default()];
        half.window
            .update(request, now, &mut Aside::new(&mut nothing, 0));
        half
    }

    fn new(ends: Ends, request: &Header, state: State, charge: Charge, claim: Arc<Claim>) -> Self {
        Self {
            ends,
            state,
            shut_down: ShutDown::default(),
            fwd_cnt: 0,
            pending: Pending::empty(),
            has_backlog: false,
            window: Window::new(request.socket_type),
            rest: Box::new(Rest {
                answer_deadline: None,
                wraps: 0,
                backlog: Backlog::default(),
                charge,
                claim,
                plan: Plan::default(),
            }),
        }
    }

    /// The end that this half leads to sent a packet, on the other half. Notes what it
    /// lets the other end send, which may let waiting payload go.
    ///
    /// # Errors
    ///
    /// A [`Violation`] when it may not say that now.
    pub(crate) fn note_sent(
        &mut self,
        header: &Header,
        now: Instant,
        out: &mut Aside<'_>,
    ) -> Result<(), Violation> {
        let may = match self.state {
            State::Asked => matches!(header.op, Op::Response | Op::Rst),
            State::Asking => header.op == Op::Rst,
            State::Open => !matches!(header.op, Op::Request | Op::Response),
            State::Closing => true,
        };
        if !may || header.socket_type != self.window.socket_type() {
            return Err(Violation::Unexpected);
        }
        if header.op == Op::Response && self.state == State::Asked {
            self.open();
            self.record().establish();
        }
        self.window.update(header, now, out);
        if header.op == Op::Shutdown {
            self.note_shutdown(header, now);
        }
        Ok(())
    }

    fn note_shutdown(&mut self, header: &Header, now: Instant) {
        self.shut_down.receiver_adds(header.shutdown_flags());
        if self.reads_no_more() {
            // Nobody will read it, and the RST that ends the close is not to wait behind it.
            self.drop_backlog();
        }
        let waits = self.state == State::Open && self.shut_down.by_receiver().is_all();
        if waits && self.rest.answer_deadline.is_none() {
            self.rest.answer_deadline = Some(now + ANSWER_TIMEOUT);
        }
        self.close_if_both_have(now);
    }

    /// When both ends have sent a full SHUTDOWN, each waits for an RST that the other is
    /// not going to send.
    fn close_if_both_have(&mut self, now: Instant) {
        if self.state == State::Open && self.shut_down.is_all() {
            self.close(now);
            self.pending -= Pending::SHUTDOWN;
        }
    }

    fn open(&mut self) {
        self.state = State::Open;
        self.rest.answer_deadline = None;
    }

    /// Takes over what the sender tells of its own buffer.
    fn take_credit(&mut self, header: &Header) {
        self.fwd_cnt = header.fwd_cnt;
        self.window.update_sender(header.buf_alloc);
    }

    /// Takes a packet of the sender's. The payload is to be [delivered](Self::deliver).
    ///
    /// # Errors
    ///
    /// A [`Violation`] when the sender had no right to send it.
    pub(crate) fn accept(&mut self, header: &Header, now: Instant) -> Result<(), Violation> {
        let too_early = self.state == State::Asking && !matches!(header.op, Op::Response | Op::Rst);
        if self.state == State::Closing || too_early {
            // Of a connection that is no more: the ports may be in use again.
            return Ok(());
        }
        self.take_credit(header);
        match header.op {
            Op::Response if self.state == State::Asking => {
                self.open();
                self.pending |= Pending::RESPONSE;
            }
            Op::Request | Op::Response => return Err(Violation::Unexpected),
            Op::CreditUpdate => self.pending |= Pending::CREDIT_UPDATE,
            Op::CreditRequest => self.pending |= Pending::CREDIT_REQUEST,
            Op::Shutdown => {
                self.shut_down.sender_adds(header.shutdown_flags());
                self.pending |= Pending::SHUTDOWN;
                self.close_if_both_have(now);
            }
            Op::Rst => self.close(now),
            Op::Rw if self.sends_no_more() => {
                return Err(Violation::Unexpected);
            }
            Op::Rw if !self.window.sent(header.len, &mut self.rest.wraps) => {
                return Err(Violation::Credit);
            }
            Op::Rw => (),
        }
        Ok(())
    }

    /// An RST goes to this end, behind the payload it has not got yet.
    pub(crate) fn close(&mut self, now: Instant) {
        self.state = State::Closing;
        self.rest.answer_deadline = Some(now + LINGER);
        // A REQUEST that did not go out need not be taken back, but then nothing does.
        self.pending = if self.pending.contains(Pending::REQUEST) {
            Pending::empty()
        } else {
            // Payload may wait behind a RESPONSE, and means nothing without it; and for news
            // that the receiver gives only when it is asked.
            let asks = if self.has_backlog {
                Pending::CREDIT_REQUEST
            } else {
                Pending::empty()
            };
            (self.pending & (Pending::RESPONSE | Pending::SHUTDOWN | asks)) | Pending::RST
        };
    }

    /// An RST goes to this end at once: it had no right to what it did, or will not get
    /// all that waits for it.
    pub(crate) fn reset(&mut self, now: Instant) {
        self.drop_backlog();
        self.close(now);
        self.pending &= Pending::RST;
    }

    fn drop_backlog(&mut self) {
        if self.has_backlog {
            self.rest.charge.sub(self.rest.backlog.cost());
            self.rest.backlog = Backlog::default();
            self.has_backlog = false;
        }
    }

    /// The sender is gone. What it had finished sending is still delivered.
    pub(crate) fn abandon(&mut self, now: Instant) {
        if self.sends_no_more() {
            self.close(now);
        } else {
            self.reset(now);
        }
    }

    /// Where it leads, and where it comes from.
    pub(crate) fn ends(&self) -> Ends {
        self.ends
    }

    /// The connection.
    pub(crate) fn record(&self) -> &Record {
        &self.rest.claim.record
    }

    /// Where it stands in its member's lists.
    pub(crate) fn plan(&mut self) -> &mut Plan {
        &mut self.rest.plan
    }

    /// What is known here of the connection: what was sent this way.
    pub(crate) fn snapshot(&self) -> SiblingConnection {
        let record = self.record();
        let sent_bytes = self.sent_bytes();
        let is_outward = self.ends.from == record.from();
        SiblingConnection {
            id: record.id(),
            from: record.from(),
            to: record.to(),
            socket_type: record.socket_type(),
            state: self.connection_state(),
            sent: if is_outward { sent_bytes } else { 0 },
            received: if is_outward { 0 } else { sent_bytes },
            since: record.since(),
        }
    }

    /// How far this end has come.
    fn connection_state(&self) -> ConnectionState {
        match self.state {
            State::Asked | State::Asking => ConnectionState::Requested,
            State::Open => ConnectionState::Established,
            State::Closing => ConnectionState::Closing,
        }
    }

    /// Whether the connection is over for this end.
    pub(crate) fn is_over(&self) -> bool {
        self.state == State::Closing && self.pending.is_empty() && !self.has_backlog
    }

    /// Whether the connection is ending: what this end says does not matter any more.
    pub(crate) fn is_closing(&self) -> bool {
        self.state == State::Closing
    }

    /// Whether something may be delivered.
    pub(crate) fn has_something(&self, out: &Aside<'_>) -> bool {
        let ahead = Pending::all() - Pending::SHUTDOWN - Pending::RST;
        if self.has_backlog {
            self.pending.intersects(ahead) || self.may_go_on(out)
        } else {
            !self.pending.is_empty()
        }
    }

    /// When [`Self::expire`] is due.
    pub(crate) fn deadline(&self, out: &Aside<'_>) -> Option<Instant> {
        let requests = self.window.deadline(out).filter(|_| self.is_waiting());
        self.answer_deadline().into_iter().chain(requests).min()
    }

    fn answer_deadline(&self) -> Option<Instant> {
        let waits = self.state != State::Open || self.shut_down.by_receiver().is_all();
        // Not looked at for nothing: it would have to come from memory.
        if waits {
            self.rest.answer_deadline
        } else {
            None
        }
    }

    /// Does what is due by `now`. `false` when an answer has not come in time: the
    /// connection is to be reset.
    pub(crate) fn expire(&mut self, now: Instant, out: &mut Aside<'_>) -> bool {
        if self.is_waiting() && self.window.expire(now, out) {
            self.pending |= Pending::CREDIT_REQUEST;
        }
        let in_time = self.answer_deadline().is_none_or(|deadline| deadline > now);
        if !in_time && self.state == State::Closing {
            self.drop_backlog();
            self.pending &= Pending::RST;
            self.rest.answer_deadline = None;
            return true;
        }
        in_time
    }

    fn sent_bytes(&self) -> u64 {
        self.window.sent_bytes(self.rest.wraps)
    }

    /// Whether the end that this half leads to reads nothing any more.
    fn reads_no_more(&self) -> bool {
        let shut_down = self.shut_down.by_receiver();
        shut_down.contains(ShutdownFlags::RECEIVE)
    }

    /// Whether the other end sends nothing any more.
    fn sends_no_more(&self) -> bool {
        self.shut_down.by_sender().contains(ShutdownFlags::SEND)
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        self.drop_backlog();
        self.record().count(self.ends.from, self.sent_bytes());
    }
}
