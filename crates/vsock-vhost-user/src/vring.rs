//! A ring as vhost-user-backend keeps it, with what it leaves to chance taken care of.
//!
//! Kick and call are descriptors of the VMM's choice, and shared with it, flags and all. The
//! crate reads and writes them plainly: it ends its worker when reading a kick fails, and
//! waits, perhaps under the ring's lock, where one blocks. Here neither waits or fails:
//! what cannot be used is a [`Fault`], for which the worker ends the session.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{OFlags, fcntl_getfl, fstatfs};
use rustix::io::{Errno, ReadWriteFlags, preadv2, read, write};
use vhost_user_backend::{VringMutex, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error as QueueError;
use vm_memory::GuestAddressSpace;

use crate::backend::lock;
use crate::fault::{Fault, FaultCell};
use crate::memory::SharedMemory;
use crate::memory_faults;

/// Times in a row that a kick may be signalled and then have nothing to read. Once in a
/// while that is a VMM which starts and stops a ring; always, it would keep the worker busy.
const IDLE_KICKS: u32 = 1000;

/// The file system that eventfds are in (`ANON_INODE_FS_MAGIC`), with other descriptors
/// that neither reading nor writing waits for anybody's file system.
const ANONYMOUS: i64 = 0x0904_1934;

/// A ring, shared by its clones.
#[derive(Clone)]
pub(crate) struct Vring {
    ring: VringMutex<SharedMemory>,
    memory: SharedMemory,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    kick: Mutex<Option<File>>,
    call: Mutex<Option<Arc<Call>>>,
    idle_kicks: AtomicU32,
    fault: FaultCell,
}

impl Vring {
    /// What is wrong with the ring, or with the memory it lies in.
    pub(crate) fn fault(&self) -> &FaultCell {
        &self.shared.fault
    }

    /// Notifies the driver. A VMM that does not read its call may miss that it is called
    /// for the 2^64th time, but holds up nobody.
    pub(crate) fn notify(&self) {
        let call = lock(&self.shared.call).clone();
        if let Some(call) = call {
            call.signal();
        }
    }

    /// Takes what the VMM has kicked since the last time.
    fn take_kick(&self) {
        let kick = lock(&self.shared.kick);
        let Some(kick) = &*kick else {
            return;
        };
        match read_now(kick) {
            Ok(true) => self.shared.idle_kicks.store(0, Ordering::Relaxed),
            Ok(false) => {
                let before = self.shared.idle_kicks.fetch_add(1, Ordering::Relaxed);
                if before >= IDLE_KICKS {
                    self.shared.fault.note(Fault::KickElsewhere);
                }
            }
            Err(_) => self.shared.fault.note(Fault::KickUnreadable),
        }
    }

    /// The two ends of a kick: one to wait for, for the crate, and one to read.
    fn split_kick(&self, kick: File) -> Option<(File, File)> {
        let kick = if is_anonymous(&kick) {
            kick
        } else {
            self.shared.fault.note(Fault::KickType);
            // The worker is to look, and find the fault.
            eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .ok()?
                .into()
        };
        let other = kick.try_clone();
        if other.is_err() {
            self.shared.fault.note(Fault::KickUnreadable);
        }
        Some((kick, other.ok()?))
    }
}

/// What notifies the driver.
struct Call {
    eventfd: File,
    /// The VMM has it so that a write waits while the counter is full.
    may_block: bool,
}

impl Call {
    fn new(eventfd: File) -> Self {
        let may_block = fcntl_getfl(&eventfd).is_ok_and(|flags| !flags.contains(OFlags::NONBLOCK));
        Self { eventfd, may_block }
    }

    fn signal(&self) {
        if self.may_block {
            signal(&self.eventfd);
        } else {
            // A VMM that gives us what cannot be written has chosen not to be notified.
            let _ = write(&self.eventfd, &1u64.to_ne_bytes());
        }
    }
}

/// Reads an eventfd without waiting, whether it would block or not. `false` when there is
/// nothing to read.
fn read_now(file: &File) -> Result<bool, Errno> {
    let mut count = [0; 8];
    let at_present = u64::MAX;
    let mut result = preadv2(
        file,
        &mut [IoSliceMut::new(&mut count)],
        at_present,
        ReadWriteFlags::NOWAIT,
    );
    // Linux before 5.8 does not know that of eventfds.
    if result == Err(Errno::OPNOTSUPP) && is_ready(file, PollFlags::IN) {
        result = read(file, &mut count);
    }
    match result {
        Ok(8) => Ok(true),
        Ok(_) => Err(Errno::IO),
        Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Signals an eventfd, unless that would have to wait.
///
/// Making the descriptor non-blocking instead would change it for the VMM too, which may
/// wait for it by reading; and the VMM could change it back.
fn signal(eventfd: &File) {
    if is_ready(eventfd, PollFlags::OUT) {
        let _ = write(eventfd, &1u64.to_ne_bytes());
    }
}

fn is_ready(file: &File, events: PollFlags) -> bool {
    let mut fds = [PollFd::new(file, events)];
    poll(&mut fds, Some(&Timespec::default())) == Ok(1) && fds[0].revents().contains(events)
}

fn is_anonymous(file: &File) -> bool {
    fstatfs(file).is_ok_and(|system| system.f_type == ANONYMOUS)
}

impl<'a> VringStateGuard<'a, SharedMemory> for Vring {
    type G = <VringMutex<SharedMemory> as VringStateGuard<'a, SharedMemory>>::G;
}

impl<'a> VringStateMutGuard<'a, SharedMemory> for Vring {
    type G = <VringMutex<SharedMemory> as VringStateMutGuard<'a, SharedMemory>>::G;
}

impl VringT<SharedMemory> for Vring {
    fn new(memory: SharedMemory, max_queue_size: u16) -> Result<Self, QueueError> {
        Ok(Self {
            ring: VringMutex::new(memory.clone(), max_queue_size)?,
            memory,
            shared: Arc::default(),
        })
    }

    fn set_kick(&self, file: Option<File>) {
        let replaces = file.is_some();
        let ends = file.and_then(|file| self.split_kick(file));
        let (watched, read) = ends.unzip();
        let old = std::mem::replace(&mut *lock(&self.shared.kick), read);
        if let (Some(old), true) = (old, replaces) {
            // The crate goes on waiting for it: what it is signalled for is done with.
            let _ = read_now(&old);
        }
        self.ring.set_kick(watched);
    }

    fn read_kick(&self) -> io::Result<bool> {
        self.take_kick();
        Ok(self.get_ref().is_enabled())
    }

    fn set_call(&self, file: Option<File>) {
        let (call, others): (Option<File>, _) = match file {
            Some(file) if !is_anonymous(&file) => (None, true),
            file => (file, false),
        };
        *lock(&self.shared.call) = call.map(|call| Arc::new(Call::new(call)));
        if others {
            self.shared.fault.note(Fault::CallType);
            // A kick of our own: the worker is to look, and find the fault.
            if let Some(kick) = &*lock(&self.shared.kick) {
                signal(kick);
            }
        }
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.notify();
        Ok(())
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        let memory = self.memory.memory();
        memory_faults::within(&memory, self.fault(), || self.ring.queue_used_idx())
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, SharedMemory>>::G {
        self.ring.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, SharedMemory>>::G {
        self.ring.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), QueueError> {
        self.ring.add_used(desc_index, len)
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.ring.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.ring.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.ring.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.ring.set_enabled(enabled);
    }

    fn set_queue_info(&self, descriptors: u64, avail: u64, used: u64) -> Result<(), QueueError> {
        self.ring.set_queue_info(descriptors, avail, used)
    }

    fn queue_next_avail(&self) -> u16 {
        self.ring.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.ring.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, index: u16) {
        self.ring.set_queue_next_used(index);
    }

    fn set_queue_size(&self, size: u16) {
        self.ring.set_queue_size(size);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.ring.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.ring.set_queue_ready(ready);
    }

    fn set_err(&self, file: Option<File>) {
        self.ring.set_err(file);
    }
}
