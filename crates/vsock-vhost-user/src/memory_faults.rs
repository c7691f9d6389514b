//! Guest memory that is gone: a fault of that guest's, and nobody else's.
//!
//! Guest memory is a file that the VMM shares. A VMM that truncates it makes the next
//! access a fault: EFAULT where the kernel copies, SIGBUS where this process does, which
//! would end it with all its guests. So every pass over guest memory is made
//! [`within`] a scope that says whose memory it is, and the signal's handler gives a
//! region that is gone zeros to read and write, for as long as it takes to end the
//! guest's session.
//!
//! ```text
//!   within(memory of A) ─▶ within(memory of B) ─▶ copy ─▶ SIGBUS at an address
//!                                                            │ on the same thread
//!      A's fault cell ◀─ or ─ B's fault cell ◀── whose region is it? ── none ─▶ the
//!                                                                    former handler
//! ```
//!
//! The scopes are a list on the thread's own stack: the handler, which runs on the thread
//! that has the fault, reads what that thread itself wrote, takes no lock and allocates
//! nothing.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{Ordering, compiler_fence};

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::fault::{Fault, FaultCell};
use crate::memory::Memory;

/// Memory in use by this thread.
struct Scope {
    memory: *const Memory,
    fault: *const FaultCell,
    outer: *const Self,
}

thread_local! {
    /// The innermost scope of this thread. Without a destructor or a lazy beginning, so
    /// that a signal handler may look at it.
    static INNERMOST: Cell<*const Scope> = const { Cell::new(ptr::null()) };
}

/// Does some work on guest memory. What of it turns out to be gone is noted in `fault`.
pub(crate) fn within<R>(memory: &Memory, fault: &FaultCell, work: impl FnOnce() -> R) -> R {
    let scope = Scope {
        memory,
        fault,
        outer: INNERMOST.get(),
    };
    INNERMOST.set(&raw const scope);
    // Nothing of the work is done before the handler can know of it.
    compiler_fence(Ordering::SeqCst);
    let _leave = Leave(scope.outer);
    work()
}

/// Leaves a scope, also when the work panics.
struct Leave(*const Scope);

impl Drop for Leave {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        INNERMOST.set(self.0);
    }
}

/// A system call met memory that is gone (EFAULT): it is the innermost scope's.
pub(crate) fn note_efault() {
    let scope = INNERMOST.get();
    if !scope.is_null() {
        // SAFETY: `within` keeps the scope, and what it points to, until it has left it.
        unsafe { (*(*scope).fault).note(Fault::MemoryLost) };
    }
}

/// Has this process outlive a VMM that truncates its guest's memory: from now on that is
/// the end of the guest's session, with a warning, instead of a SIGBUS that ends the
/// process.
///
/// Signal handlers belong to the process, so this is its owner's to call, once, before
/// guests are served. A SIGBUS that is no guest's goes to the handler that was there
/// before; a handler installed later has to do likewise.
///
/// # Errors
///
/// Those of `sigaction(2)`.
pub fn catch_memory_faults() -> io::Result<()> {
    let former = change_handler(None)?;
    if FORMER.set(former).is_err() {
        return Ok(());
    }
    // SAFETY: all-zero is a valid `sigaction`: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(_, _, _) = handle;
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    change_handler(Some(&action)).map(drop)
}

/// Who had SIGBUS before.
static FORMER: OnceLock<libc::sigaction> = OnceLock::new();

