//! The device under a driver that is not ours: `virtio-drivers`, with its rings of eight, its
//! buffers of 512 bytes and its credit of 1 KiB.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;
mod virtio_drivers_adapter;

use std::time::{Duration, Instant};

use common::{AT_ONCE, CID, Device, pattern};
use virtio_drivers::device::socket::{
    DisconnectReason, VirtIOSocket, VsockAddr, VsockConnectionManager, VsockEvent, VsockEventType,
};
use virtio_drivers_adapter::{FrontendTransport, SharedMemory};
use vsock_testkit::host::{Client, HostListener};
use vsock_testkit::{Error, feature};

const PATIENCE: Duration = Duration::from_secs(10);

/// A guest whose driver and sockets are those of `virtio-drivers`.
struct Unfamiliar(VsockConnectionManager<SharedMemory, FrontendTransport>);

impl Unfamiliar {
    fn start(device: &Device) -> Self {
        Self::with_features(device, u64::MAX)
    }

    /// A driver that sees only `features` of those the device offers.
    fn with_features(device: &Device, features: u64) -> Self {
        let transport = FrontendTransport::connect(&device.socket(CID), features).unwrap();
        Self(VsockConnectionManager::new(
            VirtIOSocket::new(transport).unwrap(),
        ))
    }

    /// Polls until an event satisfies `wanted`.
    fn wait_for(&mut self, what: &str, wanted: impl Fn(&VsockEventType) -> bool) -> VsockEvent {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            match self.0.poll().unwrap() {
                Some(event) if wanted(&event.event_type) => return event,
                Some(event) => assert!(harmless(&event), "{event:?} while waiting for {what}"),
                None => std::thread::yield_now(),
            }
        }
        panic!("waited {PATIENCE:?} in vain for {what}");
    }

    /// Connects to a port of the host.
    fn connect(&mut self, port: u32, local: u32) -> VsockAddr {
        let peer = VsockAddr { cid: 2, port };
        self.0.connect(peer, local).unwrap();
        self.wait_for("a RESPONSE", |event| *event == VsockEventType::Connected);
        peer
    }

    /// Sends all of `bytes`, in packets of `size`, as fast as credit comes.
    fn send(&mut self, peer: VsockAddr, local: u32, bytes: &[u8], size: usize) {
        let start = Instant::now();
        for packet in bytes.chunks(size) {
            while let Err(error) = self.0.send(peer, local, packet) {
                assert!(
                    start.elapsed() < PATIENCE,
                    "waited {PATIENCE:?} for credit: {error:?}"
                );
                self.0.poll().unwrap();
            }
        }
    }

    /// Receives `len` bytes, and tells of its credit each time.
    fn receive(&mut self, peer: VsockAddr, local: u32, len: usize) -> Vec<u8> {
        let (start, mut bytes) = (Instant::now(), Vec::new());
        while bytes.len() < len {
            assert!(
                start.elapsed() < PATIENCE,
                "{} of {len} bytes after {PATIENCE:?}",
                bytes.len()
            );
            self.0.poll().unwrap();
            let mut buffer = [0; 1024];
            let count = self.0.recv(peer, local, &mut buffer).unwrap();
            bytes.extend_from_slice(&buffer[..count]);
            if count > 0 {
                self.0.update_credit(peer, local).unwrap();
            }
        }
        bytes
    }
}

fn is_end(event: &VsockEventType) -> bool {
    matches!(event, VsockEventType::Disconnected { .. })
}

/// What may come at any time.
fn harmless(event: &VsockEvent) -> bool {
    matches!(
        event.event_type,
        VsockEventType::CreditUpdate | VsockEventType::Received { .. }
    )
}

#[test]
fn connects_to_the_host_and_exchanges_data() -> Result<(), Error> {
    let device = Device::start();
    let host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = Unfamiliar::start(&device);
    assert_eq!(guest.0.guest_cid(), CID);
    let peer = guest.connect(700, 50);
    let mut end = host.accept()?;
    guest.send(peer, 50, b"to the host", 11);
    assert_eq!(end.read_exact(11)?, b"to the host");
    end.write_all(b"to the guest")?;
    assert_eq!(guest.receive(peer, 50, 12), b"to the guest");
    Ok(())
}

#[test]
fn is_refused_at_once_rather_than_hanging_for_good() {
    let device = Device::start();
    let mut guest = Unfamiliar::start(&device);
    let start = Instant::now();
    guest.0.connect(VsockAddr { cid: 2, port: 9 }, 50).unwrap();
    let reset = VsockEventType::Disconnected {
        reason: DisconnectReason::Reset,
    };
    guest.wait_for("an RST", |event| *event == reset);
    assert!(start.elapsed() < AT_ONCE);
}

#[test]
fn accepts_a_connection_from_the_host() -> Result<(), Error> {
    let device = Device::start();
    let mut guest = Unfamiliar::start(&device);
    guest.0.listen(1234);
    let client = Client::dial(&device.uds(), 1234)?;
    let event = guest.wait_for("a REQUEST", |event| {
        *event == VsockEventType::ConnectionRequest
    });
    let (mut end, port) = client.accepted()?;
    assert_eq!(event.source, VsockAddr { cid: 2, port });
    end.write_all(b"to the guest")?;
    assert_eq!(guest.receive(event.source, 1234, 12), b"to the guest");
    guest.send(event.source, 1234, b"to the host", 11);
    assert_eq!(end.read_exact(11)?, b"to the host");
    Ok(())
}

