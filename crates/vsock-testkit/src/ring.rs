//! The driver's side of a split virtqueue (virtio 1.4, §2.7), over plain guest memory.
//!
//! The ring knows nothing of eventfds: [`Ring::needs_kick`] tells when the device is to
//! be notified, [`Ring::pop_used`] takes what the device returned.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY,
};
use vm_memory::GuestAddress;

use crate::{Error, Memory};

/// Length of a descriptor in bytes.
const DESCRIPTOR_LEN: u64 = 16;

/// One piece of a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Where it starts.
    pub address: GuestAddress,
    /// Its length in bytes; may be zero.
    pub len: u32,
    /// Whether the device may write it, rather than read.
    pub writable: bool,
}

/// A descriptor as it lies in a table, of any content: for drivers that break rules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RawDescriptor {
    /// `addr`.
    pub address: u64,
    /// `len`, in bytes.
    pub len: u32,
    /// `flags`: `VIRTQ_DESC_F_*`.
    pub flags: u16,
    /// `next`.
    pub next: u16,
}

impl RawDescriptor {
    fn to_bytes(self) -> [u8; DESCRIPTOR_LEN as usize] {
        let mut bytes = [0; DESCRIPTOR_LEN as usize];
        bytes[0..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..16].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A chain the device returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Used {
    /// The chain's head, as [`Ring::add`] gave it.
    pub head: u16,
    /// Bytes the device says it wrote.
    pub len: u32,
}

/// What a chain in flight holds, to be given back when it returns.
#[derive(Debug)]
struct Chain {
    descriptors: Vec<u16>,
    table: Option<(GuestAddress, usize)>,
}

/// A split virtqueue, seen by its driver.
pub struct Ring {
    memory: Memory,
    size: u16,
    event_idx: bool,
    descriptors: GuestAddress,
    available: GuestAddress,
    used: GuestAddress,
    free: Vec<u16>,
    in_flight: HashMap<u16, Chain>,
    /// `avail.idx`.
    next_available: u16,
    /// `avail.idx` when the device was last told of it.
    told: u16,
    /// `used.idx` up to which the driver has read.
    last_used: u16,
}

impl Ring {
    /// An empty ring of `size` descriptors, a power of two up to 32768.
    ///
    /// # Panics
    ///
    /// When `size` is not a power of two, or guest memory is full.
    pub fn new(memory: &Memory, size: u16, event_idx: bool) -> Self {
        assert!(
            size.is_power_of_two() && size <= 32768,
            "no ring has {size} descriptors"
        );
        let entries = usize::from(size);
        let mut ring = Self {
            memory: memory.clone(),
            size,
            event_idx,
            descriptors: memory.alloc(16 * entries),
            available: memory.alloc(6 + 2 * entries),
            used: memory.alloc(6 + 8 * entries),
            free: Vec::new(),
            in_flight: HashMap::new(),
            next_available: 0,
            told: 0,
            last_used: 0,
        };
        ring.reset();
        ring
    }

    /// Empties the ring, as a driver does that starts afresh; returns the heads of the
    /// chains that were in flight.
    pub fn reset(&mut self) -> Vec<u16> {
        let entries = usize::from(self.size);
        self.memory.write(self.available, &vec![0; 6 + 2 * entries]);
        self.memory.write(self.used, &vec![0; 6 + 8 * entries]);
        self.free = (0..self.size).rev().collect();
        (self.next_available, self.told, self.last_used) = (0, 0, 0);
        let chains = std::mem::take(&mut self.in_flight);
        for chain in chains.values() {
            self.free_table(chain);
        }
        chains.into_keys().collect()
    }

    /// Descriptors in the ring, used or not.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Addresses of descriptor table, available ring and used ring.
    pub fn addresses(&self) -> [GuestAddress; 3] {
        [self.descriptors, self.available, self.used]
    }

    /// How many chains the device holds.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Descriptors that are free.
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// Makes a chain of these pieces available, with all of them in an indirect table if
    /// wanted, and returns its head; `None` when too few descriptors are free.
    ///
    /// # Panics
    ///
    /// When there is no piece.
    pub fn add(&mut self, pieces: &[Piece], indirect: bool) -> Option<u16> {
        assert!(!pieces.is_empty(), "a chain has at least one descriptor");
        let needed = if indirect { 1 } else { pieces.len() };
        if self.free.len() < needed {
            return None;
        }
        let descriptors = self.free.split_off(self.free.len() - needed);
        let table = indirect.then(|| self.write_table(&descriptors, pieces));
        if table.is_none() {
            self.write_chain(self.descriptors, &descriptors, pieces);
        }
        let head = descriptors[0];
        self.in_flight.insert(head, Chain { descriptors, table });
        self.publish(head);
        Some(head)
    }

    /// Writes these descriptors at the start of the table as they are and makes `head`
    /// available: no rule is checked. For a ring that is used for nothing else.
    pub fn add_raw(&mut self, descriptors: &[RawDescriptor], head: u16) {
        for (index, descriptor) in (0..).zip(descriptors) {
            self.write_descriptor(self.descriptors, index, *descriptor);
        }
        self.in_flight.insert(
            head,
            Chain {
                descriptors: Vec::new(),
                table: None,
            },
        );
        self.publish(head);
    }

    /// Whether the device wants to be notified of what was added since the last call.
    pub fn needs_kick(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.told, self.next_available);
        let new = self.next_available;
        if old == new {
            return false;
        }
        if self.event_idx {
            let event: u16 = self.load(self.used, 4 + 8 * u64::from(self.size));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            let flags: u16 = self.load(self.used, 0);
            u32::from(flags) & VRING_USED_F_NO_NOTIFY == 0
        }
    }

    /// The next chain the device returned. On `None` the device has been asked to notify
    /// of the next one.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] for a chain the device did not have.
    pub fn pop_used(&mut self) -> Result<Option<Used>, Error> {
        if self.used_index() == self.last_used {
            self.ask_for_call();
            if self.used_index() == self.last_used {
                return Ok(None);
            }
        }
        let entry = 4 + 8 * u64::from(self.last_used % self.size);
        let head: u32 = self.load(self.used, entry);
        let len: u32 = self.load(self.used, entry + 4);
        self.last_used = self.last_used.wrapping_add(1);
        let chain = u16::try_from(head)
            .ok()
            .and_then(|head| self.in_flight.remove_entry(&head));
        let Some((head, chain)) = chain else {
            return Err(Error::Device(format!(
                "it returned chain {head}, which it did not have"
            )));
        };
        self.free_table(&chain);
        self.free.extend(chain.descriptors);
        Ok(Some(Used { head, len }))
    }

    /// `used.idx` as the device wrote it last.
    pub fn used_index(&self) -> u16 {
        self.memory
            .load(GuestAddress(self.used.0 + 2), Ordering::Acquire)
    }

    /// `avail.idx`: how many chains were made available, wrapping.
    pub fn available_index(&self) -> u16 {
        self.next_available
    }

    fn ask_for_call(&self) {
        if self.event_idx {
            self.store(self.available, 4 + 2 * u64::from(self.size), self.last_used);
        }
        fence(Ordering::SeqCst);
    }

    fn publish(&mut self, head: u16) {
        let entry = 4 + 2 * u64::from(self.next_available % self.size);
        self.store(self.available, entry, head);
        self.next_available = self.next_available.wrapping_add(1);
        let index = GuestAddress(self.available.0 + 2);
        self.memory
            .store(self.next_available, index, Ordering::Release);
    }

    /// Writes the table of an indirect chain and the one descriptor that names it.
    fn write_table(&self, descriptors: &[u16], pieces: &[Piece]) -> (GuestAddress, usize) {
        let len = pieces.len() * DESCRIPTOR_LEN as usize;
        let table = self.memory.alloc(len);
        let indices: Vec<u16> = (0..).take(pieces.len()).collect();
        self.write_chain(table, &indices, pieces);
        let flags = VRING_DESC_F_INDIRECT as u16;
        let descriptor = RawDescriptor {
            address: table.0,
            len: len as u32,
            flags,
            next: 0,
        };
        self.write_descriptor(self.descriptors, descriptors[0], descriptor);
        (table, len)
    }

    fn write_chain(&self, table: GuestAddress, indices: &[u16], pieces: &[Piece]) {
        for (i, piece) in pieces.iter().enumerate() {
            let next = indices.get(i + 1).copied();
            let mut flags = 0;
            if next.is_some() {
                flags |= VRING_DESC_F_NEXT as u16;
            }
            if piece.writable {
                flags |= VRING_DESC_F_WRITE as u16;
            }
            let (address, next) = (piece.address.0, next.unwrap_or(0));
            let descriptor = RawDescriptor {
                address,
                len: piece.len,
                flags,
                next,
            };
            self.write_descriptor(table, indices[i], descriptor);
        }
    }

    fn write_descriptor(&self, table: GuestAddress, index: u16, descriptor: RawDescriptor) {
        let address = GuestAddress(table.0 + DESCRIPTOR_LEN * u64::from(index));
        self.memory.write(address, &descriptor.to_bytes());
    }

    fn free_table(&self, chain: &Chain) {
        if let Some((table, len)) = chain.table {
            self.memory.free(table, len);
        }
    }

    fn load<T: vm_memory::AtomicAccess>(&self, area: GuestAddress, offset: u64) -> T {
        self.memory
            .load(GuestAddress(area.0 + offset), Ordering::Relaxed)
    }

    fn store<T: vm_memory::AtomicAccess>(&self, area: GuestAddress, offset: u64, value: T) {
        self.memory
            .store(value, GuestAddress(area.0 + offset), Ordering::Relaxed);
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("size", &self.size)
            .field("event_idx", &self.event_idx)
            .field("next_available", &self.next_available)
            .field("last_used", &self.last_used)
            .field("in_flight", &self.in_flight.len())
            .finish_non_exhaustive()
    }
}