fn change_handler(new: Option<&libc::sigaction>) -> io::Result<libc::sigaction> {
    // SAFETY: all-zero is a valid `sigaction`, to be overwritten.
    let mut former = unsafe { std::mem::zeroed() };
    // SAFETY: both point to values that live during the call, or to nothing.
    let result = unsafe {
        let new = new.map_or(ptr::null(), ptr::from_ref);
        libc::sigaction(libc::SIGBUS, new, &raw mut former)
    };
    match result {
        0 => Ok(former),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn handle(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel's, valid while the handler runs; an address comes with SIGBUS.
    let address = unsafe { (*info).si_addr() } as usize;
    // SAFETY: errno is this thread's own; the interrupted code may be about to read it.
    let errno = unsafe { *libc::__errno_location() };
    if !replace_region(address) {
        forward(signal, info, context);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Puts zeros in the place of the region that an address is in. `false` when it is in no
/// memory that this thread uses.
fn replace_region(address: usize) -> bool {
    let mut scope = INNERMOST.get();
    while !scope.is_null() {
        // SAFETY: `within` keeps the scopes of this thread, and what they point to, until
        // it has left them; the interrupted thread is within.
        let (memory, fault) = unsafe { (&*(*scope).memory, &*(*scope).fault) };
        for region in memory.iter() {
            let (start, len) = (region.as_ptr(), region.len() as usize);
            if (start as usize..start as usize + len).contains(&address) {
                fault.note(Fault::MemoryLost);
                return map_zeros(start, len);
            }
        }
        // SAFETY: as above.
        scope = unsafe { (*scope).outer };
    }
    false
}

fn map_zeros(start: *mut u8, len: usize) -> bool {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: exactly the pages of a region that is mapped, and stays so until its owner
    // unmaps as many pages. Guest memory changes at any time, so that it does is nothing
    // new to those who use it.
    let place = unsafe { libc::mmap(start.cast(), len, protection, kind, -1, 0) };
    place == start.cast()
}

/// Leaves a signal to whoever had it before.
fn forward(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let (action, flags) = FORMER.get().map_or((libc::SIG_DFL, 0), |former| {
        (former.sa_sigaction, former.sa_flags)
    });
    match action {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: a plain system call; SIGBUS ends the process when this returns.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                libc::raise(signal);
            }
        }
        // SAFETY: the kernel would call this function with these arguments, if it were
        // still installed.
        _ if flags & libc::SA_SIGINFO != 0 => unsafe {
            let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                std::mem::transmute(action);
            handler(signal, info, context);
        },
        // SAFETY: likewise.
        _ => unsafe {
            let handler: extern "C" fn(i32) = std::mem::transmute(action);
            handler(signal);
        },
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use vm_memory::{Bytes, FileOffset, GuestAddress};

    use super::*;

    const LEN: usize = 1 << 16;

    /// Memory, and the file behind it.
    fn memory() -> (Memory, FileOffset) {
        let fd = memfd_create("memory", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, LEN as u64).unwrap();
        let file = FileOffset::new(fd.into(), 0);
        let range = (GuestAddress(0), LEN, Some(file.clone()));
        (Memory::from_ranges_with_files([range]).unwrap(), file)
    }

    #[test]
    fn memory_that_is_gone_is_a_fault_of_its_owners() {
        catch_memory_faults().unwrap();
        let [(outer, _), (inner, file)] = [memory(), memory()];
        let [of_outer, of_inner] = [FaultCell::default(), FaultCell::default()];
        ftruncate(file.file(), 0).unwrap();
        within(&outer, &of_outer, || {
            within(&inner, &of_inner, || {
                outer.write_obj(7u64, GuestAddress(8)).unwrap();
                inner.write_obj(7u64, GuestAddress(LEN as u64 - 8)).unwrap();
            });
            assert_eq!(outer.read_obj::<u64>(GuestAddress(8)).unwrap(), 7);
        });
        assert_eq!(of_outer.get(), None);
        assert_eq!(of_inner.get(), Some(Fault::MemoryLost));
    }

    #[test]
    fn the_owner_may_be_in_an_outer_scope() {
        catch_memory_faults().unwrap();
        let [(outer, file), (inner, _)] = [memory(), memory()];
        let [of_outer, of_inner] = [FaultCell::default(), FaultCell::default()];
        ftruncate(file.file(), 0).unwrap();
        within(&outer, &of_outer, || {
            within(&inner, &of_inner, || {
                assert_eq!(outer.read_obj::<u64>(GuestAddress(8)).unwrap(), 0);
            });
        });
        assert_eq!(of_outer.get(), Some(Fault::MemoryLost));
        assert_eq!(of_inner.get(), None);
    }

    #[test]
    fn a_scope_ends_with_a_panic() {
        let (memory, _) = memory();
        let fault = FaultCell::default();
        let panics = || within(&memory, &fault, || panic!("as expected"));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).unwrap_err();
        note_efault();
        assert_eq!(fault.get(), None);
    }
}
