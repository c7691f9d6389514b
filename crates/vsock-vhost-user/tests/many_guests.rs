//! Many guests in one process: a fault of one is not felt by another.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::time::{Duration, Instant};

use common::{CID, Device, assert_at_once, header, pattern};
use vm_memory::GuestAddress;
use vsock_packet::{Cid, Op, VsockAddr};
use vsock_testkit::host::{Client, HostListener, Service};
use vsock_testkit::{
    Error, Guest, Layout, RawDescriptor, Refill, RxBuffers, Setup, StreamId, Transport, queue,
};

/// A second guest with an echo, to see whether it feels anything.
struct Neighbour {
    guest: Guest,
    stream: StreamId,
    _echo: Service,
}

impl Neighbour {
    fn of(device: &mut Device) -> Result<Self, Error> {
        device.add(4).unwrap();
        let echo = Service::echo(&device.uds_of(4), 700)?;
        let mut guest = device.guest_of(4)?;
        let stream = guest.connect(700)?;
        Ok(Self {
            guest,
            stream,
            _echo: echo,
        })
    }

    #[track_caller]
    fn feels_nothing(&mut self) {
        let start = Instant::now();
        assert_eq!(
            self.guest.exchange(self.stream, b"hello", 5).unwrap(),
            b"hello"
        );
        assert_at_once(start, "an echo of the neighbour");
    }
}

#[test]
fn each_guest_has_its_own_host() -> Result<(), Error> {
    let device = Device::start();
    for cid in 4..10 {
        device.add(cid).unwrap();
    }
    let mut guests = Vec::new();
    for cid in 3..10 {
        let host = HostListener::bind(&device.uds_of(cid), 700)?;
        let mut guest = device.guest_of(cid)?;
        assert_eq!(u64::from(guest.cid()), cid);
        guest.listen(1234);
        let stream = guest.connect(700)?;
        guests.push((guest, stream, host.accept()?, host));
    }
    for (cid, (guest, stream, end, _)) in (3..10).zip(&mut guests) {
        guest.write_all(*stream, &[cid as u8; 100])?;
        assert_eq!(end.read_exact(100)?, [cid as u8; 100]);
        let client = Client::dial(&device.uds_of(cid), 1234)?;
        guest.accept(1234)?;
        client.accepted()?;
    }
    Ok(())
}

#[test]
fn guests_come_and_go_while_others_work() -> Result<(), Error> {
    let mut device = Device::start();
    let mut neighbour = Neighbour::of(&mut device)?;
    for _ in 0..10 {
        let _guest = device.guest()?;
        neighbour.feels_nothing();
        assert!(device.remove(CID));
        neighbour.feels_nothing();
        device.add(CID).unwrap();
    }
    Ok(())
}

#[test]
fn one_guests_broken_rings_are_its_own() -> Result<(), Error> {
    const INDIRECT: u16 = 4;
    let mut device = Device::start();
    let mut neighbour = Neighbour::of(&mut device)?;
    for (address, len, flags, next) in [
        (u64::MAX, u32::MAX, 0, 0),
        (0x100, 44, 1, 5000),
        (0x100, 44, 1, 0),
        (0x100, 17, INDIRECT, 0),
        (1 << 40, 160, INDIRECT, 0),
        (0x100, u32::MAX, INDIRECT, 0),
        (0x100, 16, INDIRECT | 1, 1),
    ] {
        let mut guest = device.guest()?;
        let descriptor = RawDescriptor {
            address,
            len,
            flags,
            next,
        };
        guest
            .rings_mut()
            .ring_mut(queue::TX)
            .add_raw(&[descriptor], 0);
        guest.step()?;
        // It may be told that it is broken, or get its chain back: that is its affair.
        let _ = guest.pump(Duration::from_millis(5));
        neighbour.feels_nothing();
    }
    Ok(())
}

#[test]
fn one_guests_broken_rx_buffers_are_its_own() -> Result<(), Error> {
    const WRITE: u16 = 2;
    let mut device = Device::start();
    let mut neighbour = Neighbour::of(&mut device)?;
    let host = HostListener::bind(&device.uds(), 700)?;
    for (address, len, flags) in [
        (0x100, 3776, 0),
        (1 << 40, 3776, WRITE),
        (u64::MAX - 100, 3776, WRITE),
        (0x100, 0, WRITE),
        ((256 << 20) - 50, 3776, WRITE),
    ] {
        let rx = RxBuffers {
            refill: Refill::ByHand,
            ..RxBuffers::default()
        };
        let mut guest = device.guest_with(Setup {
            rx,
            ..Setup::default()
        })?;
        let _ = guest.start_connect(common::host_port(700))?;
        let mut end = host.accept()?;
        end.write_all(&pattern(10_000))?;
        let descriptor = RawDescriptor {
            address,
            len,
            flags,
            next: 0,
        };
        guest
            .rings_mut()
            .ring_mut(queue::RX)
            .add_raw(&[descriptor], 0);
        // What comes of it is the guest's affair.
        let _ = guest.pump(Duration::from_millis(5));
        neighbour.feels_nothing();
    }
    Ok(())
}

#[test]
fn one_guests_broken_indices_are_its_own() -> Result<(), Error> {
    let mut device = Device::start();
    let mut neighbour = Neighbour::of(&mut device)?;
    for queue in [queue::RX, queue::TX] {
        let mut guest = device.guest()?;
        let _stream = guest.start_connect(common::host_port(700))?;
        let [_, available, _] = guest.rings().ring(queue).addresses();
        let memory = guest.transport().memory().clone();
        memory.write(GuestAddress(available.0 + 2), &[0xff, 0x7f]);
        let _ = guest.send_packet(
            &header(&guest, Op::Request, 50, 700).to_raw(),
            &[],
            &Layout::linux(),
        );
        memory.write(GuestAddress(available.0 + 2), &[0xff, 0x7f]);
        guest.transport().kick(queue)?;
        let _ = guest.pump(Duration::from_millis(5));
        neighbour.feels_nothing();
    }
    Ok(())
}

#[test]
fn a_busy_guest_does_not_starve_another() -> Result<(), Error> {
    let mut device = Device::start();
    let mut neighbour = Neighbour::of(&mut device)?;
    let _sink = Service::sink(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    let stream = guest.connect(700)?;
    let bytes = pattern(1 << 20);
    for _ in 0..32 {
        guest.write_all(stream, &bytes)?;
        neighbour.feels_nothing();
    }
    Ok(())
}

#[test]
fn without_a_common_group_a_sibling_is_refused_at_once() -> Result<(), Error> {
    let mut device = Device::start();
    let mut neighbour = Neighbour::of(&mut device)?;
    neighbour.guest.listen(1234);
    let mut guest = device.guest()?;
    let start = Instant::now();
    let refusal = guest.connect_to(VsockAddr::new(Cid::new(4), 1234));
    assert!(matches!(refusal, Err(Error::Refused { .. })), "{refusal:?}");
    assert_at_once(start, "the refusal");
    neighbour.feels_nothing();
    Ok(())
}
