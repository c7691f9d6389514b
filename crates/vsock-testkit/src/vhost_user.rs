//! The frontend's side of a vhost-user connection, in the order QEMU does things.

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vsock_packet::{Config, Features};

use crate::{Error, Memory, Ring, Transport};

/// `VHOST_USER_F_PROTOCOL_FEATURES`.
const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// Virtio feature bits a driver may ask for.
pub mod feature {
    use super::{
        Features, VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
    };

    /// A device of virtio 1.0 or later.
    pub const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
    /// Chains may be listed in indirect tables.
    pub const INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
    /// Notifications are suppressed by index rather than by flag.
    pub const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
    /// All that a Linux guest asks for.
    pub const LINUX: u64 = VERSION_1
        | INDIRECT_DESC
        | EVENT_IDX
        | Features::STREAM.bits()
        | Features::SEQPACKET.bits();
}

/// The eventfds of one ring.
#[derive(Debug)]
struct Notifiers {
    kick: EventFd,
    call: EventFd,
}

/// Protocol features a frontend may ask for.
pub use vhost::vhost_user::message::VhostUserProtocolFeatures as ProtocolFeatures;

/// A connection to a vhost-user back end.
pub struct VhostUser {
    frontend: Frontend,
    memory: Memory,
    offered: u64,
    negotiated: u64,
    offered_protocol: ProtocolFeatures,
    protocol: ProtocolFeatures,
    /// The regions were told one by one.
    slots_told: bool,
    /// Our end of the channel on which the back end may ask for something.
    _channel: Option<UnixStream>,
    guest_cid: u64,
    notifiers: Vec<Notifiers>,
    calls: Epoll,
}

