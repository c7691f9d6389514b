//! What one end of a flow lets the other send (§5.10.6.3), as the switch enforces it.

use std::num::Wrapping;
use std::time::Instant;

use vsock_packet::{CreditRequests, Header, Op, SocketType, UnreadPackets};

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

/// The receiver's window, and what went into it.
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
    /// What the sender has sent in all, in bytes. On the wire this wraps: [`Self::tx_cnt`].
    sent_bytes: u64,
    /// What of it has reached the receiver's RX ring.
    delivered: Wrapping<u32>,
    unread: UnreadPackets,
    /// `None` while nobody waits.
    requests: Option<Box<CreditRequests>>,
    /// The receiver was asked for news since it last had read something.
    asked: bool,
    boundary: Boundary,
    /// Requests that went to it and that it has not answered.
    unanswered: u16,
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

    /// Takes over what the receiver says in a header.
    pub(crate) fn update(&mut self, header: &Header, now: Instant) {
        let was_full = self.is_full();
        self.buf_alloc = header.buf_alloc.min(MAX_WINDOW);
        let granted = Wrapping(header.fwd_cnt) + Wrapping(self.buf_alloc);
        // Who claims to have read what was never sent gets no more than a window for it.
        let ahead = (granted - self.tx_cnt()).0.min(MAX_WINDOW);
        if (granted - self.granted).0 < 1 << 31 {
            self.granted = self.tx_cnt() + Wrapping(ahead);
        }
        self.fwd_cnt = Wrapping(header.fwd_cnt);
        let is_answer = header.op == Op::CreditUpdate && self.unanswered > 0;
        self.unanswered -= u16::from(is_answer);
        let was_read = self.unread.forwarded(header.fwd_cnt);
        if was_read {
            // News that change nothing are no reason to ask again: two ends that both do
            // not read would keep each other busy.
            self.asked = false;
        }
        if header.op == Op::CreditUpdate && !was_read && !is_answer {
            // Linux tells of every message that is read, also of an empty one.
            self.unread.read_empty(header.fwd_cnt);
        }
        if self.is_full() {
            return;
        }
        if !self.may_be_short() {
            self.requests = None;
        } else if let Some(requests) = &mut self.requests
            && (was_read || was_full)
        {
            requests.begin_later(now);
        }
    }

    /// What the sender has sent in all, as the wire has it.
    fn tx_cnt(&self) -> Wrapping<u32> {
        Wrapping(self.sent_bytes as u32)
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
        (self.tx_cnt() - self.fwd_cnt).0
    }

    /// The most that the sender sends ahead, as it reckons.
    fn reach(&self) -> u32 {
        match self.sender_buf_alloc {
            0 => self.buf_alloc,
            own => own.min(self.buf_alloc),
        }
    }

    /// Whether the sender can send nothing, or thinks so.
    fn is_full(&self) -> bool {
        let by_its_own = self.sender_buf_alloc > 0 && self.in_flight() >= self.sender_buf_alloc;
        self.credit() == 0 || self.packets() == 0 || by_its_own
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
        (self.granted - self.tx_cnt()).0
    }

    /// Packets that may be delivered.
    pub(crate) fn packets(&self) -> usize {
        self.unread.room(self.buf_alloc)
    }

    /// Counts a packet of the sender's; `false` when it exceeds the credit.
    pub(crate) fn sent(&mut self, len: u32) -> bool {
        let within = len <= self.credit();
        if within {
            self.sent_bytes += u64::from(len);
        }
        within
    }

    /// Bytes the sender has sent in all.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Bytes that went into the receiver's RX ring in all, wrapping.
    pub(crate) fn delivered_bytes(&self) -> u32 {
        self.delivered.0
    }

    /// Whether the receiver has a part of a message only, and can't read it before it has the
    /// rest.
    pub(crate) fn is_within_message(&self) -> bool {
        self.boundary == Boundary::Ahead
    }

    /// Counts a packet that went into the receiver's RX ring; of messages, whether it `ends`
    /// one. What goes beyond [`Self::packets`] is of a message that has begun.
    pub(crate) fn delivered(&mut self, len: usize, ends: bool) {
        self.delivered += u32::try_from(len).unwrap_or(u32::MAX);
        match len {
            _ if self.is_within_message() => self.unread.push_on(self.delivered.0),
            0 => self.unread.push_empty(self.delivered.0),
            _ => self.unread.push(self.delivered.0),
        }
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
    pub(crate) fn wants_news(&mut self, now: Instant) -> bool {
        if self.is_full() && self.requests.get_or_insert_default().begin() {
            return true;
        }
        if self.may_be_short() {
            let requests = self.requests.get_or_insert_default();
            if requests.is_idle() {
                requests.begin_later(now);
            }
        }
        let is_due = || self.unread.is_half_full(self.buf_alloc) || self.is_short();
        let soon = !self.asked && is_due();
        self.asked |= soon;
        soon
    }

    /// A request goes to the receiver.
    pub(crate) fn asked(&mut self, now: Instant) {
        if let Some(requests) = &mut self.requests {
            requests.sent(now);
        }
        self.unanswered = self.unanswered.saturating_add(1);
    }

    /// When [`Self::expire`] is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.requests.as_ref()?.deadline()
    }

    /// Whether by `now` the receiver is to be asked, having told nothing while somebody
    /// waited.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let is_full = self.is_full();
        let Some(requests) = &mut self.requests else {
            return false;
        };
        let asks = requests.expire(now);
        // One that tells only when asked cannot tell of empty messages at all: it gets them,
        // if slowly.
        if asks && is_full && self.unread.read_empty(self.fwd_cnt.0) {
            requests.begin_later(now);
        }
        asks
    }
}

