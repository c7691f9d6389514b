//! A stretch of guest memory, accessed without looking up its region each time.
//!
//! The device writes it from another process, so every access is either atomic or a copy
//! of bytes whose turn it is by the rules of the ring.

#![allow(
    unsafe_code,
    reason = "a driver that is never the bottleneck goes straight to its rings"
)]

use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use vm_memory::GuestAddress;
use vsock_testkit::Memory;

/// An allocation in guest memory.
#[derive(Debug)]
pub(crate) struct Shared {
    start: *mut u8,
    len: usize,
    address: GuestAddress,
    /// Keeps the mapping.
    _memory: Memory,
}

// SAFETY: the pointer is to a mapping that lives as long as `_memory` does, from whichever
// thread it is used.
unsafe impl Send for Shared {}

impl Shared {
    /// Allocates `len` bytes, all zero.
    pub(crate) fn new(memory: &Memory, len: usize) -> Self {
        let address = memory.alloc(len);
        memory.write(address, &vec![0; len]);
        Self {
            start: memory.host_address(address),
            len,
            address,
            _memory: memory.clone(),
        }
    }

    /// Where the guest has the byte at `offset`.
    pub(crate) fn address(&self, offset: usize) -> GuestAddress {
        GuestAddress(self.address.0 + offset as u64)
    }

    /// The 16-bit word at `offset`.
    pub(crate) fn word(&self, offset: usize) -> u16 {
        u16::from_le(self.atomic(offset).load(Ordering::Acquire))
    }

    /// Writes the 16-bit word at `offset`, after everything written before.
    pub(crate) fn set_word(&self, offset: usize, value: u16) {
        self.atomic(offset).store(value.to_le(), Ordering::Release);
    }

    /// The 32-bit word at `offset`.
    pub(crate) fn long(&self, offset: usize) -> u32 {
        let start = self.check(offset, 4, 4);
        // SAFETY: `check` found the word within the mapping and aligned; an atomic may
        // change under us.
        let word = unsafe { AtomicU32::from_ptr(start.cast()) };
        u32::from_le(word.load(Ordering::Relaxed))
    }

    /// Copies `bytes` to `offset`.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        let start = self.check(offset, bytes.len(), 1);
        // SAFETY: `check` found the range within the mapping, which no Rust reference is
        // ever made to; `bytes` is elsewhere.
        unsafe { start.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    /// Copies `N` bytes from `offset`.
    pub(crate) fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        let start = self.check(offset, N, 1);
        // SAFETY: `check` found the range within the mapping; any bytes make an array.
        unsafe { start.cast::<[u8; N]>().read_unaligned() }
    }

    fn atomic(&self, offset: usize) -> &AtomicU16 {
        let start = self.check(offset, 2, 2);
        // SAFETY: `check` found the word within the mapping and aligned; an atomic may
        // change under us.
        unsafe { AtomicU16::from_ptr(start.cast()) }
    }

    /// Where `len` bytes at `offset` start.
    fn check(&self, offset: usize, len: usize, alignment: usize) -> *mut u8 {
        let fits = offset <= self.len && len <= self.len - offset;
        // SAFETY: only called with an offset that is within the allocation.
        let start = fits.then(|| unsafe { self.start.add(offset) });
        match start {
            Some(start) if start.addr().is_multiple_of(alignment) => start,
            _ => panic!(
                "{len} bytes at {offset} of {} are not to be accessed",
                self.len
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let memory = Memory::one_region().unwrap();
        let shared = Shared::new(&memory, 16);
        shared.write(4, &[1, 2, 3, 4]);
        assert_eq!(shared.read::<2>(5), [2, 3]);
        assert_eq!(shared.long(4), 0x0403_0201);
        shared.set_word(6, 0x0605);
        assert_eq!(memory.read(shared.address(4), 4), [1, 2, 5, 6]);
    }

    #[test]
    #[should_panic(expected = "4 bytes at 14 of 16")]
    fn nothing_outside_is_accessed() {
        let memory = Memory::one_region().unwrap();
        Shared::new(&memory, 16).write(14, &[0; 4]);
    }
}
