//! Flow control (virtio 1.4, §5.10.6.3): what each end may still send.
//!
//! All counters count payload bytes and wrap. The credit itself saturates: a peer that
//! shrinks its `buf_alloc` below what is in flight leaves no credit, not 4 GiB of it.

use std::num::Wrapping;

use thiserror::Error;
use vsock_packet::UnreadPackets;

/// How much the guest lets the host send.
#[derive(Debug)]
pub(crate) struct GuestCredit {
    buf_alloc: u32,
    fwd_cnt: Wrapping<u32>,
    tx_cnt: Wrapping<u32>,
    unread: UnreadPackets,
}

impl GuestCredit {
    pub(crate) fn new(buf_alloc: u32, fwd_cnt: u32) -> Self {
        Self {
            buf_alloc,
            fwd_cnt: Wrapping(fwd_cnt),
            tx_cnt: Wrapping(0),
            unread: UnreadPackets::default(),
        }
    }

    pub(crate) fn buf_alloc(&self) -> u32 {
        self.buf_alloc
    }

    /// Takes over what the guest says in a header.
    pub(crate) fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.buf_alloc = buf_alloc;
        self.fwd_cnt = Wrapping(fwd_cnt);
        self.unread.forwarded(fwd_cnt);
    }

    /// Bytes that may be sent now.
    pub(crate) fn bytes(&self) -> u32 {
        self.buf_alloc
            .saturating_sub((self.tx_cnt - self.fwd_cnt).0)
    }

    /// Packets that may be sent now.
    pub(crate) fn packets(&self) -> usize {
        self.unread.room(self.buf_alloc)
    }

    /// Whether it is time to ask the guest for news.
    pub(crate) fn news_are_due(&self) -> bool {
        self.unread.is_half_full(self.buf_alloc)
    }

    /// Counts a packet that goes to the guest.
    pub(crate) fn sent(&mut self, len: u32) {
        self.tx_cnt += len;
        self.unread.push(self.tx_cnt.0);
    }
}

/// The guest sent more than it was allowed to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("{len} bytes sent into a credit of {credit}")]
pub struct CreditViolation {
    /// Payload of the packet, in bytes.
    pub len: u32,
    /// What it was allowed, in bytes.
    pub credit: u32,
}

/// How much the host lets the guest send.
#[derive(Debug)]
pub(crate) struct HostCredit {
    buf_alloc: u32,
    rx_cnt: Wrapping<u32>,
    fwd_cnt: Wrapping<u32>,
    told_fwd_cnt: Wrapping<u32>,
}

impl HostCredit {
    pub(crate) fn new(buf_alloc: u32) -> Self {
        Self {
            buf_alloc,
            rx_cnt: Wrapping(0),
            fwd_cnt: Wrapping(0),
            told_fwd_cnt: Wrapping(0),
        }
    }

    /// Counts a packet of the guest's.
    pub(crate) fn received(&mut self, len: u32) -> Result<(), CreditViolation> {
        let credit = self
            .buf_alloc
            .saturating_sub((self.rx_cnt - self.told_fwd_cnt).0);
        if len > credit {
            return Err(CreditViolation { len, credit });
        }
        self.rx_cnt += len;
        Ok(())
    }

    /// Counts bytes that left for the host application.
    pub(crate) fn forwarded(&mut self, len: u32) {
        self.fwd_cnt += len;
    }

    /// Whether the guest should be told now. The window is the smaller of both ends',
    /// since that is what Linux sends by; a quarter of it keeps a busy guest sending.
    pub(crate) fn update_is_due(&self, guest_buf_alloc: u32) -> bool {
        let untold = (self.fwd_cnt - self.told_fwd_cnt).0;
        untold > 0 && untold >= self.buf_alloc.min(guest_buf_alloc) / 4
    }

    /// `buf_alloc` and `fwd_cnt` for a header that goes to the guest now.
    pub(crate) fn tell(&mut self) -> (u32, u32) {
        self.told_fwd_cnt = self.fwd_cnt;
        (self.buf_alloc, self.fwd_cnt.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sends_no_more_than_the_guest_has_room_for() {
        let mut credit = GuestCredit::new(100, 0);
        credit.sent(60);
        assert_eq!(credit.bytes(), 40);
        credit.update(100, 60);
        assert_eq!(credit.bytes(), 100);
    }

    #[test]
    fn a_window_shrunk_below_what_is_in_flight_leaves_nothing() {
        let mut credit = GuestCredit::new(100, 0);
        credit.sent(60);
        credit.update(50, 0);
        assert_eq!(credit.bytes(), 0);
        credit.update(50, 60);
        assert_eq!(credit.bytes(), 50);
    }

    #[test]
    fn a_guest_that_claims_to_have_read_more_than_was_sent_gets_nothing() {
        let mut credit = GuestCredit::new(100, 0);
        credit.sent(10);
        credit.update(100, 11);
        assert_eq!(credit.bytes(), 0);
    }

    #[test]
    fn refuses_a_credit_violation() {
        let mut credit = HostCredit::new(100);
        assert_eq!(credit.received(100), Ok(()));
        assert_eq!(
            credit.received(1),
            Err(CreditViolation { len: 1, credit: 0 })
        );
        credit.forwarded(100);
        assert!(
            credit.received(1).is_err(),
            "the guest has not been told yet"
        );
        assert_eq!(credit.tell(), (100, 100));
        assert_eq!(credit.received(100), Ok(()));
    }

    #[test]
    fn tells_the_guest_when_a_quarter_of_the_smaller_window_is_free() {
        let mut credit = HostCredit::new(1000);
        credit.received(1000).unwrap();
        credit.forwarded(24);
        assert!(!credit.update_is_due(100));
        credit.forwarded(1);
        assert!(credit.update_is_due(100));
        assert!(!credit.update_is_due(1000));
        credit.tell();
        assert!(!credit.update_is_due(0));
    }

    proptest! {
        /// Whatever is sent and read, in whatever steps and across the wrap of the
        /// counters: nobody exceeds the window and nothing of it is lost.
        #[test]
        fn credit_is_neither_exceeded_nor_lost(
            start: u32,
            window in 1u32..1 << 20,
            steps in prop::collection::vec((0u32..5000, 0u32..5000), 1..200),
        ) {
            let mut credit = GuestCredit::new(window, start);
            credit.tx_cnt = Wrapping(start);
            let (mut sent, mut read) = (0u64, 0u64);
            for (send, receive) in steps {
                let send = send.min(credit.bytes());
                if credit.packets() > 0 && send > 0 {
                    credit.sent(send);
                    sent += u64::from(send);
                }
                read = (read + u64::from(receive)).min(sent);
                credit.update(window, start.wrapping_add(read as u32));
                prop_assert!(sent - read <= u64::from(window));
                prop_assert_eq!(u64::from(credit.bytes()), u64::from(window) - (sent - read));
            }
            credit.update(window, start.wrapping_add(sent as u32));
            prop_assert_eq!(credit.unread, UnreadPackets::default());
        }
    }
}
