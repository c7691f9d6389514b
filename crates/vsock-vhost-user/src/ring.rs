//! One pass over a ring: chains are taken and returned, and what was returned is
//! published once.
//!
//! `virtio-queue` publishes the used index with every entry. Here the entries of a pass
//! are written as they come and the index once, with the decision whether the driver
//! wants to be notified (§2.7.7, §2.7.8). It also looks up where the ring lies at every
//! access; here that is done once a pass.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use crate::memory::{Memory, Piece, Region};

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (§2.7.6).
const AVAIL_NO_INTERRUPT: u16 = 1;

/// `VIRTQ_DESC_F_WRITE` and no other flag (§2.7.5).
const DESC_WRITE: u16 = 2;

/// A pass over the ring behind a [`Queue`].
pub(crate) struct RingPass<'q, 'm> {
    queue: &'q mut Queue,
    places: Places<'m>,
    areas: Areas<'m>,
    /// The driver's index, when it was last looked at.
    available: u16,
    /// Where the next used entry goes; published are those before the queue's own.
    next_used: u16,
    /// Chains that may still be taken: a driver that refills as fast as we take must not
    /// make a pass last for ever.
    left: u16,
}

/// The areas of a ring, each within one region of guest memory.
struct Areas<'m> {
    table: Piece<'m>,
    available: Piece<'m>,
    used: Piece<'m>,
}

impl<'m> Areas<'m> {
    fn of(queue: &Queue, places: &mut Places<'m>) -> Option<Self> {
        let size = usize::from(queue.size());
        let mut area = |address, len| places.slice(GuestAddress(address), len);
        Some(Self {
            table: area(queue.desc_table(), 16 * size)?,
            available: area(queue.avail_ring(), 6 + 2 * size)?,
            used: area(queue.used_ring(), 6 + 8 * size)?,
        })
    }
}

/// Finds pieces of guest memory, which are most often in the same region as the last one.
struct Places<'m> {
    mem: &'m Memory,
    last: Option<&'m Region>,
}

impl<'m> Places<'m> {
    #[inline(always)]
    fn slice(&mut self, address: GuestAddress, len: usize) -> Option<Piece<'m>> {
        let last = self
            .last
            .and_then(|last| Some((last, last.to_region_addr(address)?)));
        let (region, at) = match last {
            Some(found) => found,
            None => self.search(address)?,
        };
        region.get_slice(at, len).ok()
    }

    #[cold]
    fn search(&mut self, address: GuestAddress) -> Option<(&'m Region, MemoryRegionAddress)> {
        let found = self.mem.to_region_addr(address);
        self.last = found.map(|(region, _)| region);
        found
    }
}

impl<'q, 'm> RingPass<'q, 'm> {
    /// Begins a pass; `None` when the ring is not started, or not in guest memory.
    pub(crate) fn begin(queue: &'q mut Queue, mem: &'m Memory) -> Option<Self> {
        if !queue.ready() {
            return None;
        }
        let mut places = Places { mem, last: None };
        Some(Self {
            areas: Areas::of(queue, &mut places)?,
            places,
            available: queue.next_avail(),
            next_used: queue.next_used(),
            left: queue.size(),
            queue,
        })
    }

