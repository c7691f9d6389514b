//! The driver's rings, held against the device's side of the `virtio-queue` crate.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::io::{Read, Write};

use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vsock_packet::{Cid, HEADER_LEN, Header, Op, RawHeader, VsockAddr};
use vsock_testkit::{Error, Layout, Memory, Packet, PacketRings, Ring, RxBuffers, queue};

/// The device's side of a ring.
struct Device {
    memory: Memory,
    queue: Queue,
}

impl Device {
    fn new(memory: &Memory, ring: &Ring, event_idx: bool) -> Self {
        let mut queue = Queue::new(ring.size()).unwrap();
        let [descriptors, available, used] = ring.addresses().map(|area| Some(area.0 as u32));
        queue.set_desc_table_address(descriptors, Some(0));
        queue.set_avail_ring_address(available, Some(0));
        queue.set_used_ring_address(used, Some(0));
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        assert!(queue.is_valid(memory.map()));
        Self {
            memory: memory.clone(),
            queue,
        }
    }

    /// Reads and returns the next chain.
    fn read(&mut self) -> Option<Vec<u8>> {
        let chain = self.queue.pop_descriptor_chain(self.memory.map())?;
        let head = chain.head_index();
        let mut bytes = Vec::new();
        chain
            .reader(self.memory.map())
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
        self.queue.add_used(self.memory.map(), head, 0).unwrap();
        Some(bytes)
    }

    /// Writes into the next chain, and returns it with `used` bytes.
    fn write(&mut self, bytes: &[u8], used: usize) {
        let chain = self.queue.pop_descriptor_chain(self.memory.map()).unwrap();
        let head = chain.head_index();
        chain
            .writer(self.memory.map())
            .unwrap()
            .write_all(bytes)
            .unwrap();
        self.queue
            .add_used(self.memory.map(), head, used as u32)
            .unwrap();
    }
}

fn header(len: usize) -> RawHeader {
    let [src, dst] = [(Cid::HOST, 1024), (Cid::new(3), 1234)].map(|(c, p)| VsockAddr::new(c, p));
    Header {
        len: len as u32,
        ..Header::new(Op::Rw, src, dst)
    }
    .to_raw()
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7) as u8).collect()
}

fn rings(memory: &Memory, event_idx: bool, rx: RxBuffers) -> PacketRings {
    PacketRings::new(memory, 2, 128, event_idx, rx)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_device_reads_what_was_sent_in_any_layout(
        pieces in prop::collection::vec(0usize..2000, 0..64),
        lengths in prop::collection::vec(0usize..65536, 1..5),
        indirect: bool,
        across: bool,
        event_idx: bool,
    ) {
        let memory = Memory::touching_regions(4).unwrap();
        let mut rings = rings(&memory, event_idx, RxBuffers::default());
        let mut device = Device::new(&memory, rings.ring(queue::TX), event_idx);
        let mut layout = Layout::pieces(pieces);
        if indirect {
            layout = layout.indirect();
        }
        if across {
            layout = layout.across_regions();
        }
        for len in lengths {
            prop_assert!(rings.send(&header(len), &payload(len), &layout));
            let sent = [&header(len).as_bytes()[..], &payload(len)].concat();
            prop_assert_eq!(device.read(), Some(sent));
            prop_assert_eq!(rings.reclaim_tx().unwrap(), 1);
        }
    }

    #[test]
    fn what_a_device_writes_is_received_from_any_buffer(
        pieces in prop::collection::vec(0usize..500, 0..16),
        lengths in prop::collection::vec(0usize..3000, 1..5),
        indirect: bool,
        across_regions: bool,
    ) {
        let memory = Memory::touching_regions(4).unwrap();
        let pieces = [pieces, vec![HEADER_LEN + 3000]].concat();
        let rx = RxBuffers { indirect, across_regions, ..RxBuffers::of(pieces) };
        let mut rings = rings(&memory, true, rx);
        let mut device = Device::new(&memory, rings.ring(queue::RX), true);
        for len in lengths {
            rings.refill_rx_when_due();
            let packet = [&header(len).as_bytes()[..], &payload(len)].concat();
            device.write(&packet, packet.len());
            let received = Packet { header: header(len), payload: payload(len) };
            prop_assert_eq!(rings.receive().unwrap(), Some(received));
            prop_assert_eq!(rings.receive().unwrap(), None);
        }
    }
}

