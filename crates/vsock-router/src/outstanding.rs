//! What was sent and has not been answered.

use std::num::Wrapping;
use std::ops::{Deref, DerefMut};

use vsock_packet::{CreditRequests, UnreadPackets};

/// What was sent through a [window](crate::window::Window) and has not been answered: its other part, which
/// packets without payload seldom need: a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Outstanding {
    /// The packets that went out and were not read.
    pub(crate) unread: UnreadPackets,
    /// What has reached the receiver's RX ring, in bytes.
    pub(crate) delivered: Wrapping<u32>,
    /// `None` while nobody waits.
    pub(crate) requests: Option<Box<CreditRequests>>,
}

const _: () = assert!(size_of::<Outstanding>() == 64);

impl Outstanding {
    /// Bytes that went into the receiver's RX ring in all, wrapping.
    pub(crate) fn delivered_bytes(&self) -> u32 {
        self.delivered.0
    }
}

/// Says where something [`Outstanding`] lies. A plain reference would let the compiler read it
/// ahead of the branch that finds it not to be needed, and wait for memory.
#[derive(Debug)]
pub(crate) struct Aside<'a> {
    all: &'a mut [Outstanding],
    place: usize,
}

impl<'a> Aside<'a> {
    /// What lies in a place, which is one of them.
    pub(crate) fn new(all: &'a mut [Outstanding], place: usize) -> Self {
        debug_assert!(place < all.len(), "{place} of {}", all.len());
        Self { all, place }
    }
}

impl Deref for Aside<'_> {
    type Target = Outstanding;

    fn deref(&self) -> &Outstanding {
        &self.all[self.place]
    }
}

impl DerefMut for Aside<'_> {
    fn deref_mut(&mut self) -> &mut Outstanding {
        &mut self.all[self.place]
    }
}
