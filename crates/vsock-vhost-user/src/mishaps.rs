//! System calls that go wrong now and then, as they may at any time: for the soak.
//!
//! Only a build with `--cfg mishaps` has any, and only if the variable `VSOCK_MISHAPS` gives
//! a seed. Elsewhere each function here is nothing. With `,momentary` after the seed nothing
//! fails for good.
//!
//! What is made up is what a kernel might do. A socket that is said to be full or empty is
//! soon said to be ready: the worker's epoll instance is made to tell of it again. So is a
//! socket of which only a part was read, as if the rest had come a moment later. Calls
//! that open something may fail for good; those on what is open never do.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

/// A system call that may go wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(not(mishaps), allow(dead_code))]
pub(crate) enum Call {
    /// Of data, in either direction.
    Transfer,
    /// Of a host application that waits.
    Accept,
    /// To a host application's socket.
    Connect,
    /// The first that watches a socket.
    Watch,
    /// For events.
    Wait,
}

/// What happens instead of a call on `fd`.
#[cfg(not(mishaps))]
#[inline(always)]
pub(crate) fn instead_of(_call: Call, _fd: BorrowedFd<'_>) -> Result<(), Errno> {
    Ok(())
}

/// The most bytes that the next call on `socket` moves.
#[cfg(not(mishaps))]
#[inline(always)]
pub(crate) fn limit(_socket: BorrowedFd<'_>) -> Limit {
    Limit
}

/// How `fd` is watched from now on.
#[cfg(not(mishaps))]
#[inline(always)]
pub(crate) fn note_watched(
    _epoll: &Arc<OwnedFd>,
    _fd: BorrowedFd<'_>,
    _token: u64,
    _flags: EventFlags,
) {
}

/// A bound for the bytes of one call.
#[derive(Clone, Copy, Debug)]
#[cfg(not(mishaps))]
pub(crate) struct Limit;

#[cfg(not(mishaps))]
impl Limit {
    /// How much of `len` bytes, which follow those asked for before, is within the bound.
    #[inline(always)]
    pub(crate) fn take(&mut self, len: usize) -> usize {
        len
    }
}

#[cfg(mishaps)]
pub(crate) use made_up::{instead_of, limit, note_watched};

#[cfg(mishaps)]
mod made_up {
    use std::cell::RefCell;
    use std::collections::HashMap;
    use std::os::fd::{AsRawFd, RawFd};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{LazyLock, Mutex, PoisonError, Weak};

    use rustix::event::epoll::{self, EventData};
    use tracing::info;

    use super::*;

    /// One call in so many that may fail for a moment does.
    const MOMENTARY: u64 = 8;
    /// One transfer in so many is cut short.
    const SHORT: u64 = 4;
    /// One call in so many that opens something fails.
    const FINAL: u64 = 64;
    /// The log tells of so many mishaps at a time.
    const TOLD: u64 = 256;

    static SETTING: LazyLock<Option<Setting>> = LazyLock::new(|| {
        let value = std::env::var("VSOCK_MISHAPS").ok()?;
        let (seed, kind) = value.split_once(',').unwrap_or((&value, ""));
        Some(Setting {
            seed: seed.parse().ok()?,
            only_momentary: kind == "momentary",
        })
    });
    static THREADS: AtomicU64 = AtomicU64::new(0);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    static WATCHED: LazyLock<Mutex<HashMap<RawFd, Watched>>> = LazyLock::new(Mutex::default);

    thread_local! {
        static STATE: RefCell<u64> = RefCell::new(
            SETTING
                .as_ref()
                .map_or(0, |setting| setting.seed)
                .wrapping_add(THREADS.fetch_add(1, Ordering::Relaxed) << 32),
        );
    }

    struct Setting {
        seed: u64,
        only_momentary: bool,
    }

    /// How a descriptor is watched. One that was closed may be here until its number is
    /// another's.
    struct Watched {
        epoll: Weak<OwnedFd>,
        token: u64,
        flags: EventFlags,
    }

    pub(crate) fn instead_of(call: Call, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        let error = match call {
            Call::Transfer if one_in(MOMENTARY) && tell_again(fd) => Errno::AGAIN,
            Call::Accept if fails_for_good() => Errno::MFILE,
            Call::Accept if one_in(MOMENTARY) => Errno::INTR,
            Call::Accept if one_in(MOMENTARY) && tell_again(fd) => Errno::AGAIN,
            Call::Connect if fails_for_good() => Errno::AGAIN,
            Call::Watch if fails_for_good() => Errno::NOMEM,
            Call::Wait if one_in(MOMENTARY) => Errno::INTR,
            _ => return Ok(()),
        };
        count();
        Err(error)
    }

    pub(crate) fn limit(socket: BorrowedFd<'_>) -> Limit {
        if !one_in(SHORT) || !tell_again(socket) {
            return Limit(usize::MAX);
        }
        count();
        // Of all orders of magnitude up to 64 KiB, and never nothing: that is the end.
        let most = 1 << (random() % 17);
        Limit(1 + (random() % most) as usize)
    }

    pub(crate) fn note_watched(
        epoll: &Arc<OwnedFd>,
        fd: BorrowedFd<'_>,
        token: u64,
        flags: EventFlags,
    ) {
        let epoll = Arc::downgrade(epoll);
        let watched = Watched {
            epoll,
            token,
            flags,
        };
        let mut all = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(fd.as_raw_fd(), watched);
    }

    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Limit(usize);

    impl Limit {
        pub(crate) fn take(&mut self, len: usize) -> usize {
            let taken = len.min(self.0);
            self.0 -= taken;
            taken
        }
    }

    /// Has what is ready on `fd` told once more. `false` when it is not watched.
    fn tell_again(fd: BorrowedFd<'_>) -> bool {
        let all = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&fd.as_raw_fd()).is_some_and(|watched| {
            let data = EventData::new_u64(watched.token);
            watched
                .epoll
                .upgrade()
                .is_some_and(|epoll| epoll::modify(&*epoll, fd, data, watched.flags).is_ok())
        })
    }

    fn one_in(many: u64) -> bool {
        SETTING.is_some() && random().is_multiple_of(many)
    }

    fn fails_for_good() -> bool {
        one_in(FINAL)
            && SETTING
                .as_ref()
                .is_some_and(|setting| !setting.only_momentary)
    }

    /// The next of the thread's pseudo-random numbers (xorshift*).
    fn random() -> u64 {
        STATE.with_borrow_mut(|state| {
            *state = (*state).max(1);
            *state ^= *state >> 12;
            *state ^= *state << 25;
            *state ^= *state >> 27;
            state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
        })
    }

    fn count() {
        let count = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_multiple_of(TOLD) {
            info!(count, "system calls went wrong, made up");
        }
    }
}
