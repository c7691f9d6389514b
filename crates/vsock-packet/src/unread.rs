//! The packets that a guest holds unread.

use std::collections::VecDeque;
use std::num::Wrapping;

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
    /// What the sender had sent in all with each packet, wrapping.
    ends: VecDeque<Wrapping<u32>>,
}

impl UnreadPackets {
    /// Counts a packet; with it `tx_cnt` bytes were sent in all.
    pub fn push(&mut self, tx_cnt: u32) {
        self.ends.push_back(Wrapping(tx_cnt));
    }

    /// The guest has forwarded `fwd_cnt` bytes in all. `true` when that makes a
    /// difference.
    pub fn forwarded(&mut self, fwd_cnt: u32) -> bool {
        let before = self.ends.len();
        while self
            .ends
            .front()
            .is_some_and(|end| is_reached(*end, Wrapping(fwd_cnt)))
        {
            self.ends.pop_front();
        }
        if self.ends.is_empty() {
            // An idle connection costs nothing.
            self.ends = VecDeque::new();
        }
        self.ends.len() < before
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

/// Whether `fwd_cnt` has reached `end`, with both wrapping.
fn is_reached(end: Wrapping<u32>, fwd_cnt: Wrapping<u32>) -> bool {
    (fwd_cnt - end).0 < 1 << 31
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
