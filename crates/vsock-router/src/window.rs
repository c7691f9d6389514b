//! What one end of a flow lets the other send (§5.10.6.3), as the switch enforces it.

use std::num::Wrapping;
use std::time::Instant;

use bitflags::bitflags;
use vsock_packet::{Header, Op, SocketType};

use crate::outstanding::Aside;

/// The most a guest may let another send at once, in bytes: a larger `buf_alloc` is told
/// as this one, so that what may have to wait for a guest is bounded.
pub(crate) const MAX_WINDOW: u32 = 4 << 20;

/// Where what was delivered ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Boundary {
    /// Of a stream, anywhere.
    #[default]
    None,
    /// Between two messages.
    Reached,
    /// Within a message: the receiver can't read what it has of it.
    Ahead,
}

bitflags! {
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    struct Marks: u8 {
        /// The receiver was asked for news since it last had read something.
        const ASKED = 1 << 0;
        /// There is something in `Outstanding::unread`.
        const UNREAD = 1 << 1;
        /// There is something in `Outstanding::requests`.
        const REQUESTS = 1 << 2;
    }
}

/// The receiver's window, and what went into it: what each packet needs of it. What is
/// [`Outstanding`](crate::outstanding::Outstanding) lies elsewhere, and is not looked at for nothing.
#[derive(Debug, Default)]
pub(crate) struct Window {
    buf_alloc: u32,
    /// The sender's own `buf_alloc`. Recent kernels send no more than that ahead, even
    /// where the receiver's is larger and its threshold for news therefore further off.
    sender_buf_alloc: u32,
    /// What the receiver has forwarded in all, as it says.
    fwd_cnt: Wrapping<u32>,
    /// What the sender may have sent in all. Once granted it is not taken back: the
    /// sender's packets may be on their way when the receiver shrinks its buffer.
    granted: Wrapping<u32>,
    /// What the sender has sent in all.
    tx_cnt: Wrapping<u32>,
    /// Requests that went to the receiver and that it has not answered.
    unanswered: u16,
    boundary: Boundary,
    marks: Marks,
}

impl Window {
    /// The window of a socket of this type, before its receiver has told anything.
    pub(crate) fn new(socket_type: SocketType) -> Self {
        let boundary = match socket_type {
            SocketType::Stream => Boundary::None,
            SocketType::Seqpacket => Boundary::Reached,
        };
        Self {
            boundary,
            ..Self::default()
        }
    }

    /// The type of the socket.
    pub(crate) fn socket_type(&self) -> SocketType {
        match self.boundary {
            Boundary::None => SocketType::Stream,
            Boundary::Reached | Boundary::Ahead => SocketType::Seqpacket,
        }
    }

    /// Marks what is to be looked at of what is outstanding.
    fn mark(&mut self, out: &Aside<'_>) {
        self.marks.set(Marks::UNREAD, !out.unread.is_empty());
        self.marks.set(Marks::REQUESTS, out.requests.is_some());
    }

    fn has(&self, mark: Marks) -> bool {
        self.marks.contains(mark)
    }

    /// Takes over what the receiver says in a header.
    pub(crate) fn update(&mut self, header: &Header, now: Instant, out: &mut Aside<'_>) {
        let was_full = self.is_full(out);
        self.buf_alloc = header.buf_alloc.min(MAX_WINDOW);
        let granted = Wrapping(header.fwd_cnt) + Wrapping(self.buf_alloc);
        // Who claims to have read what was never sent gets no more than a window for it.
        let ahead = (granted - self.tx_cnt).0.min(MAX_WINDOW);
        if (granted - self.granted).0 < 1 << 31 {
            self.granted = self.tx_cnt + Wrapping(ahead);
        }
        self.fwd_cnt = Wrapping(header.fwd_cnt);
        let is_answer = header.op == Op::CreditUpdate && self.unanswered > 0;
        self.unanswered -= u16::from(is_answer);
        let was_read = self.has(Marks::UNREAD) && self.read(header, is_answer, out);
        if !self.has(Marks::REQUESTS) || self.is_full(out) {
            return;
        }
        if !self.may_be_short() {
            out.requests = None;
            self.mark(out);
        } else if let Some(requests) = &mut out.requests
            && (was_read || was_full)
        {
            requests.begin_later(now);
        }
    }

    /// Takes over what the receiver has read. `true` when that makes a difference.
    fn read(&mut self, header: &Header, is_answer: bool, out: &mut Aside<'_>) -> bool {
        let was_read = out.unread.forwarded(header.fwd_cnt);
        if was_read {
            // News that change nothing are no reason to ask again: two ends that both do
            // not read would keep each other busy.
            self.marks -= Marks::ASKED;
        }
        if header.op == Op::CreditUpdate && !was_read && !is_answer {
            // Linux tells of every message that is read, also of an empty one.
            out.unread.read_empty(header.fwd_cnt);
        }
        self.mark(out);
        was_read
    }

