//! What a guest sent and its host application has not taken yet.

use std::collections::VecDeque;

use crate::memory::Piece;

/// The least and the most a chunk has room for, in bytes.
const CHUNK_SIZES: std::ops::RangeInclusive<usize> = 4096..=16384;

/// Bytes on their way to a socket that is full. Its memory follows what it holds: beyond
/// that it has less than two chunks.
///
/// It has no bound of its own: the credit the guest was given bounds what comes in.
#[derive(Debug, Default)]
pub(crate) struct TxBuffer {
    /// All but the last are full.
    chunks: VecDeque<Vec<u8>>,
    /// Bytes of the first chunk that are gone.
    taken: usize,
    len: usize,
}

impl TxBuffer {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The oldest bytes, as many as lie together.
    pub(crate) fn front(&self) -> &[u8] {
        self.chunks
            .front()
            .map_or(&[], |chunk| &chunk[self.taken..])
    }

    /// Appends the pieces' bytes but for the first `skip` of them.
    pub(crate) fn push(&mut self, pieces: &[Piece<'_>], mut skip: usize) {
        let mut to_come = pieces
            .iter()
            .map(Piece::len)
            .sum::<usize>()
            .saturating_sub(skip);
        for piece in pieces {
            let mut at = skip.min(piece.len());
            skip -= at;
            while let Ok(rest) = piece.offset(at)
                && !rest.is_empty()
            {
                let chunk = self.chunk_with_room(to_come);
                let filled = chunk.len();
                let count = rest.len().min(chunk.capacity() - filled);
                chunk.resize(filled + count, 0);
                rest.copy_to(&mut chunk[filled..]);
                at += count;
                to_come -= count;
                self.len += count;
            }
        }
    }

    fn chunk_with_room(&mut self, wanted: usize) -> &mut Vec<u8> {
        if self
            .chunks
            .back()
            .is_none_or(|chunk| chunk.len() == chunk.capacity())
        {
            let size = wanted.clamp(*CHUNK_SIZES.start(), *CHUNK_SIZES.end());
            self.chunks.push_back(Vec::with_capacity(size));
        }
        let last = self.chunks.len() - 1;
        &mut self.chunks[last]
    }

    /// Drops the first `count` bytes of the [front](Self::front): they were sent.
    pub(crate) fn consume(&mut self, count: usize) {
        self.taken += count;
        self.len -= count;
        if self.front().is_empty() {
            self.chunks.pop_front();
            self.taken = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    use super::*;
    use crate::memory::Memory;

    fn memory() -> Memory {
        let mem = Memory::from_ranges(&[(GuestAddress(0), 0x4_0000)]).unwrap();
        let bytes: Vec<u8> = (0..0x4_0000u32).map(|i| (i % 251) as u8).collect();
        mem.write_slice(&bytes, GuestAddress(0)).unwrap();
        mem
    }

    #[test]
    fn keeps_bytes_in_order_from_anywhere_in_the_pieces() {
        let mem = memory();
        mem.write_slice(b"abcdefghij", GuestAddress(0)).unwrap();
        let pieces: Vec<_> = [(0, 3), (3, 3), (6, 4)]
            .iter()
            .map(|&(at, len)| mem.get_slice(GuestAddress(at), len).unwrap())
            .collect();
        let mut buffer = TxBuffer::default();
        buffer.push(&pieces, 4);
        assert_eq!(buffer.front(), b"efghij");
        buffer.consume(5);
        buffer.push(&pieces[..1], 0);
        assert_eq!(buffer.front(), b"jabc");
        buffer.consume(4);
        assert!(buffer.is_empty());
        assert!(buffer.chunks.is_empty(), "an empty buffer holds no memory");
    }

    proptest! {
        /// Whatever goes in comes out, in memory that follows what is held.
        #[test]
        fn loses_nothing_and_holds_little_more(
            steps in prop::collection::vec((0usize..40_000, 0usize..40_000), 1..12),
        ) {
            let mem = memory();
            let (mut buffer, mut expected) = (TxBuffer::default(), VecDeque::new());
            for (push, pop) in steps {
                let piece = mem.get_slice(GuestAddress(push as u64), push).unwrap();
                buffer.push(&[piece], 0);
                expected.extend((push..2 * push).map(|i| (i % 251) as u8));
                let mut left = pop.min(buffer.len());
                while left > 0 {
                    let count = left.min(buffer.front().len());
                    prop_assert!(buffer.front()[..count].iter().eq(expected.range(..count)));
                    expected.drain(..count);
                    buffer.consume(count);
                    left -= count;
                }
                let held: usize = buffer.chunks.iter().map(Vec::capacity).sum();
                prop_assert_eq!(buffer.len(), expected.len());
                prop_assert!(held <= buffer.len() + 2 * CHUNK_SIZES.end());
            }
        }
    }
}
