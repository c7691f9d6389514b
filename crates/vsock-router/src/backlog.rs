//! Payload of one flow that its receiver had no room for.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use vsock_packet::{Payload, SocketType};

/// What a chunk costs beside its memory, as it is charged to its sender, in bytes.
const CHUNK_COST: usize = 64;
/// The least and the most memory a chunk of a stream has, in bytes; the least one of a message
/// has that is to go on.
const STREAM_CHUNKS: RangeInclusive<usize> = 1024..=65536;

/// Payload that waits, the oldest first.
///
/// Packets of a stream are joined, so that the many small ones of a sender cost neither
/// us nor the receiver more than their bytes; so are those of one message.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    chunks: VecDeque<Chunk>,
    /// Bytes of the first chunk that are gone.
    taken: usize,
    cost: usize,
}

/// Payload that lies together; its memory is never more than it was made with.
#[derive(Debug)]
struct Chunk {
    bytes: Vec<u8>,
    flags: u32,
}

impl Chunk {
    fn with_capacity(capacity: usize, flags: u32) -> Self {
        Self {
            bytes: Vec::with_capacity(capacity),
            flags,
        }
    }

    fn is_full(&self) -> bool {
        self.bytes.len() == self.bytes.capacity()
    }

    /// Whether it is of a message that has more to come.
    fn goes_on(&self) -> bool {
        self.flags == 0
    }

    fn fill(&mut self, payload: &mut Payload<'_>) {
        let at = self.bytes.len();
        let count = payload.len().min(self.bytes.capacity() - at);
        self.bytes.resize(at + count, 0);
        payload.copy_to_bytes(&mut self.bytes[at..]);
    }

    fn cost(&self) -> usize {
        self.bytes.capacity() + CHUNK_COST
    }
}

impl Backlog {
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// What is charged to the sender, in bytes.
    pub(crate) fn cost(&self) -> usize {
        self.cost
    }

    /// Appends all of the payload.
    pub(crate) fn push(&mut self, payload: Payload<'_>, flags: u32, socket_type: SocketType) {
        match socket_type {
            SocketType::Stream => self.push_stream(payload),
            SocketType::Seqpacket => self.push_message(payload, flags),
        }
    }

    fn push_stream(&mut self, mut payload: Payload<'_>) {
        while !payload.is_empty() {
            if self.chunks.back().is_none_or(Chunk::is_full) {
                let size = payload
                    .len()
                    .clamp(*STREAM_CHUNKS.start(), *STREAM_CHUNKS.end());
                self.push_chunk(Chunk::with_capacity(size, 0));
            }
            if let Some(chunk) = self.chunks.back_mut() {
                chunk.fill(&mut payload);
            }
        }
    }

    fn push_message(&mut self, mut payload: Payload<'_>, flags: u32) {
        if let Some(chunk) = self.chunks.back_mut().filter(|chunk| chunk.goes_on()) {
            chunk.fill(&mut payload);
            if payload.is_empty() {
                chunk.flags = flags;
                return;
            }
        }
        let least = if flags == 0 {
            *STREAM_CHUNKS.start()
        } else {
            0
        };
        let mut chunk = Chunk::with_capacity(payload.len().max(least), flags);
        chunk.fill(&mut payload);
        self.push_chunk(chunk);
    }

    fn push_chunk(&mut self, chunk: Chunk) {
        self.cost += chunk.cost();
        self.chunks.push_back(chunk);
    }

    /// The oldest payload that lies together, with its flags.
    pub(crate) fn front(&self) -> Option<(Payload<'_>, u32)> {
        let chunk = self.chunks.front()?;
        Some((Payload::from_bytes(&chunk.bytes[self.taken..]), chunk.flags))
    }

    /// Whether nothing will be added to the [front](Self::front) of messages.
    pub(crate) fn front_is_whole(&self) -> bool {
        let whole = |chunk: &Chunk| chunk.is_full() || !chunk.goes_on();
        self.chunks.len() > 1 || self.chunks.front().is_some_and(whole)
    }

