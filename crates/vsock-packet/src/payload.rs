//! Payload on its way from one place to another.

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// Bytes that are still to be copied: out of pieces of guest memory, or out of our own.
///
/// It is a cursor: what was copied is no longer part of it.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    source: Source<'a>,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
enum Source<'a> {
    /// The bytes of these pieces but for the first so many.
    Pieces(&'a [VolatileSlice<'a, ()>], usize),
    Bytes(&'a [u8]),
}

impl<'a> Payload<'a> {
    /// No payload.
    pub const EMPTY: Self = Self {
        source: Source::Bytes(&[]),
        len: 0,
    };

    /// The bytes in these pieces of guest memory, one after the other. They are only
    /// read, so nothing need be known of what the memory's writes are tracked by.
    pub fn from_pieces(pieces: &'a [VolatileSlice<'a, ()>]) -> Self {
        let len = pieces.iter().map(VolatileSlice::len).sum();
        Self {
            source: Source::Pieces(pieces, 0),
            len,
        }
    }

    /// These bytes.
    pub fn from_bytes(bytes: &'a [u8]) -> Self {
        Self {
            source: Source::Bytes(bytes),
            len: bytes.len(),
        }
    }

    /// What is still to be copied, in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether everything was copied.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies to a piece of guest memory, as much as fits. Returns the bytes copied.
    pub fn copy_to_piece<B: BitmapSlice>(&mut self, into: &VolatileSlice<'_, B>) -> usize {
        self.take(into.len(), |from, at| {
            if let Ok(into) = into.offset(at) {
                match from {
                    Part::Piece(piece) => piece.copy_to_volatile_slice(into),
                    Part::Bytes(bytes) => into.copy_from(bytes),
                }
            }
        })
    }

    /// Copies to memory of our own, as much as fits. Returns the bytes copied.
    pub fn copy_to_bytes(&mut self, into: &mut [u8]) -> usize {
        self.take(into.len(), |from, at| {
            let into = &mut into[at..];
            match from {
                Part::Piece(piece) => {
                    piece.copy_to(into);
                }
                Part::Bytes(bytes) => into[..bytes.len()].copy_from_slice(bytes),
            }
        })
    }

    /// Hands out the next `room` bytes part by part, each with its place among them.
    fn take(&mut self, room: usize, mut copy: impl FnMut(Part<'a>, usize)) -> usize {
        let count = room.min(self.len);
        let mut done = 0;
        while done < count {
            let part = self.next_part(count - done);
            let len = part.len();
            copy(part, done);
            done += len;
        }
        self.len -= count;
        count
    }

    /// The next bytes that lie together, at most `most` of them, which there must be.
    fn next_part(&mut self, most: usize) -> Part<'a> {
        match &mut self.source {
            Source::Bytes(bytes) => {
                let (part, rest) = bytes.split_at(most);
                *bytes = rest;
                Part::Bytes(part)
            }
            Source::Pieces(pieces, skip) => {
                let Some((piece, others)) = pieces.split_first() else {
                    return Part::Bytes(&[]);
                };
                let count = most.min(piece.len() - *skip);
                let part = piece.subslice(*skip, count).unwrap_or(*piece);
                *skip += count;
                if *skip == piece.len() {
                    (*pieces, *skip) = (others, 0);
                }
                Part::Piece(part)
            }
        }
    }
}

/// Bytes that lie together.
enum Part<'a> {
    Piece(VolatileSlice<'a, ()>),
    Bytes(&'a [u8]),
}

impl Part<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Piece(piece) => piece.len(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces<'a>(bytes: &'a mut [u8], lens: &[usize]) -> Vec<VolatileSlice<'a, ()>> {
        let mut rest = VolatileSlice::from(bytes);
        let mut pieces = Vec::new();
        for len in lens {
            let (piece, behind) = rest.split_at((*len).min(rest.len())).unwrap();
            pieces.push(piece);
            rest = behind;
        }
        pieces.push(rest);
        pieces
    }

    proptest! {
        /// Wherever it lies and in whatever steps it is copied, it arrives whole.
        #[test]
        fn arrives_whole(
            bytes in prop::collection::vec(any::<u8>(), 0..500),
            from in prop::collection::vec(0usize..80, 0..8),
            to in prop::collection::vec(1usize..80, 1..8),
            ours: bool,
        ) {
            let mut original = bytes.clone();
            let places = pieces(&mut original, &from);
            let mut payload =
                if ours { Payload::from_bytes(&bytes) } else { Payload::from_pieces(&places) };
            let mut arrived = Vec::new();
            for step in to.iter().cycle() {
                if payload.is_empty() {
                    break;
                }
                let mut room = vec![0; *step];
                let count = if arrived.len() % 2 == 0 {
                    payload.copy_to_bytes(&mut room)
                } else {
                    payload.copy_to_piece(&VolatileSlice::from(room.as_mut_slice()))
                };
                arrived.extend_from_slice(&room[..count]);
            }
            prop_assert_eq!(arrived, bytes);
        }
    }
}
