//! A guest's memory: regions of memfd that the device maps too, and an allocator.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{
    AtomicAccess, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion,
};

use crate::Error;

/// Alignment of everything allocated, in bytes: what a descriptor table needs.
const ALIGNMENT: u64 = 16;

/// Guest memory, shared by its clones.
///
/// Each region is a memfd of its own, sealed against shrinking as QEMU's are. Regions
/// may touch (a buffer may then cross from one to the next, and yet be two mappings in
/// the device) or leave gaps (where no buffer may lie).
///
/// Addresses given to the accessors are the test's: one outside the memory is the
/// test's mistake, and panics.
#[derive(Clone, Debug)]
pub struct Memory {
    map: GuestMemoryMmap,
    free: Arc<Mutex<FreeList>>,
}

impl Memory {
    /// Memory of these regions: guest-physical start and length in bytes, ascending.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the system gives no memory, or the regions overlap.
    pub fn new(regions: &[(u64, usize)]) -> Result<Self, Error> {
        Self::of(regions, SealFlags::SHRINK)
    }

    /// The same, of memfds that may be [taken back](Self::take_back).
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the system gives no memory, or the regions overlap.
    pub fn unsealed(regions: &[(u64, usize)]) -> Result<Self, Error> {
        Self::of(regions, SealFlags::empty())
    }

    /// Takes the memory behind each region back from everybody who has mapped it, this
    /// process too: nobody here may touch it from now on.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when it is sealed.
    pub fn take_back(&self) -> Result<(), Error> {
        let files = self.map.iter().filter_map(|region| region.file_offset());
        for file in files {
            ftruncate(file.file(), 0).map_err(Error::io("ftruncate a memfd"))?;
        }
        Ok(())
    }

    fn of(regions: &[(u64, usize)], seals: SealFlags) -> Result<Self, Error> {
        let mut ranges = Vec::with_capacity(regions.len());
        let mut free = FreeList::default();
        for &(start, len) in regions {
            let file = FileOffset::new(memfd(len as u64, seals)?, 0);
            ranges.push((GuestAddress(start), len, Some(file)));
            free.add_region(start, len as u64);
        }
        let map = GuestMemoryMmap::from_ranges_with_files(ranges)
            .map_err(std::io::Error::other)
            .map_err(Error::io("map guest memory"))?;
        Ok(Self {
            map,
            free: Arc::new(Mutex::new(free)),
        })
    }

    /// One region of 256 MiB, of which only what is touched takes space.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the system gives no memory.
    pub fn one_region() -> Result<Self, Error> {
        Self::new(&[(0, 256 << 20)])
    }

    /// A large region and `count` further ones of 256 KiB, each touching the one before:
    /// for [`Self::alloc_across`].
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the system gives no memory.
    pub fn touching_regions(count: usize) -> Result<Self, Error> {
        let first = 64 << 20;
        let small = 256 << 10;
        let mut regions = vec![(0, first)];
        regions.extend((0..count).map(|i| ((first + i * small) as u64, small)));
        Self::new(&regions)
    }

    /// The memory as rust-vmm's crates take it.
    pub fn map(&self) -> &GuestMemoryMmap {
        &self.map
    }

    /// Allocates `len` bytes within one region. Zero bytes have an address too.
    ///
    /// # Panics
    ///
    /// When the memory is full.
    pub fn alloc(&self, len: usize) -> GuestAddress {
        let address = self.free_list().take(len as u64);
        address.unwrap_or_else(|| panic!("no {len} bytes of guest memory are free"))
    }

    /// Allocates `len` bytes, at least 2, that lie in two touching regions; `None` when
    /// every boundary between two regions is taken.
    pub fn alloc_across(&self, len: usize) -> Option<GuestAddress> {
        self.free_list().take_across(len as u64)
    }

    /// Gives back what was allocated with the same length.
    pub fn free(&self, address: GuestAddress, len: usize) {
        self.free_list().give(address.0, len as u64);
    }

    /// Copies `bytes` to guest memory.
    ///
    /// # Panics
    ///
    /// When the range is not in guest memory.
    pub fn write(&self, address: GuestAddress, bytes: &[u8]) {
        self.map
            .write_slice(bytes, address)
            .unwrap_or_else(|error| outside(address, error));
    }

    /// Copies `len` bytes from guest memory.
    ///
    /// # Panics
    ///
    /// When the range is not in guest memory.
    pub fn read(&self, address: GuestAddress, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.map
            .read_slice(&mut bytes, address)
            .unwrap_or_else(|error| outside(address, error));
        bytes
    }

    /// Where the guest's byte lies in this process: what a vhost-user frontend tells of
    /// its rings.
    ///
    /// # Panics
    ///
    /// When the address is not in guest memory.
    pub fn host_address(&self, address: GuestAddress) -> *mut u8 {
        self.map
            .get_host_address(address)
            .unwrap_or_else(|error| outside(address, error))
    }

    pub(crate) fn load<T: AtomicAccess>(&self, address: GuestAddress, order: Ordering) -> T {
        self.map
            .load(address, order)
            .unwrap_or_else(|error| outside(address, error))
    }