    /// Drops the [front](Self::front) but for its last `rest` bytes, or all of it when
    /// there is no rest.
    pub(crate) fn consume_front(&mut self, rest: usize) {
        let Some(chunk) = self.chunks.front() else {
            return;
        };
        self.taken = chunk.bytes.len() - rest;
        if rest == 0 {
            self.cost -= chunk.cost();
            self.chunks.pop_front();
            self.taken = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn take_all(backlog: &mut Backlog) -> Vec<(Vec<u8>, u32)> {
        let mut taken = Vec::new();
        while let Some((mut payload, flags)) = backlog.front() {
            let mut bytes = vec![0; payload.len()];
            payload.copy_to_bytes(&mut bytes);
            backlog.consume_front(0);
            taken.push((bytes, flags));
        }
        taken
    }

    #[test]
    fn joins_the_packets_of_a_stream() {
        let mut backlog = Backlog::default();
        for _ in 0..1000 {
            backlog.push(Payload::from_bytes(b"x"), 0, SocketType::Stream);
        }
        assert_eq!(backlog.cost(), 1024 + CHUNK_COST);
        assert_eq!(take_all(&mut backlog), [(vec![b'x'; 1000], 0)]);
        assert_eq!(backlog.cost(), 0);
    }

    #[test]
    fn keeps_messages_apart_and_their_flags() {
        let mut backlog = Backlog::default();
        backlog.push(Payload::from_bytes(b"one"), 1, SocketType::Seqpacket);
        backlog.push(Payload::from_bytes(b"two"), 3, SocketType::Seqpacket);
        backlog.push(Payload::EMPTY, 1, SocketType::Seqpacket);
        let expected = [(b"one".to_vec(), 1), (b"two".to_vec(), 3), (vec![], 1)];
        assert_eq!(take_all(&mut backlog), expected);
        assert!(backlog.is_empty());
    }

    #[test]
    fn joins_the_packets_of_a_message() {
        let mut backlog = Backlog::default();
        for _ in 0..1500 {
            backlog.push(Payload::from_bytes(b"x"), 0, SocketType::Seqpacket);
        }
        assert!(backlog.front_is_whole());
        backlog.push(Payload::from_bytes(b"y"), 1, SocketType::Seqpacket);
        backlog.push(Payload::from_bytes(b"z"), 0, SocketType::Seqpacket);
        let end = [vec![b'x'; 476], vec![b'y']].concat();
        let expected = [(vec![b'x'; 1024], 0), (end, 1), (vec![b'z'], 0)];
        assert_eq!(take_all(&mut backlog), expected);
        backlog.push(Payload::from_bytes(b"z"), 0, SocketType::Seqpacket);
        assert!(!backlog.front_is_whole(), "there is more to come");
    }

    proptest! {
        /// Whatever steps it comes and goes in, a stream stays a stream.
        #[test]
        fn a_stream_is_neither_lost_nor_reordered(
            steps in prop::collection::vec((0usize..40_000, 1usize..40_000), 1..12),
        ) {
            let mut backlog = Backlog::default();
            let (mut pushed, mut popped) = (0, 0);
            for (push, pop) in steps {
                let bytes: Vec<u8> = (pushed..pushed + push).map(byte).collect();
                pushed += push;
                backlog.push(Payload::from_bytes(&bytes), 0, SocketType::Stream);
                popped += take(&mut backlog, pop, popped)?;
            }
            while !backlog.is_empty() {
                popped += take(&mut backlog, usize::MAX, popped)?;
            }
            prop_assert_eq!(popped, pushed);
            prop_assert_eq!(backlog.cost(), 0);
        }
    }

    fn byte(at: usize) -> u8 {
        (at % 251) as u8
    }

    /// Takes at most `count` bytes, which must be those of the stream from `at` on.
    fn take(backlog: &mut Backlog, count: usize, at: usize) -> Result<usize, TestCaseError> {
        let Some((mut payload, _)) = backlog.front() else {
            return Ok(0);
        };
        let mut bytes = vec![0; count.min(payload.len())];
        payload.copy_to_bytes(&mut bytes);
        let rest = payload.len();
        backlog.consume_front(rest);
        let right = bytes.iter().zip(at..).all(|(got, at)| *got == byte(at));
        prop_assert!(right, "wrong bytes after {}", at);
        Ok(bytes.len())
    }
}
