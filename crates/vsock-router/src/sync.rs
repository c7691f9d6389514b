//! What threads share, from the standard library; or, in a build with `--cfg shuttle`, from a
//! scheduler that tries out how threads may interleave (`cargo xtask interleavings`).

#[cfg(not(shuttle))]
pub(crate) use std::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic};

#[cfg(shuttle)]
pub(crate) use shuttle::sync::{
    Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic,
};
