//! The driver's side of a split virtqueue (virtio 1.4, §2.7), with nothing allocated a
//! packet.

use std::sync::atomic::{Ordering, fence};

use vm_memory::GuestAddress;
use vsock_testkit::Memory;

use crate::shared::Shared;

/// Descriptors in each ring, as under QEMU.
pub(crate) const SIZE: u16 = 128;

/// `VIRTQ_DESC_F_NEXT`.
pub(crate) const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`.
pub(crate) const WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`.
pub(crate) const INDIRECT: u16 = 4;

/// Length of a descriptor in bytes.
pub(crate) const DESCRIPTOR_LEN: usize = 16;

const ENTRIES: usize = SIZE as usize;
/// Offset of `avail.idx` and `used.idx`.
const IDX: usize = 2;
/// Offset of the first entry in either ring.
const FIRST: usize = 4;
/// Offset of `used_event`.
const USED_EVENT: usize = FIRST + 2 * ENTRIES;
/// Offset of `avail_event`.
const AVAIL_EVENT: usize = FIRST + 8 * ENTRIES;

/// A descriptor as it lies in a table.
pub(crate) fn descriptor(
    address: GuestAddress,
    len: u32,
    flags: u16,
    next: u16,
) -> [u8; DESCRIPTOR_LEN] {
    let mut bytes = [0; DESCRIPTOR_LEN];
    bytes[0..8].copy_from_slice(&address.0.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..16].copy_from_slice(&next.to_le_bytes());
    bytes
}

/// A ring with EVENT_IDX.
#[derive(Debug)]
pub(crate) struct Ring {
    descriptors: Shared,
    available: Shared,
    used: Shared,
    /// `avail.idx`.
    next_available: u16,
    /// `avail.idx` when the device was last told of it.
    told: u16,
    /// `used.idx` up to which the driver has read.
    last_used: u16,
}

impl Ring {
    pub(crate) fn new(memory: &Memory) -> Self {
        Self {
            descriptors: Shared::new(memory, DESCRIPTOR_LEN * ENTRIES),
            available: Shared::new(memory, USED_EVENT + 2),
            used: Shared::new(memory, AVAIL_EVENT + 2),
            next_available: 0,
            told: 0,
            last_used: 0,
        }
    }

    /// Descriptor table, available ring and used ring.
    pub(crate) fn areas(&self) -> [GuestAddress; 3] {
        [&self.descriptors, &self.available, &self.used].map(|area| area.address(0))
    }

    /// Writes a descriptor of the table.
    pub(crate) fn set(&self, index: u16, descriptor: [u8; DESCRIPTOR_LEN]) {
        let offset = DESCRIPTOR_LEN * usize::from(index);
        self.descriptors.write(offset, &descriptor);
    }

    /// Makes the chain that starts at `head` available.
    pub(crate) fn add(&mut self, head: u16) {
        let entry = FIRST + 2 * usize::from(self.next_available % SIZE);
        self.available.set_word(entry, head);
        self.next_available = self.next_available.wrapping_add(1);
        self.available.set_word(IDX, self.next_available);
    }

    /// The head and the written length of a chain that came back.
    pub(crate) fn pop(&mut self) -> Option<(u16, u32)> {
        if !self.has_used() {
            return None;
        }
        let entry = FIRST + 8 * usize::from(self.last_used % SIZE);
        self.last_used = self.last_used.wrapping_add(1);
        Some((self.used.long(entry) as u16, self.used.long(entry + 4)))
    }

    /// Whether the device wants to be told of what became available.
    pub(crate) fn needs_kick(&mut self) -> bool {
        if self.told == self.next_available {
            return false;
        }
        fence(Ordering::SeqCst);
        let event = self.used.word(AVAIL_EVENT);
        let (new, old) = (self.next_available, self.told);
        self.told = new;
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    /// Asks for a notification of the next chain that comes back; tells whether one has
    /// come already.
    pub(crate) fn arm(&mut self) -> bool {
        self.available.set_word(USED_EVENT, self.last_used);
        fence(Ordering::SeqCst);
        self.has_used()
    }

    fn has_used(&self) -> bool {
        self.used.word(IDX) != self.last_used
    }
}
