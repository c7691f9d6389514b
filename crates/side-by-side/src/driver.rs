//! A guest's driver, lean enough to be never the bottleneck, over a vhost-user connection.
//!
//! It posts what Linux posts: RX buffers of one descriptor, header inside, all replaced
//! when fewer than half remain; TX packets of a header and a payload descriptor, in an
//! indirect table where the device offers it. Payload has no meaning and is not touched.

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use vhost::{VhostBackend, VringConfigData};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vsock_packet::{HEADER_LEN, Header, RawHeader};
use vsock_testkit::{Memory, VhostUser, feature, queue};

use crate::ring::{DESCRIPTOR_LEN, INDIRECT, NEXT, Ring, SIZE, WRITE, descriptor};
use crate::shared::Shared;

/// Length of an RX buffer, header included.
pub(crate) const RX_BUFFER: usize = 4096;
/// The most payload that fits an RX buffer beside the header.
pub(crate) const FITTING: u32 = (RX_BUFFER - HEADER_LEN) as u32;
/// The most payload a packet may have.
pub(crate) const MAX_PAYLOAD: usize = 64 << 10;

/// Ends what a driver waits for, from another thread.
#[derive(Clone, Debug)]
pub(crate) struct Stop {
    flag: Arc<AtomicBool>,
    call: Arc<EventFd>,
}

impl Stop {
    /// Wakes the driver and makes it end.
    pub(crate) fn now(&self) {
        self.flag.store(true, Ordering::SeqCst);
        // It cannot fail: the counter is far from full.
        let _ = self.call.write(1);
    }
}

/// A guest's rings and its connection to the device.
pub(crate) struct Driver {
    rx: Ring,
    tx: Ring,
    rx_buffers: Shared,
    /// RX buffers that came back and were not posted again.
    rx_free: Vec<u16>,
    /// Header, indirect table and payload of each TX slot.
    tx_slots: Shared,
    /// The slot used last is used next: its memory is in the caches.
    tx_free: Vec<u16>,
    indirect: bool,
    kicks: [EventFd; 2],
    /// Has `call` to wait for.
    waiting: Epoll,
    call: Arc<EventFd>,
    stopped: Arc<AtomicBool>,
    vhost_user: VhostUser,
}

/// No deadline, as epoll has it.
const FOR_EVER: i32 = -1;
/// Where a TX slot's indirect table lies in it.
const TABLE: usize = 64;
/// Where a TX slot's payload lies in it.
const PAYLOAD: usize = 4096;
const SLOT: usize = PAYLOAD + MAX_PAYLOAD;