#[test]
fn refuses_a_connection_from_the_host() -> Result<(), Error> {
    let device = Device::start();
    let mut guest = Unfamiliar::start(&device);
    let client = Client::dial(&device.uds(), 1234)?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(50) {
        assert_eq!(guest.0.poll().unwrap(), None);
    }
    client.expect_refusal(AT_ONCE)
}

#[test]
fn sends_much_more_than_the_devices_buffer() -> Result<(), Error> {
    let device = Device::start();
    let host = HostListener::bind(&device.uds(), 700)?;
    for (local, size) in [(50, 100), (51, 1024), (52, 65536)] {
        let mut guest = Unfamiliar::start(&device);
        let peer = guest.connect(700, local);
        let mut end = host.accept()?;
        let reader = std::thread::spawn(move || end.read_exact(1 << 20));
        guest.send(peer, local, &pattern(1 << 20), size);
        assert!(
            reader.join().unwrap()? == pattern(1 << 20),
            "packets of {size}"
        );
    }
    Ok(())
}

#[test]
fn receives_much_more_than_its_own_buffer() -> Result<(), Error> {
    let device = Device::start();
    let host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = Unfamiliar::start(&device);
    let peer = guest.connect(700, 50);
    let mut end = host.accept()?;
    let writer = std::thread::spawn(move || end.write_all(&pattern(200_000)).map(|()| end));
    assert!(guest.receive(peer, 50, 200_000) == pattern(200_000));
    writer.join().unwrap().map(drop)
}

#[test]
fn works_without_each_ring_feature() -> Result<(), Error> {
    for features in [
        feature::VERSION_1,
        feature::VERSION_1 | feature::EVENT_IDX,
        feature::VERSION_1 | feature::INDIRECT_DESC,
    ] {
        let device = Device::start();
        let host = HostListener::bind(&device.uds(), 700)?;
        let mut guest = Unfamiliar::with_features(&device, features);
        let peer = guest.connect(700, 50);
        let mut end = host.accept()?;
        guest.send(peer, 50, &pattern(100_000), 1000);
        assert!(end.read_exact(100_000)? == pattern(100_000));
        end.write_all(&pattern(20_000))?;
        assert!(
            guest.receive(peer, 50, 20_000) == pattern(20_000),
            "features {features:#x}"
        );
    }
    Ok(())
}

#[test]
fn its_close_ends_the_hosts_stream_with_nothing_lost() -> Result<(), Error> {
    let device = Device::start();
    let host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = Unfamiliar::start(&device);
    for local in 50..60 {
        let peer = guest.connect(700, local);
        let mut end = host.accept()?;
        guest.send(peer, local, &pattern(5_000), 1000);
        if local % 2 == 0 {
            guest.0.shutdown(peer, local).unwrap();
            guest.wait_for("the RST", is_end);
        } else {
            guest.0.force_close(peer, local).unwrap();
        }
        assert!(end.read_to_end()? == pattern(5_000));
    }
    Ok(())
}

#[test]
fn the_hosts_close_ends_its_stream_with_nothing_lost() -> Result<(), Error> {
    let device = Device::start();
    let host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = Unfamiliar::start(&device);
    for (local, len) in [(50, 0), (51, 5_000)] {
        let peer = guest.connect(700, local);
        let mut end = host.accept()?;
        end.write_all(&pattern(len))?;
        drop(end);
        let (start, mut bytes, mut ended) = (Instant::now(), Vec::new(), false);
        while !ended || bytes.len() < len {
            assert!(
                start.elapsed() < PATIENCE,
                "no end, and {} of {len} bytes",
                bytes.len()
            );
            let event = guest.0.poll().unwrap();
            ended |= event.is_some_and(|event| is_end(&event.event_type));
            let mut buffer = [0; 1024];
            match guest.0.recv(peer, local, &mut buffer) {
                Ok(count) => bytes.extend_from_slice(&buffer[..count]),
                Err(error) => assert!(ended, "{error:?}"),
            }
        }
        assert!(bytes == pattern(len));
    }
    Ok(())
}

#[test]
fn is_asked_for_credit_when_it_tells_of_none() -> Result<(), Error> {
    let device = Device::start();
    let host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = Unfamiliar::start(&device);
    let peer = guest.connect(700, 50);
    let mut end = host.accept()?;
    end.write_all(&pattern(5_000))?;
    drop(end);
    let (start, mut bytes) = (Instant::now(), Vec::new());
    while bytes.len() < 5_000 {
        assert!(
            start.elapsed() < PATIENCE,
            "{} of 5000 bytes after {PATIENCE:?}",
            bytes.len()
        );
        guest.0.poll().unwrap();
        let mut buffer = [0; 1024];
        let count = guest.0.recv(peer, 50, &mut buffer).unwrap();
        bytes.extend_from_slice(&buffer[..count]);
    }
    assert!(bytes == pattern(5_000));
    Ok(())
}
