//! One guest's device: its worker and its rings, as a frontend would have set them up.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_send_buffer_size;
use vhost_user_backend::VringT;
use virtio_queue::QueueT;
use vm_memory::GuestMemoryAtomic;
use vsock_packet::GuestCid;
use vsock_testkit::{Error, Guest, Memory, PacketRings, Setup, Transport, feature};

use crate::stop::Stop;
use crate::vring::Vring;
use crate::worker::{Cause, RX, TX, Worker};

thread_local! {
    static NOW: Cell<Instant> = Cell::new(Instant::now());
}

/// The time of the simulation.
pub(super) fn now() -> Instant {
    NOW.get()
}

/// Time goes by.
pub(super) fn pass(time: Duration) {
    NOW.set(NOW.get() + time);
}

/// What the guest has kicked.
#[derive(Clone, Default)]
pub(super) struct Kicks(Rc<[Cell<bool>; 2]>);

impl Transport for Kicks {
    fn kick(&mut self, queue: usize) -> Result<(), Error> {
        self.0[queue].set(true);
        Ok(())
    }

    fn wait(&mut self, _: Duration) -> Result<(), Error> {
        unreachable!("nobody waits here")
    }
}

pub(super) struct Device {
    pub(super) worker: Worker,
    rings: Vec<Vring>,
    kicks: Kicks,
    /// What a host socket takes at once, if that is to be little, in bytes.
    pub(super) socket_size: Option<usize>,
}

impl Device {
    /// A guest, and its device with all rings running.
    pub(super) fn start(mut worker: Worker, cid: GuestCid, setup: Setup) -> (Self, Guest<Kicks>) {
        worker.clock = now;
        let memory = Memory::new(&[(0, 32 << 20)]).unwrap();
        let shared = GuestMemoryAtomic::new(memory.map().clone());
        let (features, kicks) = (setup.features, Kicks::default());
        let setup = Setup {
            memory: Some(memory),
            ..setup
        };
        let mut rings = Vec::new();
        let guest = Guest::over(cid.cid(), setup, |packets| {
            rings = start_rings(packets, &shared, features);
            kicks.clone()
        });
        worker.set_features(features);
        worker.begin_session(shared, Arc::new(Stop::new().unwrap()));
        let mut device = Self {
            worker,
            rings,
            kicks,
            socket_size: None,
        };
        // Enabling a ring is an event, too.
        device.kicks.0.iter().for_each(|kick| kick.set(true));
        device.wake_up();
        (device, guest.unwrap())
    }

    /// The VM is stopped.
    pub(super) fn stop(&mut self) {
        for (index, ring) in self.rings.iter().enumerate() {
            ring.set_queue_ready(false);
            self.worker.stop_ring(index);
        }
    }

    /// The VM goes on; `afresh` with a driver that begins at the rings' start.
    pub(super) fn resume(&mut self, afresh: bool) {
        for (index, ring) in self.rings.iter().enumerate() {
            if afresh {
                ring.set_queue_next_avail(0);
                ring.set_queue_next_used(0);
            }
            ring.set_queue_ready(true);
            self.kicks.0[index].set(true);
        }
        self.wake_up();
    }

    /// The worker sees the rings; until then whoever asks for the guest is refused.
    fn wake_up(&mut self) {
        while self.has_kick() {
            self.run();
        }
    }

    fn has_kick(&self) -> bool {
        (0..self.rings.len()).any(|index| self.is_running(index) && self.kicks.0[index].get())
    }

    fn is_running(&self, index: usize) -> bool {
        self.rings[index].get_ref().get_queue().ready()
    }

    /// When the worker wants to be woken.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.worker.poller.armed()
    }

    /// One turn, if there is a reason for one, and what the worker does when there is none for
    /// another.
    pub(super) fn run(&mut self) -> bool {
        let ran = self.turn();
        if !self.has_kick() {
            self.worker.prepare_to_sleep();
        }
        ran
    }

    /// One turn, if there is a reason for one; another is to follow at once.
    pub(super) fn turn(&mut self) -> bool {
        let cause = if self.take_kick(TX) {
            Cause::Tx
        } else if self.take_kick(RX) {
            Cause::Rx
        } else if self.is_due() || self.is_ready() {
            Cause::Host
        } else {
            return false;
        };
        if self.worker.turn_with(cause, &self.rings) {
            self.worker.poller.waker().wake();
        }
        self.worker.poller.hold_timer();
        if let Some(bytes) = self.socket_size {
            self.worker.connections.for_each_socket(|socket| {
                set_socket_send_buffer_size(socket, bytes).unwrap();
            });
        }
        true
    }

    fn take_kick(&self, index: usize) -> bool {
        self.is_running(index) && self.kicks.0[index].take()
    }

    fn is_due(&mut self) -> bool {
        let is_due = self.deadline().is_some_and(|at| at <= now());
        if is_due {
            self.worker.poller.disarm();
        }
        is_due
    }

    fn is_ready(&self) -> bool {
        let mut fds = [PollFd::new(&self.worker.poller, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())) == Ok(1)
    }
}

fn start_rings(
    packets: &PacketRings,
    memory: &crate::memory::SharedMemory,
    features: u64,
) -> Vec<Vring> {
    let start = |ring: &vsock_testkit::Ring| {
        let vring = Vring::new(memory.clone(), ring.size()).unwrap();
        let [descriptors, available, used] = ring.addresses().map(|address| address.0);
        vring.set_queue_size(ring.size());
        vring.set_queue_info(descriptors, available, used).unwrap();
        vring.set_queue_event_idx(features & feature::EVENT_IDX != 0);
        vring.set_queue_ready(true);
        vring.set_enabled(true);
        vring
    };
    packets.rings().iter().map(start).collect()
}
