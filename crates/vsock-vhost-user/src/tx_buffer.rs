//! What a guest sent and its host application has not taken yet.

use crate::memory::Piece;

/// Bytes on their way to a socket that is full. Its memory lives only as long as it
/// holds something.
///
/// It has no bound of its own: the credit the guest was given bounds what comes in.
#[derive(Debug, Default)]
pub(crate) struct TxBuffer {
    bytes: Vec<u8>,
    taken: usize,
}

impl TxBuffer {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.taken
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, the oldest first.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// Appends the pieces' bytes but for the first `skip` of them.
    pub(crate) fn push(&mut self, pieces: &[Piece<'_>], mut skip: usize) {
        self.compact();
        for piece in pieces {
            let passed = skip.min(piece.len());
            skip -= passed;
            if let Ok(rest) = piece.offset(passed) {
                let at = self.bytes.len();
                self.bytes.resize(at + rest.len(), 0);
                rest.copy_to(&mut self.bytes[at..]);
            }
        }
    }

    /// Drops the first `count` bytes: they were sent.
    pub(crate) fn consume(&mut self, count: usize) {
        self.taken += count;
        if self.is_empty() {
            *self = Self::default();
        }
    }

    /// Moves the bytes to the front when more than half of the memory is behind them, so
    /// that a byte is moved once at most on average.
    fn compact(&mut self) {
        if self.taken > self.bytes.len() / 2 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    use super::*;
    use crate::memory::Memory;

    #[test]
    fn keeps_bytes_in_order_from_anywhere_in_the_pieces() {
        let mem = Memory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        mem.write_slice(b"abcdefghij", GuestAddress(0)).unwrap();
        let pieces: Vec<_> = [(0, 3), (3, 3), (6, 4)]
            .iter()
            .map(|&(at, len)| mem.get_slice(GuestAddress(at), len).unwrap())
            .collect();
        let mut buffer = TxBuffer::default();
        buffer.push(&pieces, 4);
        assert_eq!(buffer.bytes(), b"efghij");
        buffer.consume(5);
        buffer.push(&pieces[..1], 0);
        assert_eq!(buffer.bytes(), b"jabc");
        buffer.consume(4);
        assert!(buffer.is_empty());
        assert_eq!(
            buffer.bytes.capacity(),
            0,
            "an empty buffer holds no memory"
        );
    }
}