impl VhostUser {
    /// The protocol features QEMU asks for, of those a vsock device has use for.
    pub const QEMU: ProtocolFeatures = ProtocolFeatures::MQ
        .union(ProtocolFeatures::REPLY_ACK)
        .union(ProtocolFeatures::BACKEND_REQ)
        .union(ProtocolFeatures::CONFIG)
        .union(ProtocolFeatures::RESET_DEVICE)
        .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS);

    /// Connects, negotiates those of the `wanted` features the back end offers and reads
    /// the guest's CID. `memory` is shared when the rings start.
    ///
    /// # Errors
    ///
    /// [`Error::VhostUser`], naming the request that failed.
    pub fn connect(
        socket: &Path,
        queues: usize,
        wanted: u64,
        wanted_protocol: ProtocolFeatures,
        memory: &Memory,
    ) -> Result<Self, Error> {
        let mut frontend = Frontend::connect(socket, queues as u64)
            .map_err(Error::vhost_user("connect to the back end"))?;
        let offered = frontend
            .get_features()
            .map_err(Error::vhost_user("GET_FEATURES"))?;
        let offered_protocol = frontend
            .get_protocol_features()
            .map_err(Error::vhost_user("GET_PROTOCOL_FEATURES"))?;
        let protocol = offered_protocol & wanted_protocol;
        let channel = set_protocol(&mut frontend, protocol)?;
        frontend
            .set_owner()
            .map_err(Error::vhost_user("SET_OWNER"))?;
        let mut this = Self {
            guest_cid: read_cid(&mut frontend)?,
            frontend,
            memory: memory.clone(),
            offered,
            negotiated: 0,
            offered_protocol,
            protocol,
            slots_told: false,
            _channel: channel,
            notifiers: Vec::new(),
            calls: Epoll::new().map_err(Error::io("epoll_create"))?,
        };
        this.set_features(wanted)?;
        Ok(this)
    }

    /// The CID in the device's configuration space.
    pub fn guest_cid(&self) -> u64 {
        self.guest_cid
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The virtio features the back end offers.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// The virtio features in use.
    pub fn negotiated(&self) -> u64 {
        self.negotiated
    }

    /// The protocol features the back end offers.
    pub fn offered_protocol_features(&self) -> ProtocolFeatures {
        self.offered_protocol
    }

    /// The connection itself, for requests of which there is no method here.
    pub fn frontend(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// Sets those of the `wanted` features the back end offers.
    ///
    /// # Errors
    ///
    /// [`Error::VhostUser`].
    pub fn set_features(&mut self, wanted: u64) -> Result<(), Error> {
        self.negotiated = (wanted | F_PROTOCOL_FEATURES) & self.offered;
        let step = Error::vhost_user("SET_FEATURES");
        self.frontend.set_features(self.negotiated).map_err(step)
    }

    /// Tells the back end of the guest's memory: region by region, once, when
    /// CONFIGURE_MEM_SLOTS is negotiated; else the whole table, each time.
    ///
    /// # Errors
    ///
    /// [`Error::VhostUser`].
    pub fn share_memory(&mut self) -> Result<(), Error> {
        let regions = self
            .memory
            .map()
            .iter()
            .map(VhostUserMemoryRegionInfo::from_guest_region);
        let regions = regions
            .collect::<Result<Vec<_>, _>>()
            .map_err(Error::vhost_user("memory regions"))?;
        if !self
            .protocol
            .contains(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
        {
            let shared = self.frontend.set_mem_table(&regions);
            return shared.map(drop).map_err(Error::vhost_user("SET_MEM_TABLE"));
        }
        if !std::mem::replace(&mut self.slots_told, true) {
            for region in &regions {
                let added = self.frontend.add_mem_region(region);
                added.map_err(Error::vhost_user("ADD_MEM_REG"))?;
            }
        }
        Ok(())
    }

    /// Starts the rings at these bases, with new eventfds, and enables them. Features and
    /// memory are told again first, as QEMU does each time.
    ///
    /// # Errors
    ///
    /// [`Error::VhostUser`], or [`Error::Io`] when the system gives no eventfd.
    pub fn start(&mut self, rings: &[Ring], bases: &[u16]) -> Result<(), Error> {
        self.set_features(self.negotiated)?;
        self.share_memory()?;
        for (queue, (ring, &base)) in rings.iter().zip(bases).enumerate() {
            let [descriptors, available, used] = ring.addresses();
            self.start_ring(queue, ring.size(), [descriptors, available, used], base)?;
        }
        (0..rings.len()).try_for_each(|queue| self.enable(queue, true))
    }

    /// Starts one ring, of `size` descriptors with descriptor table, available ring and
    /// used ring at `areas`, without enabling it.
    ///
    /// # Errors
    ///
    /// [`Error::VhostUser`], or [`Error::Io`] when the system gives no eventfd.
    pub fn start_ring(
        &mut self,
        queue: usize,
        size: u16,
        areas: [GuestAddress; 3],
        base: u16,
    ) -> Result<(), Error> {
        let [desc_table_addr, avail_ring_addr, used_ring_addr] =
            areas.map(|area| self.memory.host_address(area) as u64);
        let config = VringConfigData {
            queue_max_size: size,
            queue_size: size,
            flags: 0,
            desc_table_addr,
            used_ring_addr,
            avail_ring_addr,
            log_addr: None,
        };
        self.add_notifiers(queue)?;
        let Notifiers { kick, call } = &self.notifiers[queue];
        let step = Error::vhost_user;
        self.frontend
            .set_vring_num(queue, size)
            .map_err(step("SET_VRING_NUM"))?;
        self.frontend
            .set_vring_base(queue, base)
            .map_err(step("SET_VRING_BASE"))?;
        self.frontend
            .set_vring_addr(queue, &config)
            .map_err(step("SET_VRING_ADDR"))?;
        self.frontend
            .set_vring_kick(queue, kick)
            .map_err(step("SET_VRING_KICK"))?;
        self.frontend
            .set_vring_call(queue, call)
            .map_err(step("SET_VRING_CALL"))?;
        // The first kick starts the ring, and tells of what lies in it already.
        kick.write(1).map_err(Error::io("kick"))
    }

    /// Enables or disables a ring.
    ///
    /// # Errors
    ///
    /// [`Error::VhostUser`].
    pub fn enable(&mut self, queue: usize, enable: bool) -> Result<(), Error> {
        let step = Error::vhost_user("SET_VRING_ENABLE");
        self.frontend.set_vring_enable(queue, enable).map_err(step)
    }

    /// Stops a ring; tells its base.
    ///
    /// # Errors
    ///
    /// [`Error::VhostUser`].
    pub fn stop_ring(&mut self, queue: usize) -> Result<u16, Error> {
        let base = self.frontend.get_vring_base(queue);
        base.map(|base| base as u16)
            .map_err(Error::vhost_user("GET_VRING_BASE"))
    }

    /// Stops all started rings; tells their bases.
    ///
    /// # Errors
    ///
    /// [`Error::VhostUser`].
    pub fn stop(&mut self) -> Result<Vec<u16>, Error> {
        let queues = 0..self.notifiers.len();
        queues
            .map(|queue| {
                self.enable(queue, false)?;
                self.stop_ring(queue)
            })
            .collect()
    }

    /// Resets the device.
    ///
    /// # Errors
    ///
    /// [`Error::VhostUser`], also when the back end does not offer RESET_DEVICE.
    pub fn reset_device(&mut self) -> Result<(), Error> {
        self.frontend
            .reset_device()
            .map_err(Error::vhost_user("RESET_DEVICE"))
    }

    /// Whether the device has notified of `queue` since this was asked last.
    ///
    /// # Panics
    ///
    /// When the ring was never started.
    pub fn was_called(&self, queue: usize) -> bool {
        self.calls(queue) > 0
    }

    /// How often the device has notified of `queue` since this was asked last.
    ///
    /// # Panics
    ///
    /// When the ring was never started.
    pub fn calls(&self, queue: usize) -> u64 {
        self.notifiers[queue].call.read().unwrap_or(0)
    }

    fn add_notifiers(&mut self, queue: usize) -> Result<(), Error> {
        let new = || EventFd::new(EFD_NONBLOCK).map_err(Error::io("eventfd"));
        let notifiers = Notifiers {
            kick: new()?,
            call: new()?,
        };
        let event = EpollEvent::new(EventSet::IN, queue as u64);
        self.calls
            .ctl(ControlOperation::Add, notifiers.call.as_raw_fd(), event)
            .map_err(Error::io("epoll_ctl"))?;
        match self.notifiers.get_mut(queue) {
            // The old call eventfd may live on in the back end: it leaves the epoll here.
            Some(old) => {
                let fd = old.call.as_raw_fd();
                let removed = self
                    .calls
                    .ctl(ControlOperation::Delete, fd, EpollEvent::default());
                removed.map_err(Error::io("epoll_ctl"))?;
                *old = notifiers;
            }
            None => self.notifiers.push(notifiers),
        }
        Ok(())
    }
}

impl Transport for VhostUser {
    fn kick(&mut self, queue: usize) -> Result<(), Error> {
        self.notifiers[queue]
            .kick
            .write(1)
            .map_err(Error::io("kick"))
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), Error> {
        let mut events = [EpollEvent::default(); 4];
        let milliseconds = i32::try_from(timeout.as_millis().max(1)).unwrap_or(i32::MAX);
        let count = match self.calls.wait(milliseconds, &mut events) {
            Err(error) if error.kind() == ErrorKind::Interrupted => 0,
            result => result.map_err(Error::io("epoll_wait"))?,
        };
        for event in &events[..count] {
            self.was_called(event.data() as usize);
        }
        Ok(())
    }
}

impl std::fmt::Debug for VhostUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VhostUser")
            .field("guest_cid", &self.guest_cid)
            .field("negotiated", &format_args!("{:#x}", self.negotiated))
            .finish_non_exhaustive()
    }
}

