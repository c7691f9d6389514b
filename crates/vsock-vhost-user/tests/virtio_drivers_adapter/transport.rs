//! A virtio transport whose device is a vhost-user back end.

use std::path::Path;

use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr, Result};
use vm_memory::GuestAddress;
use vsock_testkit::{Transport as _, VhostUser};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::memory::memory;

/// The connection to a back end, as a virtio transport.
pub(crate) struct FrontendTransport {
    vhost_user: VhostUser,
    /// The features shown to the driver.
    shown: u64,
    status: DeviceStatus,
    /// Rings that are set up, and wait for DRIVER_OK to be started and enabled.
    rings: Vec<Option<(u16, [GuestAddress; 3])>>,
}

/// The event queue, which stays with the VMM as in QEMU.
const EVENT_QUEUE: u16 = 2;

impl FrontendTransport {
    /// Connects to the back end at `socket`, and shows the driver those of its features that
    /// are among `features`.
    pub(crate) fn connect(
        socket: &Path,
        features: u64,
    ) -> std::result::Result<Self, vsock_testkit::Error> {
        let vhost_user = VhostUser::connect(socket, 2, 0, VhostUser::QEMU, memory())?;
        let shown = vhost_user.offered() & features;
        Ok(Self {
            vhost_user,
            shown,
            status: DeviceStatus::empty(),
            rings: vec![None; 2],
        })
    }

    fn start(&mut self) {
        self.vhost_user.share_memory().unwrap();
        for (queue, ring) in self.rings.iter().enumerate() {
            let (size, areas) = ring.unwrap();
            self.vhost_user.start_ring(queue, size, areas, 0).unwrap();
        }
        (0..2).for_each(|queue| self.vhost_user.enable(queue, true).unwrap());
    }
}

impl Transport for FrontendTransport {
    fn device_type(&self) -> DeviceType {
        DeviceType::Socket
    }

    fn read_device_features(&mut self) -> u64 {
        self.shown
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.vhost_user.set_features(driver_features).unwrap();
    }

    fn max_queue_size(&mut self, _queue: u16) -> u32 {
        1024
    }

    fn notify(&mut self, queue: u16) {
        // Before DRIVER_OK there is nobody to notify.
        if queue != EVENT_QUEUE && self.status.contains(DeviceStatus::DRIVER_OK) {
            self.vhost_user.kick(queue.into()).unwrap();
        }
    }

    fn get_status(&self) -> DeviceStatus {
        self.status
    }

    fn set_status(&mut self, status: DeviceStatus) {
        if status.contains(DeviceStatus::DRIVER_OK)
            && !self.status.contains(DeviceStatus::DRIVER_OK)
        {
            self.start();
        }
        self.status = status;
    }

    fn set_guest_page_size(&mut self, _guest_page_size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        let areas = [descriptors, driver_area, device_area].map(GuestAddress);
        if let Some(ring) = self.rings.get_mut(usize::from(queue)) {
            *ring = Some((u16::try_from(size).unwrap(), areas));
        }
    }

    fn queue_unset(&mut self, queue: u16) {
        let ring = self
            .rings
            .get_mut(usize::from(queue))
            .and_then(Option::take);
        if ring.is_some() && self.status.contains(DeviceStatus::DRIVER_OK) {
            self.vhost_user.stop_ring(queue.into()).unwrap();
        }
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.rings
            .get(usize::from(queue))
            .is_some_and(Option::is_some)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let called = (0..2)
            .filter(|&queue| self.vhost_user.was_called(queue))
            .count()
            > 0;
        if called {
            InterruptStatus::QUEUE_INTERRUPT
        } else {
            InterruptStatus::empty()
        }
    }

    fn read_config_generation(&self) -> u32 {
        0
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        let space = self.vhost_user.guest_cid().to_le_bytes();
        let bytes = space.get(offset..).ok_or(Error::ConfigSpaceTooSmall)?;
        T::read_from_prefix(bytes)
            .map(|(value, _)| value)
            .map_err(|_| Error::ConfigSpaceTooSmall)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, _: usize, _: T) -> Result<()> {
        Err(Error::Unsupported)
    }
}