#[test]
fn a_ring_is_full_when_its_descriptors_are_used_and_empty_again_when_they_return() {
    let memory = Memory::one_region().unwrap();
    let mut rings = PacketRings::new(&memory, 2, 4, false, RxBuffers::default());
    let mut device = Device::new(&memory, rings.ring(queue::TX), false);
    for _ in 0..1000 {
        assert!(rings.send(&header(1), &[1], &Layout::linux()));
        assert!(rings.send(&header(1), &[2], &Layout::linux()));
        assert!(
            !rings.send(&header(1), &[3], &Layout::linux()),
            "four descriptors are used"
        );
        assert_eq!(device.read().unwrap()[HEADER_LEN..], [1]);
        assert_eq!(device.read().unwrap()[HEADER_LEN..], [2]);
        assert_eq!(rings.reclaim_tx().unwrap(), 2);
    }
}

#[test]
fn kicks_only_when_the_device_asked_for_it() {
    for event_idx in [false, true] {
        let memory = Memory::one_region().unwrap();
        let mut rings = rings(&memory, event_idx, RxBuffers::default());
        let mut device = Device::new(&memory, rings.ring(queue::TX), event_idx);
        let mut needs_kick_after_sending = || {
            assert!(rings.send(&header(0), &[], &Layout::whole()));
            rings.ring_mut(queue::TX).needs_kick()
        };
        assert!(needs_kick_after_sending(), "a device asks for the first");
        device.queue.disable_notification(memory.map()).unwrap();
        assert!(!needs_kick_after_sending(), "event_idx {event_idx}");
        while device.read().is_some() {}
        device.queue.enable_notification(memory.map()).unwrap();
        assert!(needs_kick_after_sending(), "event_idx {event_idx}");
    }
}

#[test]
fn asks_for_a_call_once_all_that_was_returned_is_read() {
    let memory = Memory::one_region().unwrap();
    let mut rings = rings(&memory, true, RxBuffers::default());
    let mut device = Device::new(&memory, rings.ring(queue::TX), true);
    for _ in 0..3 {
        assert!(rings.send(&header(0), &[], &Layout::whole()));
        device.read().unwrap();
        assert!(device.queue.needs_notification(memory.map()).unwrap());
        assert!(rings.send(&header(0), &[], &Layout::whole()));
        device.read().unwrap();
        assert!(
            !device.queue.needs_notification(memory.map()).unwrap(),
            "it knows already"
        );
        assert_eq!(rings.reclaim_tx().unwrap(), 2);
    }
}

#[test]
fn an_rx_buffer_used_wrongly_is_the_devices_fault() {
    let packet = [&header(5).as_bytes()[..], b"hello"].concat();
    for (used, complaint) in [
        (0, "no header"),
        (43, "no header"),
        (packet.len() - 1, "48 bytes for a packet of 49"),
        (4000, "4000 bytes of an RX buffer of 3776"),
    ] {
        let memory = Memory::one_region().unwrap();
        let mut rings = rings(&memory, false, RxBuffers::default());
        let mut device = Device::new(&memory, rings.ring(queue::RX), false);
        rings.refill_rx_when_due();
        device.write(&packet, used);
        let error = rings.receive().unwrap_err();
        assert!(
            matches!(&error, Error::Device(why) if why.contains(complaint)),
            "{error}"
        );
    }
}

#[test]
fn a_chain_returned_twice_is_the_devices_fault() {
    let memory = Memory::one_region().unwrap();
    let mut rings = rings(&memory, false, RxBuffers::default());
    let mut device = Device::new(&memory, rings.ring(queue::TX), false);
    assert!(rings.send(&header(0), &[], &Layout::whole()));
    device.read().unwrap();
    device.queue.add_used(memory.map(), 0, 0).unwrap();
    assert!(matches!(rings.reclaim_tx(), Err(Error::Device(_))));
}
