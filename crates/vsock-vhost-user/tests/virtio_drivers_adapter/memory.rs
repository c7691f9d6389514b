//! DMA memory: pages of the testkit's guest memory, and bounce buffers for whatever the driver
//! shares with the device.

#![allow(unsafe_code, reason = "the driver's trait for memory is unsafe")]

use std::ptr::NonNull;
use std::sync::OnceLock;

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
use vm_memory::GuestAddress;
use vsock_testkit::Memory;

/// The memory of all guests of this process: the driver's trait has no place for an instance.
pub(crate) fn memory() -> &'static Memory {
    static MEMORY: OnceLock<Memory> = OnceLock::new();
    MEMORY.get_or_init(|| Memory::one_region().unwrap())
}

/// Guest memory, as the driver asks for it.
pub(crate) struct SharedMemory;

// SAFETY: each method says how it keeps its promise.
unsafe impl Hal for SharedMemory {
    // Fresh pages of a mapping that lives as long as the process, zeroed, and given to nobody
    // else until they are freed.
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let len = pages * PAGE_SIZE;
        let unaligned = memory().alloc(len + PAGE_SIZE);
        // What is skipped for alignment is never freed: a few pages for each test.
        let address = GuestAddress(unaligned.0.next_multiple_of(PAGE_SIZE as u64));
        memory().write(address, &vec![0; len]);
        (
            address.0,
            NonNull::new(memory().host_address(address)).unwrap(),
        )
    }

    // SAFETY: the caller gives back what `dma_alloc` gave, once.
    unsafe fn dma_dealloc(paddr: PhysAddr, _vaddr: NonNull<u8>, pages: usize) -> i32 {
        memory().free(GuestAddress(paddr), pages * PAGE_SIZE);
        0
    }

    // SAFETY: never called: there is no MMIO here.
    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        unreachable!("a vhost-user transport has no MMIO")
    }

    // SAFETY: the caller promises a valid range that nobody else accesses meanwhile.
    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        let bounce = memory().alloc(buffer.len());
        // SAFETY: as promised by the caller of `share`.
        memory().write(bounce, unsafe { buffer.as_ref() });
        bounce.0
    }

    // SAFETY: the caller promises a valid range that nobody else accesses meanwhile, and the
    // address that `share` gave for it.
    unsafe fn unshare(paddr: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        let bounce = GuestAddress(paddr);
        if direction != BufferDirection::DriverToDevice {
            let bytes = memory().read(bounce, buffer.len());
            // SAFETY: as promised by the caller of `unshare`.
            unsafe { buffer.as_mut() }.copy_from_slice(&bytes);
        }
        memory().free(bounce, buffer.len());
    }
}