/// Negotiates these protocol features, and opens the channel that belongs to one of them.
fn set_protocol(
    frontend: &mut Frontend,
    protocol: ProtocolFeatures,
) -> Result<Option<UnixStream>, Error> {
    let step = Error::vhost_user("SET_PROTOCOL_FEATURES");
    frontend.set_protocol_features(protocol).map_err(step)?;
    if protocol.contains(ProtocolFeatures::REPLY_ACK) {
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    if !protocol.contains(ProtocolFeatures::BACKEND_REQ) {
        return Ok(None);
    }
    let (ours, theirs) = UnixStream::pair().map_err(Error::io("socketpair"))?;
    let step = Error::vhost_user("SET_BACKEND_REQ_FD");
    frontend.set_backend_request_fd(&theirs).map_err(step)?;
    Ok(Some(ours))
}

fn read_cid(frontend: &mut Frontend) -> Result<u64, Error> {
    let buffer = [0; Config::LEN];
    let (_, bytes) = frontend
        .get_config(
            0,
            Config::LEN as u32,
            VhostUserConfigFlags::WRITABLE,
            &buffer,
        )
        .map_err(Error::vhost_user("GET_CONFIG"))?;
    let bytes = bytes.first_chunk().copied();
    bytes.map(u64::from_le_bytes).ok_or_else(|| {
        Error::Device(format!(
            "its configuration space has fewer than {} bytes",
            Config::LEN
        ))
    })
}