impl Driver {
    /// Connects to a device and starts the rings.
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let memory = Memory::one_region()?;
        let mut vhost_user =
            VhostUser::connect(socket, 2, feature::LINUX, VhostUser::QEMU, &memory)?;
        let negotiated = vhost_user.negotiated();
        ensure!(
            negotiated & feature::EVENT_IDX != 0,
            "the device offers no EVENT_IDX"
        );
        vhost_user.share_memory()?;
        let nonblocking = || EventFd::new(EFD_NONBLOCK).context("eventfd");
        let call = Arc::new(nonblocking()?);
        let waiting = Epoll::new().context("epoll")?;
        let event = EpollEvent::new(EventSet::IN, 0);
        waiting.ctl(ControlOperation::Add, call.as_raw_fd(), event)?;
        let mut driver = Self {
            rx: Ring::new(&memory),
            tx: Ring::new(&memory),
            rx_buffers: Shared::new(&memory, RX_BUFFER * usize::from(SIZE)),
            rx_free: (0..SIZE).collect(),
            tx_slots: Shared::new(&memory, SLOT * usize::from(SIZE)),
            tx_free: Vec::new(),
            indirect: negotiated & feature::INDIRECT_DESC != 0,
            kicks: [nonblocking()?, nonblocking()?],
            waiting,
            call,
            stopped: Arc::default(),
            vhost_user,
        };
        let slots = if driver.indirect { SIZE } else { SIZE / 2 };
        driver.tx_free.extend((0..slots).rev());
        driver.post_rx_buffers();
        driver.start()?;
        Ok(driver)
    }

    fn start(&mut self) -> Result<()> {
        let areas = [self.rx.areas(), self.tx.areas()];
        for (index, areas) in areas.into_iter().enumerate() {
            let memory = self.vhost_user.memory();
            let [desc_table_addr, avail_ring_addr, used_ring_addr] =
                areas.map(|area| memory.host_address(area) as u64);
            let config = VringConfigData {
                queue_max_size: SIZE,
                queue_size: SIZE,
                flags: 0,
                desc_table_addr,
                used_ring_addr,
                avail_ring_addr,
                log_addr: None,
            };
            let frontend = self.vhost_user.frontend();
            frontend.set_vring_num(index, SIZE)?;
            frontend.set_vring_base(index, 0)?;
            frontend.set_vring_addr(index, &config)?;
            frontend.set_vring_kick(index, &self.kicks[index])?;
            frontend.set_vring_call(index, &self.call)?;
            self.kicks[index].write(1)?;
        }
        (0..2).try_for_each(|queue| self.vhost_user.enable(queue, true))?;
        Ok(())
    }

    /// What ends this driver's waiting.
    pub(crate) fn stop(&self) -> Stop {
        Stop {
            flag: Arc::clone(&self.stopped),
            call: Arc::clone(&self.call),
        }
    }

    /// Whether it was told to stop.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Whether the TX ring has room for a packet.
    pub(crate) fn has_room(&mut self) -> bool {
        self.reclaim();
        !self.tx_free.is_empty()
    }

    /// Puts a packet into the TX ring, `header.len` bytes of payload with it; `false` when
    /// the ring is full.
    pub(crate) fn send(&mut self, header: &Header) -> bool {
        self.reclaim();
        let Some(slot) = self.tx_free.pop() else {
            return false;
        };
        let start = SLOT * usize::from(slot);
        self.tx_slots.write(start, header.to_raw().as_bytes());
        let head = if self.indirect { slot } else { 2 * slot };
        self.describe(head, start, header.len);
        self.tx.add(head);
        true
    }

    fn describe(&self, head: u16, start: usize, len: u32) {
        let at = |offset| self.tx_slots.address(start + offset);
        let header = |flags, next| descriptor(at(0), HEADER_LEN as u32, flags, next);
        if len == 0 {
            return self.tx.set(head, header(0, 0));
        }
        let payload = descriptor(at(PAYLOAD), len, 0, 0);
        if self.indirect {
            self.tx_slots.write(start + TABLE, &header(NEXT, 1));
            self.tx_slots
                .write(start + TABLE + DESCRIPTOR_LEN, &payload);
            let table = descriptor(at(TABLE), 2 * DESCRIPTOR_LEN as u32, INDIRECT, 0);
            self.tx.set(head, table);
        } else {
            self.tx.set(head, header(NEXT, head + 1));
            self.tx.set(head + 1, payload);
        }
    }

    fn reclaim(&mut self) {
        while let Some((head, _)) = self.tx.pop() {
            self.tx_free
                .push(if self.indirect { head } else { head / 2 });
        }
    }

    /// The next packet from the device, whose payload is not looked at. Like Linux, it
    /// drops one that claims more than its buffer holds, or makes no sense.
    pub(crate) fn receive(&mut self) -> Option<Header> {
        loop {
            if self.rx_free.len() > usize::from(SIZE / 2) {
                self.post_rx_buffers();
            }
            let (head, written) = self.rx.pop()?;
            self.rx_free.push(head);
            let header = self.rx_buffers.read(RX_BUFFER * usize::from(head));
            let room = RX_BUFFER.min(written as usize).saturating_sub(HEADER_LEN);
            match Header::parse(&RawHeader::from_bytes(header)) {
                Ok(header) if header.len as usize <= room => return Some(header),
                _ => (),
            }
        }
    }

    fn post_rx_buffers(&mut self) {
        for head in self.rx_free.drain(..) {
            let address = self.rx_buffers.address(RX_BUFFER * usize::from(head));
            self.rx
                .set(head, descriptor(address, RX_BUFFER as u32, WRITE, 0));
            self.rx.add(head);
        }
    }

    /// Notifies the device of what is new, where it wants to be.
    pub(crate) fn kick(&mut self) -> Result<()> {
        for index in [queue::RX, queue::TX] {
            let ring = if index == queue::RX {
                &mut self.rx
            } else {
                &mut self.tx
            };
            if ring.needs_kick() {
                self.kicks[index].write(1).context("kick")?;
            }
        }
        Ok(())
    }

    /// Notifies the device, and waits until it has done something or the driver is stopped.
    pub(crate) fn wait(&mut self) -> Result<()> {
        self.kick()?;
        // Or what came back long ago would be news for ever, and the guest spin.
        self.reclaim();
        let news = [self.rx.arm(), self.tx.arm()];
        if news.contains(&true) || self.is_stopped() {
            return Ok(());
        }
        self.wait_for_call()
    }

    /// Waits for a notification of the device, or to be stopped.
    pub(crate) fn wait_for_call(&self) -> Result<()> {
        // As QEMU has them, these do not wait by themselves.
        let mut event = [EpollEvent::default()];
        let waited = self.waiting.wait(FOR_EVER, &mut event);
        match waited.and_then(|_| self.call.read()) {
            Err(error)
                if !matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) =>
            {
                Err(error).context("wait for the device")
            }
            _ => Ok(()),
        }
    }
}
