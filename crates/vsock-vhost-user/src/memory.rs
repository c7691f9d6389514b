//! The types of guest memory that the vhost-user crates hand us.

use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap, GuestRegionMmap};

/// Guest memory as one table of regions.
pub(crate) type Memory = GuestMemoryMmap<()>;

/// One region of it.
pub(crate) type Region = GuestRegionMmap<()>;

/// Guest memory whose table the frontend may replace at any time.
pub(crate) type SharedMemory = GuestMemoryAtomic<Memory>;

/// A contiguous piece of guest memory.
pub(crate) type Piece<'m> = vsock_packet::chain::Piece<'m, Memory>;