    /// Takes over what the sender says of its own buffer.
    pub(crate) fn update_sender(&mut self, buf_alloc: u32) {
        self.sender_buf_alloc = buf_alloc.min(MAX_WINDOW);
    }

    /// The sender's `buf_alloc`, as it may be told to the receiver.
    pub(crate) fn sender_buf_alloc(&self) -> u32 {
        self.sender_buf_alloc
    }

    /// Bytes that were sent and that the receiver has not told to have forwarded.
    fn in_flight(&self) -> u32 {
        (self.tx_cnt - self.fwd_cnt).0
    }

    /// The most that the sender sends ahead, as it reckons.
    fn reach(&self) -> u32 {
        match self.sender_buf_alloc {
            0 => self.buf_alloc,
            own => own.min(self.buf_alloc),
        }
    }

    /// Whether the sender can send nothing, or thinks so.
    fn is_full(&self, out: &Aside<'_>) -> bool {
        let by_its_own = self.sender_buf_alloc > 0 && self.in_flight() >= self.sender_buf_alloc;
        self.credit() == 0 || !self.takes_packets(out) || by_its_own
    }

    /// Whether there may be too little for the sender's next message, of which it sends
    /// nothing before there is enough for all.
    fn may_be_short(&self) -> bool {
        self.boundary != Boundary::None && self.in_flight() > 0
    }

    /// Whether it is less than half of what there could be.
    fn is_short(&self) -> bool {
        self.may_be_short() && self.in_flight() > self.reach() / 2
    }

    /// Bytes the sender may send.
    fn credit(&self) -> u32 {
        // What was sent was granted before, so the difference never wraps.
        (self.granted - self.tx_cnt).0
    }

    /// Whether one more packet may be delivered.
    pub(crate) fn takes_packets(&self, out: &Aside<'_>) -> bool {
        // However small its buffer is, one who has read everything takes one.
        !self.has(Marks::UNREAD) || out.unread.room(self.buf_alloc) > 0
    }

    /// Counts a packet of the sender's, and how often the count `wraps`; `false` when it
    /// exceeds the credit.
    pub(crate) fn sent(&mut self, len: u32, wraps: &mut u32) -> bool {
        if len > self.credit() {
            return false;
        }
        let (tx_cnt, has_wrapped) = self.tx_cnt.0.overflowing_add(len);
        self.tx_cnt = Wrapping(tx_cnt);
        if has_wrapped {
            *wraps = wraps.wrapping_add(1);
        }
        true
    }

    /// Bytes the sender has sent in all.
    pub(crate) fn sent_bytes(&self, wraps: u32) -> u64 {
        u64::from(wraps) << 32 | u64::from(self.tx_cnt.0)
    }

    /// Whether the receiver has a part of a message only, and can't read it before it has the
    /// rest.
    pub(crate) fn is_within_message(&self) -> bool {
        self.boundary == Boundary::Ahead
    }

    /// Counts a packet that went into the receiver's RX ring; of messages, whether it `ends`
    /// one. What goes beyond [what it takes](Self::takes_packets) is of a message that has
    /// begun.
    pub(crate) fn delivered(&mut self, len: usize, ends: bool, out: &mut Aside<'_>) {
        let out = &mut **out;
        out.delivered += u32::try_from(len).unwrap_or(u32::MAX);
        match len {
            _ if self.is_within_message() => out.unread.push_on(out.delivered.0),
            0 => out.unread.push_empty(out.delivered.0),
            _ => out.unread.push(out.delivered.0),
        }
        self.marks |= Marks::UNREAD;
        if self.boundary != Boundary::None {
            self.boundary = if ends {
                Boundary::Reached
            } else {
                Boundary::Ahead
            };
        }
    }

    /// Whether the receiver is to be asked for news: somebody waits for them, or will
    /// soon, and nobody else asks. Linux never does.
    pub(crate) fn wants_news(&mut self, now: Instant, out: &mut Aside<'_>) -> bool {
        if self.is_full(out) {
            self.marks |= Marks::REQUESTS;
            if out.requests.get_or_insert_default().begin() {
                return true;
            }
        }
        if self.may_be_short() {
            self.marks |= Marks::REQUESTS;
            let requests = out.requests.get_or_insert_default();
            if requests.is_idle() {
                requests.begin_later(now);
            }
        }
        let half = || self.has(Marks::UNREAD) && out.unread.is_half_full(self.buf_alloc);
        let soon = !self.has(Marks::ASKED) && (half() || self.is_short());
        self.marks.set(Marks::ASKED, self.has(Marks::ASKED) || soon);
        soon
    }

    /// A request goes to the receiver.
    pub(crate) fn asked(&mut self, now: Instant, out: &mut Aside<'_>) {
        if let Some(requests) = &mut out.requests {
            requests.sent(now);
        }
        self.unanswered = self.unanswered.saturating_add(1);
    }

    /// When [`Self::expire`] is due.
    pub(crate) fn deadline(&self, out: &Aside<'_>) -> Option<Instant> {
        if !self.has(Marks::REQUESTS) {
            return None;
        }
        out.requests.as_ref()?.deadline()
    }

