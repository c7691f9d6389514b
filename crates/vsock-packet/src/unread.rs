//! The packets that a guest holds unread.

use std::num::Wrapping;

use crate::short_queue::ShortQueue;

/// What a guest is thought to spend on one packet it has not read, in bytes.
///
/// Linux from 6.12.92 resets a stream when its unread packets, at about 576 bytes each,
/// exceed `buf_alloc`, however little they carry. Twice that leaves room for the
/// differences between kernels.
const PACKET_COST: u32 = 1024;

/// The most packets a guest may hold unread, whatever its `buf_alloc`: what is
/// remembered of each is bounded with them.
const MAX_PACKETS: u32 = 4096;

/// The RW packets of one connection that went to a guest and that its `fwd_cnt` has not
/// reached (§5.10.6.3). Bytes are bounded by credit; this bounds their number.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UnreadPackets {
    /// Where each packet ends.
    ends: ShortQueue,
}

impl UnreadPackets {
    /// Counts a packet; with it `tx_cnt` bytes were sent in all.
    pub fn push(&mut self, tx_cnt: u32) {
        self.ends.push_back(End::of_bytes(tx_cnt).0.0);
    }

    /// Counts a packet without payload; `tx_cnt` bytes were sent in all before it. It is
    /// taken to be read when a byte behind it is, or by [`Self::read_empty`].
    pub fn push_empty(&mut self, tx_cnt: u32) {
        self.ends.push_back(End::behind(tx_cnt).0.0);
    }

    /// Counts a packet that goes on with a message: the guest can't read what it has of it, so
    /// there need not be [room](Self::room). With it `tx_cnt` bytes were sent in all.
    pub fn push_on(&mut self, tx_cnt: u32) {
        if self.ends.len() >= MAX_PACKETS as usize {
            // More than a message takes in buffers of any use.
            self.ends.pop_back();
        }
        self.push(tx_cnt);
    }

    /// The guest, which has forwarded `fwd_cnt` bytes in all, has read a packet without
    /// payload, if that is the next one. `true` when that makes a difference.
    pub fn read_empty(&mut self, fwd_cnt: u32) -> bool {
        let is_next = self.front() == Some(End::behind(fwd_cnt));
        if is_next {
            self.ends.pop_front();
        }
        is_next
    }

    /// The guest has forwarded `fwd_cnt` bytes in all. `true` when that makes a
    /// difference.
    pub fn forwarded(&mut self, fwd_cnt: u32) -> bool {
        let before = self.ends.len();
        while self.front().is_some_and(|end| end.is_reached(fwd_cnt)) {
            self.ends.pop_front();
        }
        self.ends.len() < before
    }

    /// Where the next packet ends that the guest reads.
    fn front(&self) -> Option<End> {
        self.ends.front().map(|end| End(Wrapping(end)))
    }

    /// Whether the guest has read everything.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How many more may go to a guest with this `buf_alloc`.
    pub fn room(&self, buf_alloc: u32) -> usize {
        most(buf_alloc).saturating_sub(self.ends.len())
    }

    /// Whether at least half of what the guest can hold is unread: time to ask for news,
    /// since a guest tells them by bytes only.
    pub fn is_half_full(&self, buf_alloc: u32) -> bool {
        2 * self.ends.len() >= most(buf_alloc)
    }
}

fn most(buf_alloc: u32) -> usize {
    (buf_alloc / PACKET_COST).clamp(1, MAX_PACKETS) as usize
}

/// Where a packet ends: twice the bytes sent in all with it, wrapping, and one more for a
/// packet without payload, which lies between two bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct End(Wrapping<u32>);

impl End {
    fn of_bytes(tx_cnt: u32) -> Self {
        Self(Wrapping(tx_cnt) << 1)
    }

    fn behind(tx_cnt: u32) -> Self {
        Self((Wrapping(tx_cnt) << 1) + Wrapping(1))
    }

    /// Whether a guest that has forwarded `fwd_cnt` bytes has surely read the packet.
    fn is_reached(self, fwd_cnt: u32) -> bool {
        ((Wrapping(fwd_cnt) << 1) - self.0).0 < 1 << 31
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_the_packets_a_guest_holds() {
        let mut unread = UnreadPackets::default();
        for sent in 1..=256 {
            assert!(unread.room(256 * 1024) > 0);
            unread.push(sent);
        }
        assert_eq!(unread.room(256 * 1024), 0);
        assert!(unread.forwarded(100));
        assert_eq!(unread.room(256 * 1024), 100);
        assert!(!unread.forwarded(100));
    }

    #[test]
    fn the_smallest_window_lets_one_packet_out_and_the_largest_not_all() {
        let mut unread = UnreadPackets::default();
        assert_eq!(unread.room(10), 1);
        assert_eq!(unread.room(u32::MAX), 4096);
        unread.push(10);
        assert_eq!(unread.room(10), 0);
        assert!(unread.is_half_full(10));
    }

    #[test]
    fn packets_of_a_message_count_beyond_the_bound_and_are_not_remembered_without_one() {
        let mut unread = UnreadPackets::default();
        for sent in 1..=5000 {
            unread.push_on(sent);
        }
        assert_eq!(unread.ends.len(), 4096);
        assert!(unread.forwarded(4000));
        assert_eq!(unread.room(100 << 10), 4);
        assert!(unread.forwarded(4999));
        assert_eq!(unread.room(100 << 10), 99);
        assert!(unread.forwarded(5000));
        assert_eq!(unread, UnreadPackets::default());
    }

    #[test]
    fn packets_without_payload_are_read_one_by_one_or_with_what_is_behind_them() {
        let mut unread = UnreadPackets::default();
        unread.push(5);
        unread.push_empty(5);
        unread.push_empty(5);
        assert!(!unread.read_empty(4), "the first one has payload");
        assert!(unread.forwarded(5));
        assert!(!unread.forwarded(5));
        assert_eq!(unread.room(2048), 0);
        assert!(unread.read_empty(5));
        assert_eq!(unread.room(2048), 1);
        unread.push(9);
        assert!(unread.forwarded(9));
        assert_eq!(unread, UnreadPackets::default());
    }

    #[test]
    fn counts_across_the_wrap() {
        let mut unread = UnreadPackets::default();
        unread.push(u32::MAX);
        unread.push(5);
        assert!(unread.forwarded(u32::MAX));
        assert_eq!(unread.room(2048), 1);
        assert!(unread.forwarded(5));
        assert_eq!(unread, UnreadPackets::default());
    }
}