    /// Whether the pass has taken as many chains as the ring is long: time for another.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.left == 0
    }

    /// Takes no more in this pass.
    pub(crate) fn exhaust(&mut self) {
        self.left = 0;
    }

    /// Takes the next chain the driver has made available. A driver that moved its index
    /// further than its ring is long has broken the ring: nothing more comes of it.
    pub(crate) fn next_chain(&mut self) -> Option<DescriptorChain<&'m Memory>> {
        let left = self.left.checked_sub(1)?;
        if !self.has_next() {
            return None;
        }
        let chain = self.queue.iter(self.places.mem).ok()?.next()?;
        self.left = left;
        Some(chain)
    }

    /// Whether the driver has made a chain available, and has not broken its index.
    #[inline]
    fn has_next(&mut self) -> bool {
        self.knows_next() || self.look() && self.knows_next()
    }

    fn knows_next(&self) -> bool {
        let ahead = self.available.wrapping_sub(self.queue.next_avail());
        (1..=self.queue.size()).contains(&ahead)
    }

    /// Looks at the driver's index; `false` when that is impossible.
    #[cold]
    fn look(&mut self) -> bool {
        let Ok(index) = self.areas.available.load(2, Ordering::Acquire) else {
            return false;
        };
        self.available = u16::from_le(index);
        true
    }

    /// Takes the next chain if it is what most drivers post to receive: one descriptor to
    /// write to, in one region. Any other is left to [`Self::next_chain`].
    pub(crate) fn next_buffer(&mut self) -> Option<(u16, Piece<'m>)> {
        let left = self.left.checked_sub(1)?;
        if !self.has_next() {
            return None;
        }
        let next = self.queue.next_avail();
        let entry = 4 + 2 * usize::from(next % self.queue.size());
        let head = self.areas.available.load(entry, Ordering::Relaxed).ok()?;
        let head = u16::from_le(head);
        // One beyond the table is not read.
        let at = 16 * usize::from(head);
        let load = |at| self.areas.table.load::<u64>(at, Ordering::Relaxed);
        let address = GuestAddress(u64::from_le(load(at).ok()?));
        let rest = u64::from_le(load(at + 8).ok()?);
        let (len, flags) = (rest as u32, (rest >> 32) as u16);
        if flags != DESC_WRITE {
            return None;
        }
        let piece = self.places.slice(address, len as usize)?;
        self.left = left;
        self.queue.set_next_avail(next.wrapping_add(1));
        Some((head, piece))
    }

    /// Gives back the last `count` chains taken, none of them returned: they come again.
    pub(crate) fn put_back(&mut self, count: u16) {
        self.left += count;
        self.queue
            .set_next_avail(self.queue.next_avail().wrapping_sub(count));
    }

    /// Returns a chain, `len` bytes of it written.
    pub(crate) fn add_used(&mut self, head: u16, len: u32) -> Result<(), Error> {
        let size = self.queue.size();
        if head >= size {
            return Err(Error::InvalidDescriptorIndex);
        }
        let entry = 4 + 8 * usize::from(self.next_used % size);
        let store = |value: u32, at| self.areas.used.store(value.to_le(), at, Ordering::Relaxed);
        store(u32::from(head), entry).map_err(volatile)?;
        store(len, entry + 4).map_err(volatile)?;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(())
    }

    /// Publishes what was returned. `true` when the driver wants to know.
    pub(crate) fn publish(&mut self) -> Result<bool, Error> {
        let published = self.queue.next_used();
        if self.next_used == published {
            return Ok(false);
        }
        self.areas
            .used
            .store(self.next_used.to_le(), 2, Ordering::Release)
            .map_err(volatile)?;
        self.queue.set_next_used(self.next_used);
        // The index must be visible before the driver's wish is read: it does the reverse.
        fence(Ordering::SeqCst);
        if !self.queue.event_idx_enabled() {
            return Ok(self.load_available(0)? & AVAIL_NO_INTERRUPT == 0);
        }
        let used_event = self.load_available(4 + 2 * usize::from(self.queue.size()))?;
        let since_event = self.next_used.wrapping_sub(used_event).wrapping_sub(1);
        Ok(since_event < self.next_used.wrapping_sub(published))
    }

    fn load_available(&self, offset: usize) -> Result<u16, Error> {
        self.areas
            .available
            .load(offset, Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(volatile)
    }

    /// Asks the driver not to kick while we look anyway.
    pub(crate) fn disable_kicks(&mut self) {
        // A ring outside memory shows when it is used.
        let _ = self.queue.disable_notification(self.places.mem);
    }

    /// Whether there is a chain to take.
    pub(crate) fn is_ready(&mut self) -> bool {
        self.look() && self.knows_next()
    }

    /// Asks for a kick with the next chain. `true` when one is there already.
    pub(crate) fn enable_kicks(&mut self) -> bool {
        let (wish, at) = if self.queue.event_idx_enabled() {
            let avail_event = 4 + 8 * usize::from(self.queue.size());
            (self.queue.next_avail(), avail_event)
        } else {
            (0, 0)
        };
        let told = self.areas.used.store(wish.to_le(), at, Ordering::Relaxed);
        // The wish must be visible before the driver's index is read: it does the reverse.
        fence(Ordering::SeqCst);
        told.is_ok() && self.look() && self.knows_next()
    }
}

fn volatile(error: vm_memory::VolatileMemoryError) -> Error {
    Error::GuestMemory(error.into())
}

#[cfg(test)]
mod tests {
    use virtio_queue::desc::RawDescriptor;
    use virtio_queue::desc::split::Descriptor;
    use virtio_queue::mock::MockSplitQueue;

    use super::*;

    const SIZE: u16 = 8;

    fn memory() -> Memory {
        Memory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap()
    }

    fn ring(mem: &Memory, chains: u16) -> (MockSplitQueue<'_, Memory>, Queue) {
        let driver = MockSplitQueue::new(mem, SIZE);
        for index in 0..chains {
            let descriptor = Descriptor::new(0x8000, 16, 0, 0);
            driver
                .desc_table()
                .store(index, RawDescriptor::from(descriptor))
                .unwrap();
            driver
                .avail()
                .ring()
                .ref_at(index as usize)
                .unwrap()
                .store(index);
        }
        driver.avail().idx().store(chains);
        let queue = driver.create_queue().unwrap();
        (driver, queue)
    }

    fn used_index(driver: &MockSplitQueue<'_, Memory>) -> u16 {
        u16::from_le(driver.used().idx().load())
    }