    /// Whether by `now` the receiver is to be asked, having told nothing while somebody
    /// waited.
    pub(crate) fn expire(&mut self, now: Instant, out: &mut Aside<'_>) -> bool {
        let is_full = self.is_full(out);
        let all = &mut **out;
        let Some(requests) = &mut all.requests else {
            return false;
        };
        let asks = requests.expire(now);
        // One that tells only when asked cannot tell of empty messages at all: it gets them,
        // if slowly.
        if asks && is_full && all.unread.read_empty(self.fwd_cnt.0) {
            requests.begin_later(now);
        }
        self.mark(out);
        asks
    }
}

#[cfg(test)]
mod tests {
    use std::slice;

    use vsock_packet::{Cid, Op, VsockAddr};

    use super::*;
    use crate::outstanding::Outstanding;

    /// A window, and what is outstanding.
    type Both = (Window, Outstanding);

    fn aside(out: &mut Outstanding) -> Aside<'_> {
        Aside::new(slice::from_mut(out), 0)
    }

    fn sent((window, _): &mut Both, len: u32) -> bool {
        window.sent(len, &mut 0)
    }

    fn deliver((window, out): &mut Both) {
        window.delivered(1, false, &mut aside(out));
    }

    fn wants_news((window, out): &mut Both) -> bool {
        window.wants_news(Instant::now(), &mut aside(out))
    }

    fn update((window, out): &mut Both, buf_alloc: u32, fwd_cnt: u32) {
        let end = VsockAddr::new(Cid::new(3), 1);
        let header = Header {
            buf_alloc,
            fwd_cnt,
            ..Header::new(Op::CreditUpdate, end, end)
        };
        window.update(&header, Instant::now(), &mut aside(out));
    }

    #[test]
    fn lets_the_sender_send_what_was_granted_and_no_more() {
        let mut window = Both::default();
        assert!(!sent(&mut window, 1));
        update(&mut window, 100, 0);
        assert!(sent(&mut window, 60));
        assert!(!sent(&mut window, 41));
        assert!(sent(&mut window, 40));
        update(&mut window, 100, 50);
        assert!(!sent(&mut window, 51));
        assert!(sent(&mut window, 50));
    }

    #[test]
    fn what_was_granted_is_not_taken_back() {
        let mut window = Both::default();
        update(&mut window, 100, 0);
        update(&mut window, 10, 0);
        assert!(sent(&mut window, 100), "it may have been on its way");
        update(&mut window, 10, 60);
        assert!(!sent(&mut window, 1));
        update(&mut window, 10, 100);
        assert!(sent(&mut window, 10));
    }

    #[test]
    fn a_larger_window_than_is_bounded_counts_as_the_largest() {
        let mut window = Both::default();
        update(&mut window, u32::MAX, 0);
        assert!(sent(&mut window, MAX_WINDOW));
        assert!(!sent(&mut window, 1));
    }

    #[test]
    fn a_forged_count_grants_no_more_than_the_largest_window() {
        let mut window = Both::default();
        update(&mut window, 1 << 20, 1 << 30);
        assert!(sent(&mut window, MAX_WINDOW));
        assert!(!sent(&mut window, 1));
    }

    #[test]
    fn counts_across_the_wrap() {
        let mut window = Both::default();
        let mut fwd_cnt = 0u32;
        for _ in 0..10_000 {
            update(&mut window, 1 << 20, fwd_cnt);
            assert!(sent(&mut window, 1 << 20));
            assert!(!sent(&mut window, 1));
            fwd_cnt = fwd_cnt.wrapping_add(1 << 20);
        }
    }

    #[test]
    fn asks_for_news_when_the_sender_has_filled_a_window_of_its_own_size() {
        let mut window = Both::default();
        window.0.update_sender(1000);
        update(&mut window, 100_000, 0);
        assert!(sent(&mut window, 999));
        assert!(!wants_news(&mut window));
        assert!(sent(&mut window, 1));
        assert!(wants_news(&mut window));
        update(&mut window, 100_000, 500);
        assert!(!wants_news(&mut window));
    }

    #[test]
    fn does_not_ask_again_after_news_that_change_nothing() {
        let mut window = Both::default();
        update(&mut window, 8192, 0);
        for _ in 0..4 {
            sent(&mut window, 1);
            deliver(&mut window);
        }
        assert!(wants_news(&mut window));
        update(&mut window, 8192, 0);
        assert!(!wants_news(&mut window));
        update(&mut window, 8192, 1);
        sent(&mut window, 1);
        deliver(&mut window);
        assert!(wants_news(&mut window));
    }

    #[test]
    fn asks_for_news_when_somebody_waits_and_when_half_of_the_packets_are_unread() {
        let mut window = Both::default();
        update(&mut window, 4096, 0);
        assert!(!wants_news(&mut window));
        for expected in [false, true, false, true, false] {
            sent(&mut window, 1);
            deliver(&mut window);
            assert_eq!(wants_news(&mut window), expected);
        }
    }
}
