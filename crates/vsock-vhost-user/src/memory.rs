//! The types of guest memory and rings that the vhost-user crates hand us.

use vhost_user_backend::VringMutex;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// Guest memory as one table of regions.
pub(crate) type Memory = GuestMemoryMmap<()>;

/// Guest memory whose table the frontend may replace at any time.
pub(crate) type SharedMemory = GuestMemoryAtomic<Memory>;

/// A ring with its kick and call.
pub(crate) type Vring = VringMutex<SharedMemory>;

/// A contiguous piece of guest memory.
pub(crate) type Piece<'m> = vsock_packet::chain::Piece<'m, Memory>;