    #[test]
    fn publishes_once_for_all_it_returned() {
        let mem = memory();
        let (driver, mut queue) = ring(&mem, 3);
        let mut pass = RingPass::begin(&mut queue, &mem).unwrap();
        while let Some(chain) = pass.next_chain() {
            pass.add_used(chain.head_index(), 7).unwrap();
            assert_eq!(used_index(&driver), 0);
        }
        assert!(pass.publish().unwrap());
        assert_eq!(used_index(&driver), 3);
        assert!(!pass.publish().unwrap(), "nothing new");
        let element = driver.used().ring().ref_at(2).unwrap().load();
        assert_eq!((element.id(), element.len()), (2, 7));
    }

    #[test]
    fn what_is_put_back_comes_again() {
        let mem = memory();
        let (_, mut queue) = ring(&mem, 3);
        let mut pass = RingPass::begin(&mut queue, &mem).unwrap();
        for _ in 0..3 {
            pass.next_chain().unwrap();
        }
        pass.put_back(2);
        assert_eq!(pass.next_chain().unwrap().head_index(), 1);
    }

    #[test]
    fn a_buffer_of_one_descriptor_is_taken_at_once_and_any_other_left_alone() {
        let mem = memory();
        let (driver, mut queue) = ring(&mem, 4);
        let write = DESC_WRITE;
        let set = |index, descriptor: Descriptor| {
            let raw = RawDescriptor::from(descriptor);
            driver.desc_table().store(index, raw).unwrap();
        };
        set(0, Descriptor::new(0x8000, 16, write, 0));
        set(1, Descriptor::new(0x8000, 16, write | 1, 2));
        set(2, Descriptor::new(0x8000, 16, write, 0));
        set(3, Descriptor::new(0xfff8, 16, write, 0));
        let mut pass = RingPass::begin(&mut queue, &mem).unwrap();
        for _ in 0..2 {
            let (head, piece) = pass.next_buffer().unwrap();
            assert_eq!((head, piece.len()), (0, 16));
            pass.put_back(1);
        }
        assert_eq!(pass.next_chain().unwrap().head_index(), 0);
        for chain in [1, 3] {
            assert!(pass.next_buffer().is_none());
            assert_eq!(pass.next_chain().unwrap().head_index(), chain);
            if chain == 1 {
                assert_eq!(pass.next_buffer().unwrap().0, 2);
            }
        }
        assert!(pass.next_buffer().is_none(), "there is none");
        driver.avail().idx().store(5);
        assert!(pass.next_buffer().is_some(), "one was added");
        driver.avail().idx().store(5 + SIZE + 1);
        assert!(pass.next_buffer().is_none(), "the index is broken");
    }

    #[test]
    fn a_ring_that_leaves_memory_has_no_pass() {
        let mem = memory();
        let (_, mut queue) = ring(&mem, 1);
        queue.set_used_ring_address(Some(0xfffc), Some(0));
        assert!(RingPass::begin(&mut queue, &mem).is_none());
    }

    #[test]
    fn a_stopped_ring_has_no_pass() {
        let mem = memory();
        let (_, mut queue) = ring(&mem, 1);
        queue.set_ready(false);
        assert!(RingPass::begin(&mut queue, &mem).is_none());
    }

    #[test]
    fn a_broken_available_index_ends_the_ring() {
        let mem = memory();
        let (driver, mut queue) = ring(&mem, 1);
        driver.avail().idx().store(SIZE + 1);
        let mut pass = RingPass::begin(&mut queue, &mem).unwrap();
        assert!(pass.next_chain().is_none());
        assert!(!pass.enable_kicks());
    }

    #[test]
    fn a_head_outside_the_ring_is_refused() {
        let mem = memory();
        let (_, mut queue) = ring(&mem, 1);
        let mut pass = RingPass::begin(&mut queue, &mem).unwrap();
        assert!(pass.add_used(SIZE, 0).is_err());
    }

    #[test]
    fn notifies_as_the_driver_asked() {
        let mem = memory();
        let (_, mut queue) = ring(&mem, 4);
        queue.set_event_idx(true);
        let used_event = GuestAddress(queue.avail_ring() + 4 + 2 * u64::from(SIZE));
        let wants_after = |value: u16| mem.write_obj(value.to_le(), used_event).unwrap();
        let mut pass = RingPass::begin(&mut queue, &mem).unwrap();
        let mut use_one = || {
            let head = pass.next_chain().unwrap().head_index();
            pass.add_used(head, 0).unwrap();
            pass.publish().unwrap()
        };
        wants_after(0);
        assert!(use_one());
        wants_after(2);
        assert!(!use_one());
        assert!(use_one());
        assert!(!use_one());
    }

    #[test]
    fn heeds_the_flag_of_a_driver_without_event_idx() {
        let mem = memory();
        let (_, mut queue) = ring(&mem, 1);
        mem.write_obj(AVAIL_NO_INTERRUPT.to_le(), GuestAddress(queue.avail_ring()))
            .unwrap();
        let mut pass = RingPass::begin(&mut queue, &mem).unwrap();
        let head = pass.next_chain().unwrap().head_index();
        pass.add_used(head, 0).unwrap();
        assert!(!pass.publish().unwrap());
    }
}