#[cfg(test)]
mod tests {
    use vsock_packet::{Cid, Op, VsockAddr};

    use super::*;

    fn update(window: &mut Window, buf_alloc: u32, fwd_cnt: u32) {
        let end = VsockAddr::new(Cid::new(3), 1);
        let header = Header {
            buf_alloc,
            fwd_cnt,
            ..Header::new(Op::CreditUpdate, end, end)
        };
        window.update(&header, Instant::now());
    }

    #[test]
    fn lets_the_sender_send_what_was_granted_and_no_more() {
        let mut window = Window::default();
        assert!(!window.sent(1));
        update(&mut window, 100, 0);
        assert!(window.sent(60));
        assert!(!window.sent(41));
        assert!(window.sent(40));
        update(&mut window, 100, 50);
        assert!(!window.sent(51));
        assert!(window.sent(50));
    }

    #[test]
    fn what_was_granted_is_not_taken_back() {
        let mut window = Window::default();
        update(&mut window, 100, 0);
        update(&mut window, 10, 0);
        assert!(window.sent(100), "it may have been on its way");
        update(&mut window, 10, 60);
        assert!(!window.sent(1));
        update(&mut window, 10, 100);
        assert!(window.sent(10));
    }

    #[test]
    fn a_larger_window_than_is_bounded_counts_as_the_largest() {
        let mut window = Window::default();
        update(&mut window, u32::MAX, 0);
        assert!(window.sent(MAX_WINDOW));
        assert!(!window.sent(1));
    }

    #[test]
    fn a_forged_count_grants_no_more_than_the_largest_window() {
        let mut window = Window::default();
        update(&mut window, 1 << 20, 1 << 30);
        assert!(window.sent(MAX_WINDOW));
        assert!(!window.sent(1));
    }

    #[test]
    fn counts_across_the_wrap() {
        let mut window = Window::default();
        let mut fwd_cnt = 0u32;
        for _ in 0..10_000 {
            update(&mut window, 1 << 20, fwd_cnt);
            assert!(window.sent(1 << 20));
            assert!(!window.sent(1));
            fwd_cnt = fwd_cnt.wrapping_add(1 << 20);
        }
    }

    #[test]
    fn asks_for_news_when_the_sender_has_filled_a_window_of_its_own_size() {
        let mut window = Window::default();
        window.update_sender(1000);
        update(&mut window, 100_000, 0);
        assert!(window.sent(999));
        assert!(!window.wants_news(Instant::now()));
        assert!(window.sent(1));
        assert!(window.wants_news(Instant::now()));
        update(&mut window, 100_000, 500);
        assert!(!window.wants_news(Instant::now()));
    }

    #[test]
    fn does_not_ask_again_after_news_that_change_nothing() {
        let mut window = Window::default();
        update(&mut window, 8192, 0);
        for _ in 0..4 {
            window.sent(1);
            window.delivered(1, false);
        }
        assert!(window.wants_news(Instant::now()));
        update(&mut window, 8192, 0);
        assert!(!window.wants_news(Instant::now()));
        update(&mut window, 8192, 1);
        window.sent(1);
        window.delivered(1, false);
        assert!(window.wants_news(Instant::now()));
    }

    #[test]
    fn asks_for_news_when_somebody_waits_and_when_half_of_the_packets_are_unread() {
        let mut window = Window::default();
        update(&mut window, 4096, 0);
        assert!(!window.wants_news(Instant::now()));
        for expected in [false, true, false, true, false] {
            window.sent(1);
            window.delivered(1, false);
            assert_eq!(window.wants_news(Instant::now()), expected);
        }
    }
}
