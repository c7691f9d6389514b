//! A stream of bytes known from its seed: generated at one end, verified at the other.
//!
//! The stream is a sequence of little-endian words: the sum of seed and index, times an
//! odd number, its upper half folded onto the lower. Each of these can be undone, so a
//! word found in the wrong place tells where it belongs, and with that how much was lost
//! or repeated before it.

use std::fmt;

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
const INVERSE: u64 = inverse(MULTIPLIER);
const WORD: u64 = size_of::<u64>() as u64;

/// A position in the stream of one seed, and the checksum of what was passed so far.
#[derive(Clone, Debug)]
pub struct Pattern {
    seed: u64,
    position: u64,
    checksum: u64,
}

/// The first byte that is not what the stream has at its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Where in the stream the wrong byte was found.
    pub position: u64,
    /// Where in the stream the word found there belongs, if it is one of the
    /// stream's first 4 GiB.
    pub belongs_at: Option<u64>,
}

impl Pattern {
    /// The beginning of the stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            seed: seed << 32,
            position: 0,
            checksum: 0,
        }
    }

    /// How many bytes were generated or verified.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// A checksum of the bytes generated or verified, however they were cut into calls.
    pub fn checksum(&self) -> u64 {
        self.checksum
    }

    /// Writes the next `buffer.len()` bytes of the stream.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        let (head, body) = buffer.split_at_mut(self.head(buffer.len()));
        self.fill_part(head);
        let mut words = body.chunks_exact_mut(WORD as usize);
        for bytes in &mut words {
            let word = self.word();
            bytes.copy_from_slice(&word.to_le_bytes());
            self.pass(word, WORD);
        }
        self.fill_part(words.into_remainder());
    }

    /// Holds `bytes` against the next bytes of the stream.
    pub fn verify(&mut self, bytes: &[u8]) -> Result<(), Mismatch> {
        let (head, body) = bytes.split_at(self.head(bytes.len()));
        self.verify_part(head)?;
        let (words, tail) = body.as_chunks::<{ WORD as usize }>();
        for (i, bytes) in words.iter().enumerate() {
            let found = u64::from_le_bytes(*bytes);
            if found != self.word() {
                return Err(self.mismatch(&body[i * WORD as usize..]));
            }
            self.pass(found, WORD);
        }
        self.verify_part(tail)
    }

    /// How many of the next `len` bytes finish a word begun earlier.
    fn head(&self, len: usize) -> usize {
        let begun = self.position % WORD;
        if begun == 0 {
            0
        } else {
            len.min((WORD - begun) as usize)
        }
    }

    /// The word that holds the current position.
    fn word(&self) -> u64 {
        let product = self
            .seed
            .wrapping_add(self.position / WORD)
            .wrapping_mul(MULTIPLIER);
        product ^ (product >> 32)
    }

    /// Moves on by `len` bytes of one word; the other bytes of `part` are zero, so the
    /// sum does not depend on how words were cut.
    fn pass(&mut self, part: u64, len: u64) {
        let weight = self.position / WORD * 2 + 1;
        self.checksum = self.checksum.wrapping_add(part.wrapping_mul(weight));
        self.position += len;
    }

    /// The byte at the current position, and where it lies in its word.
    fn byte(&self) -> (u8, u64) {
        let shift = self.position % WORD * 8;
        ((self.word() >> shift) as u8, shift)
    }

    fn fill_part(&mut self, buffer: &mut [u8]) {
        for place in buffer {
            let (byte, shift) = self.byte();
            *place = byte;
            self.pass(u64::from(byte) << shift, 1);
        }
    }

    fn verify_part(&mut self, bytes: &[u8]) -> Result<(), Mismatch> {
        for (i, &found) in bytes.iter().enumerate() {
            let (byte, shift) = self.byte();
            if found != byte {
                return Err(self.mismatch(&bytes[i..]));
            }
            self.pass(u64::from(byte) << shift, 1);
        }
        Ok(())
    }

    /// Describes `rest`, whose first word or byte is wrong at the current position.
    fn mismatch(&self, rest: &[u8]) -> Mismatch {
        let mut exact = self.clone();
        let mut wrong = 0;
        while rest
            .get(wrong)
            .is_some_and(|&found| found == exact.byte().0)
        {
            exact.position += 1;
            wrong += 1;
        }
        let words = rest[wrong..].windows(WORD as usize).take(WORD as usize);
        let belongs_at = words.enumerate().find_map(|(skipped, bytes)| {
            let word = u64::from_le_bytes(bytes.try_into().ok()?);
            let product = word ^ (word >> 32);
            let index = product.wrapping_mul(INVERSE).wrapping_sub(self.seed);
            let at = index.checked_mul(WORD).filter(|&at| at < 1 << 32)?;
            at.checked_sub(skipped as u64)
        });
        Mismatch {
            position: exact.position,
            belongs_at,
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            position,
            belongs_at,
        } = *self;
        write!(f, "a wrong byte at position {position}")?;
        match belongs_at {
            Some(at) if at > position => write!(f, ": {} bytes were lost there", at - position),
            Some(at) => write!(f, ": {} bytes were repeated there", position - at),
            None => f.write_str(": it is from no place of this stream"),
        }
    }
}

impl std::error::Error for Mismatch {}

/// The inverse of an odd number modulo 2^64, by Newton's iteration.
const fn inverse(odd: u64) -> u64 {
    let mut inverse = odd;
    let mut round = 0;
    while round < 5 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(inverse)));
        round += 1;
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        Pattern::new(seed).fill(&mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn the_cuts_do_not_matter(cuts in prop::collection::vec(0usize..40, 1..40)) {
            let whole = stream(7, cuts.iter().sum());
            let (mut writer, mut reader) = (Pattern::new(7), Pattern::new(7));
            let mut rest = &whole[..];
            for cut in cuts {
                let mut piece = vec![0; cut];
                writer.fill(&mut piece);
                prop_assert_eq!(&piece, &rest[..cut]);
                prop_assert_eq!(reader.verify(&piece), Ok(()));
                rest = &rest[cut..];
            }
            let mut once = Pattern::new(7);
            once.verify(&whole).unwrap();
            prop_assert_eq!(once.checksum(), reader.checksum());
            prop_assert_eq!(once.checksum(), writer.checksum());
        }

        #[test]
        fn finds_the_hole(hole in 0usize..900, len in 1usize..64) {
            let mut bytes = stream(3, 1024);
            bytes.drain(hole..hole + len);
            let mismatch = Pattern::new(3).verify(&bytes).unwrap_err();
            // A byte after the hole may equal the lost one by chance.
            prop_assert!(mismatch.position >= hole as u64);
            let lost = mismatch.belongs_at.unwrap() - mismatch.position;
            prop_assert_eq!(lost, len as u64);
        }
    }

    #[test]
    fn tells_bytes_of_another_stream() {
        let mismatch = Pattern::new(1).verify(&stream(2, 64)).unwrap_err();
        assert_eq!(
            mismatch,
            Mismatch {
                position: 0,
                belongs_at: None
            }
        );
        assert!(mismatch.to_string().contains("no place of this stream"));
    }

    #[test]
    fn a_changed_byte_changes_the_checksum() {
        let (mut one, mut other) = (Pattern::new(1), Pattern::new(2));
        one.fill(&mut [0; 4096]);
        other.fill(&mut [0; 4096]);
        assert_ne!(one.checksum(), other.checksum());
    }
}
