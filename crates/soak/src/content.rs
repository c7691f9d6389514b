//! What one end of a connection says: each byte follows from the connection, the direction
//! and the position, so that one that is missing, doubled or out of place shows.

use crate::random::mix;

/// The length of what the opener says first: the connection's number.
pub(crate) const NUMBER_LEN: usize = 8;

/// The bytes of one direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Content {
    key: u64,
    /// The opener begins with this.
    number: Option<u64>,
}

impl Content {
    /// What the opener of a connection says.
    pub(crate) fn of_opener(seed: u64, number: u64) -> Self {
        Self {
            key: mix(seed ^ mix(number)),
            number: Some(number),
        }
    }

    /// What the acceptor says.
    pub(crate) fn of_acceptor(seed: u64, number: u64) -> Self {
        Self {
            key: mix(!seed ^ mix(number)),
            number: None,
        }
    }

    fn word(&self, index: u64) -> [u8; 8] {
        let word = match self.number {
            Some(number) if index == 0 => number,
            _ => mix(self.key.wrapping_add(index)),
        };
        word.to_le_bytes()
    }

    /// The `len` bytes from `position` on.
    pub(crate) fn bytes(&self, position: u64, len: usize) -> Vec<u8> {
        let skip = (position % 8) as usize;
        let mut bytes = Vec::with_capacity(len + 16);
        let mut index = position / 8;
        while bytes.len() < skip + len {
            bytes.extend(self.word(index));
            index += 1;
        }
        bytes.truncate(skip + len);
        bytes.drain(..skip);
        bytes
    }

    /// Where `bytes`, which should be those from `position` on, are others.
    pub(crate) fn first_wrong(&self, position: u64, bytes: &[u8]) -> Option<u64> {
        let expected = self.bytes(position, bytes.len());
        let wrong = bytes.iter().zip(&expected).position(|(a, b)| a != b);
        wrong.map(|offset| position + offset as u64)
    }

    /// How long the message is that begins at `position`, of at most `most` bytes.
    pub(crate) fn message_len(&self, position: u64, most: u64) -> u64 {
        // A message may be of one byte; the first holds the number.
        let len = 1 + mix(self.key ^ position) % most;
        if position == 0 {
            len.max(NUMBER_LEN as u64)
        } else {
            len
        }
    }
}

/// The number a connection was given, from the first bytes of its opener.
pub(crate) fn number_in(bytes: &[u8]) -> Option<u64> {
    let bytes = bytes.get(..NUMBER_LEN)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_is_that_part_of_the_whole() {
        let content = Content::of_opener(1, 7);
        let whole = content.bytes(0, 100);
        assert_eq!(number_in(&whole), Some(7));
        for (at, len) in [(0, 3), (3, 8), (5, 30), (8, 8), (99, 1)] {
            let part = content.bytes(at, len);
            assert_eq!(part, whole[at as usize..at as usize + len]);
            assert_eq!(content.first_wrong(at, &part), None);
        }
    }

    #[test]
    fn a_byte_that_is_lost_or_doubled_shows() {
        let content = Content::of_acceptor(1, 7);
        let mut lost = content.bytes(0, 100);
        lost.remove(40);
        assert_eq!(content.first_wrong(0, &lost), Some(40));
        let mut doubled = content.bytes(0, 100);
        doubled.insert(40, doubled[39]);
        assert_eq!(content.first_wrong(0, &doubled), Some(40));
    }
}