    pub(crate) fn store<T: AtomicAccess>(&self, value: T, address: GuestAddress, order: Ordering) {
        self.map
            .store(value, address, order)
            .unwrap_or_else(|error| outside(address, error));
    }

    fn free_list(&self) -> MutexGuard<'_, FreeList> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn outside(address: GuestAddress, error: impl std::fmt::Display) -> ! {
    panic!("{:#x} is not in guest memory: {error}", address.0)
}

fn memfd(len: u64, seals: SealFlags) -> Result<File, Error> {
    let fd = memfd_create(
        "guest-memory",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )
    .map_err(Error::io("memfd_create"))?;
    ftruncate(&fd, len).map_err(Error::io("ftruncate a memfd"))?;
    fcntl_add_seals(&fd, seals).map_err(Error::io("seal a memfd"))?;
    Ok(fd.into())
}

/// Free ranges by their start; those of different regions are never merged.
#[derive(Debug, Default)]
struct FreeList {
    ranges: BTreeMap<u64, u64>,
    region_starts: Vec<u64>,
}

impl FreeList {
    fn add_region(&mut self, start: u64, len: u64) {
        self.region_starts.push(start);
        // Address 0 stays unused: a zero in a descriptor is then always a mistake.
        let skipped = if start == 0 { 4096.min(len) } else { 0 };
        self.ranges.insert(start + skipped, len - skipped);
    }

    fn take(&mut self, len: u64) -> Option<GuestAddress> {
        let len = rounded(len);
        let (&start, &free) = self.ranges.iter().find(|&(_, &free)| free >= len)?;
        self.carve(start, free, start, len);
        Some(GuestAddress(start))
    }

    fn take_across(&mut self, len: u64) -> Option<GuestAddress> {
        let below = rounded(len / 2);
        let above = rounded(len - len / 2);
        let boundary = self.region_starts.iter().copied().find(|&boundary| {
            let ends_here =
                |(&start, &free): (&u64, &u64)| start + free == boundary && free >= below;
            self.ranges
                .get(&boundary)
                .is_some_and(|&free| free >= above)
                && self
                    .ranges
                    .range(..boundary)
                    .next_back()
                    .is_some_and(ends_here)
        })?;
        let (&start, &free) = self.ranges.range(..boundary).next_back()?;
        self.carve(start, free, boundary - below, below);
        let free = *self.ranges.get(&boundary)?;
        self.carve(boundary, free, boundary, above);
        Some(GuestAddress(boundary - len / 2))
    }

    /// Takes `[at, at + len)` out of the free range `[start, start + free)`.
    fn carve(&mut self, start: u64, free: u64, at: u64, len: u64) {
        self.ranges.remove(&start);
        if at > start {
            self.ranges.insert(start, at - start);
        }
        if at + len < start + free {
            self.ranges.insert(at + len, start + free - at - len);
        }
    }

    fn give(&mut self, address: u64, len: u64) {
        let boundary = self
            .region_starts
            .iter()
            .copied()
            .find(|&b| address < b && b < address + len);
        match boundary {
            Some(boundary) => {
                let below = rounded(boundary - address);
                self.give_range(boundary - below, below);
                self.give_range(boundary, rounded(address + len - boundary));
            }
            None => self.give_range(address, rounded(len)),
        }
    }

    fn give_range(&mut self, mut start: u64, mut len: u64) {
        if let Some((&before, &free)) = self.ranges.range(..start).next_back()
            && before + free == start
            && !self.region_starts.contains(&start)
        {
            self.ranges.remove(&before);
            (start, len) = (before, free + len);
        }
        let end = start + len;
        if !self.region_starts.contains(&end)
            && let Some(free) = self.ranges.remove(&end)
        {
            len += free;
        }
        self.ranges.insert(start, len);
    }
}

fn rounded(len: u64) -> u64 {
    len.max(1).next_multiple_of(ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_freed_can_be_had_again() {
        let memory = Memory::new(&[(0, 8192)]).unwrap();
        let first = memory.alloc(2000);
        let second = memory.alloc(2000);
        assert!(second.0 >= first.0 + 2000);
        memory.free(first, 2000);
        memory.free(second, 2000);
        assert_eq!(memory.alloc(4096), first);
    }

    #[test]
    fn a_buffer_may_cross_touching_regions() {
        let memory = Memory::new(&[(0, 65536), (65536, 65536), (1 << 20, 65536)]).unwrap();
        let buffer = memory.alloc_across(1001).unwrap();
        assert!(buffer.0 < 65536 && buffer.0 + 1001 > 65536);
        assert_eq!(
            memory.alloc_across(2),
            None,
            "the other two regions do not touch"
        );
        let bytes: Vec<u8> = (0..1001).map(|i| i as u8).collect();
        memory.write(buffer, &bytes);
        assert_eq!(memory.read(buffer, 1001), bytes);
        memory.free(buffer, 1001);
        assert_eq!(memory.alloc_across(1001), Some(buffer));
    }

    #[test]
    #[should_panic(expected = "is not in guest memory")]
    fn an_address_in_a_gap_is_the_tests_mistake() {
        Memory::new(&[(0, 4096), (8192, 4096)])
            .unwrap()
            .read(GuestAddress(4000), 200);
    }
}
