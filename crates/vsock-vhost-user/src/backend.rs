//! The device as vhost-user-backend sees it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::warn;
use vhost::vhost_user::Backend as FrontendChannel;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::VhostUserBackend;
use virtio_bindings::bindings::{virtio_config, virtio_ring};
use vm_memory::{GuestAddressSpace, GuestMemoryBackend};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};
use vsock_packet::{Config, Features};

use crate::fault::Fault;
use crate::memory::SharedMemory;
use crate::vring::Vring;
use crate::worker::{Cause, RX, TX, Worker};

/// Rings of the device: RX, TX and events (virtio 1.4, §5.10.2). QEMU keeps the last one
/// to itself.
const NUM_QUEUES: usize = 3;

/// The token under which the worker's poller is watched; those up to the number of
/// queues are the crate's.
pub(crate) const POLLER_TOKEN: u64 = NUM_QUEUES as u64 + 1;

/// The most regions a guest's memory may have, as the crate tells frontends
/// (GET_MAX_MEM_SLOTS). Each takes a descriptor and a mapping, which all guests share.
const MAX_REGIONS: usize = 509;

/// VHOST_USER_F_PROTOCOL_FEATURES.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// One frontend's view of a guest's device.
pub(crate) struct Backend {
    worker: Arc<Mutex<Worker>>,
    config: Config,
    queue_size: u16,
    /// The exit event's descriptor, which the crate is given and never closes.
    exit_fd: Mutex<Option<RawFd>>,
    /// The way to ask the frontend for something. Nothing is asked, but a frontend takes
    /// its closing for a fault.
    channel: Mutex<Option<FrontendChannel>>,
}

impl Backend {
    pub(crate) fn new(worker: Arc<Mutex<Worker>>, config: Config, queue_size: u16) -> Self {
        Self {
            worker,
            config,
            queue_size,
            exit_fd: Mutex::default(),
            channel: Mutex::default(),
        }
    }

    fn worker(&self) -> MutexGuard<'_, Worker> {
        lock(&self.worker)
    }

    /// The exit event's descriptor, to be closed when nobody waits for it any more.
    pub(crate) fn take_exit_fd(&self) -> Option<RawFd> {
        lock(&self.exit_fd).take()
    }
}

/// Locks, also after a panic elsewhere: that is no reason for another one here.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        NUM_QUEUES
    }

    fn max_queue_size(&self) -> usize {
        self.queue_size.into()
    }

    fn features(&self) -> u64 {
        1 << virtio_config::VIRTIO_F_VERSION_1
            | 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC
            | 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX
            | PROTOCOL_FEATURES
            | Features::all().bits()
    }

    fn acked_features(&self, features: u64) {
        self.worker().set_features(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn reset_device(&self) {
        self.worker().reset();
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The rings know.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        // A size other than asked for is an error to the frontend.
        self.config.read(offset, size).unwrap_or_default()
    }

    /// Each pass takes its own view of the memory. The crate tells frontends how many
    /// regions there may be, and takes any number.
    fn update_memory(&self, memory: SharedMemory) -> io::Result<()> {
        let count = memory.memory().num_regions();
        if count > MAX_REGIONS {
            let guest = self.config.guest_cid;
            warn!(%guest, count, "the frontend has more memory regions than there may be");
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(())
    }

    fn set_backend_req_fd(&self, channel: FrontendChannel) {
        *lock(&self.channel) = Some(channel);
    }

    fn exit_event(&self, _thread_index: usize) -> Option<(EventConsumer, EventNotifier)> {
        let flags = EventFlag::NONBLOCK | EventFlag::CLOEXEC;
        match new_event_consumer_and_notifier(flags) {
            Ok((consumer, notifier)) => {
                *lock(&self.exit_fd) = Some(consumer.as_raw_fd());
                Some((consumer, notifier))
            }
            Err(error) => {
                warn!(%error, "no exit event for the worker");
                None
            }
        }
    }

    fn stop_vring(&self, queue_index: u32) -> io::Result<()> {
        self.worker().stop_ring(queue_index as usize);
        Ok(())
    }

    /// Neither an error nor a panic: the crate ends the worker on one, and nobody learns it.
    fn handle_event(
        &self,
        device_event: u16,
        _events: EventSet,
        vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        let cause = match usize::from(device_event) {
            RX => Cause::Rx,
            TX => Cause::Tx,
            _ if u64::from(device_event) == POLLER_TOKEN => Cause::Host,
            _ => return Ok(()),
        };
        let turn = AssertUnwindSafe(|| self.worker().turns_with(cause, vrings));
        if catch_unwind(turn).is_err() {
            // What the worker has of this session may be anything: it ends, and with it all
            // connections.
            self.worker().condemn(Fault::Panic);
        }
        Ok(())
    }
}
