//! Any layout: whatever the descriptors, the bytes are the same.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::thread;

use common::{CID, Device, header, pattern};
use vsock_packet::{Features, HEADER_LEN, Op};
use vsock_testkit::host::{Client, HostListener, Service};
use vsock_testkit::{
    Behaviour, Error, Layout, Memory, ProtocolFeatures, RxBuffers, Setup, VhostUser, feature,
};

/// Sends packets of many lengths in each layout, and compares what the host reads.
fn sends(setup: Setup, layouts: impl IntoIterator<Item = Layout>) -> Result<(), Error> {
    let device = Device::start();
    let host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = device.guest_with(setup)?;
    for layout in layouts {
        guest.behaviour = Behaviour {
            layout: layout.clone(),
            ..Behaviour::linux()
        };
        let stream = guest.connect(700)?;
        let mut end = host.accept()?;
        for len in [1, 2, 63, 64, 4096, 32768, 65535, 65536] {
            let bytes = pattern(len);
            guest.write_all(stream, &bytes)?;
            assert!(end.read_exact(len)? == bytes, "{len} bytes in {layout:?}");
        }
        guest.close(stream)?;
        guest.expect_tx_returned()?;
    }
    Ok(())
}

fn layouts() -> Vec<Layout> {
    vec![
        Layout::linux(),
        Layout::whole(),
        Layout::payload_in(2),
        Layout::payload_in(17),
        Layout::payload_in(63),
        Layout::payload_in(64),
        Layout::pieces([1, 43]),
        Layout::pieces([10, 10, 24]),
        Layout::pieces([20]),
        Layout::pieces([43]),
        Layout::pieces([20, 100, 1, 1]),
        Layout::pieces(vec![1; 60]),
        Layout::pieces([0, 44]),
        Layout::pieces([0, 22, 0, 0, 22, 0, 10, 0]),
    ]
}

#[test]
fn takes_packets_in_any_pieces() -> Result<(), Error> {
    sends(Setup::default(), layouts())
}

#[test]
fn takes_packets_in_indirect_tables() -> Result<(), Error> {
    sends(
        Setup::default(),
        layouts().into_iter().map(Layout::indirect),
    )
}

#[test]
fn takes_payload_that_crosses_memory_regions() -> Result<(), Error> {
    let setup = Setup {
        memory: Some(Memory::touching_regions(6)?),
        ..Setup::default()
    };
    let across = layouts().into_iter().map(Layout::across_regions);
    sends(
        setup,
        across.flat_map(|layout| [layout.clone(), layout.indirect()]),
    )
}

/// Sends `bytes` from the host, and compares what the guest reads from such RX buffers.
fn receives(setup: Setup, bytes: &[u8]) -> Result<(), Error> {
    let rx = format!("{:?}", setup.rx);
    let device = Device::start();
    let _source = Service::source(&device.uds(), 700, bytes.to_vec())?;
    let mut guest = device.guest_with(setup)?;
    let stream = guest.connect(700)?;
    assert!(guest.read_to_end(stream)? == bytes, "{rx}");
    guest.close(stream)
}

#[test]
fn fills_rx_buffers_of_any_size() -> Result<(), Error> {
    for size in [45, 46, 64, 512, 3776, 4140, 65536, 65536 + HEADER_LEN] {
        let bytes = pattern(if size < 100 { 5_000 } else { 1 << 20 });
        receives(
            Setup {
                rx: RxBuffers::of([size]),
                ..Setup::default()
            },
            &bytes,
        )?;
    }
    Ok(())
}

#[test]
fn fills_rx_buffers_in_any_pieces() -> Result<(), Error> {
    let bytes = pattern(100_000);
    for pieces in [
        vec![44, 4096],
        vec![44, 8192],
        vec![44, 1, 1, 500],
        vec![1, 43, 200],
        vec![10, 34, 0, 300],
        vec![0, 60, 0, 300, 0],
        vec![7; 100],
        [vec![44], vec![1024; 64]].concat(),
    ] {
        for indirect in [false, true] {
            let rx = RxBuffers {
                indirect,
                ..RxBuffers::of(pieces.clone())
            };
            receives(
                Setup {
                    rx,
                    ..Setup::default()
                },
                &bytes,
            )?;
        }
    }
    Ok(())
}

#[test]
fn fills_rx_buffers_that_cross_memory_regions() -> Result<(), Error> {
    for pieces in [vec![3776], vec![44, 4096], vec![30, 30, 4096, 4096]] {
        let rx = RxBuffers {
            across_regions: true,
            count: 6,
            ..RxBuffers::of(pieces)
        };
        let memory = Some(Memory::touching_regions(7)?);
        receives(
            Setup {
                memory,
                rx,
                ..Setup::default()
            },
            &pattern(500_000),
        )?;
    }
    Ok(())
}

#[test]
fn serves_rings_of_any_size() -> Result<(), Error> {
    for queue_size in [2, 4, 8, 32, 256, 512, 1024] {
        let device = Device::start();
        let _echo = Service::echo(&device.uds(), 700)?;
        let mut guest = device.guest_with(Setup {
            queue_size,
            ..Setup::default()
        })?;
        let stream = guest.connect(700)?;
        let bytes = pattern(1 << 20);
        let echoed = guest.exchange(stream, &bytes, bytes.len())?;
        assert!(echoed == bytes, "queues of {queue_size}");
        guest.close(stream)?;
    }
    Ok(())
}

#[test]
fn serves_drivers_with_and_without_each_ring_feature() -> Result<(), Error> {
    for queues in [2, 3] {
        for event_idx in [0, feature::EVENT_IDX] {
            for indirect in [0, feature::INDIRECT_DESC] {
                let device = Device::start();
                let _echo = Service::echo(&device.uds(), 700)?;
                let features = feature::VERSION_1 | event_idx | indirect;
                let mut guest = device.guest_with(Setup {
                    queues,
                    features,
                    ..Setup::default()
                })?;
                if indirect != 0 {
                    guest.behaviour.layout = Layout::linux().indirect();
                }
                let stream = guest.connect(700)?;
                let bytes = pattern(2 << 20);
                let echoed = guest.exchange(stream, &bytes, bytes.len())?;
                assert!(echoed == bytes, "{queues} queues, features {features:#x}");
                guest.close(stream)?;
            }
        }
    }
    Ok(())
}

#[test]
fn offers_what_drivers_and_frontends_ask_for() -> Result<(), Error> {
    let device = Device::start();
    let mut guest = device.guest()?;
    assert_eq!(u64::from(guest.cid()), CID);
    let offered = guest.transport().offered();
    for (name, bit) in [
        ("VERSION_1", feature::VERSION_1),
        ("INDIRECT_DESC", feature::INDIRECT_DESC),
        ("EVENT_IDX", feature::EVENT_IDX),
        ("F_STREAM", Features::STREAM.bits()),
        ("F_NO_IMPLIED_STREAM", Features::NO_IMPLIED_STREAM.bits()),
    ] {
        assert_ne!(offered & bit, 0, "{name} is not among {offered:#x}");
    }
    let protocol = guest.transport().offered_protocol_features();
    assert!(protocol.contains(VhostUser::QEMU), "offered: {protocol:?}");
    Ok(())
}

#[test]
fn takes_many_packets_of_many_pieces_at_once() -> Result<(), Error> {
    let device = Device::start();
    let host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = device.guest_with(Setup {
        queue_size: 1024,
        ..Setup::default()
    })?;
    guest.behaviour.layout = Layout::payload_in(64).indirect();
    let stream = guest.connect(700)?;
    let mut end = host.accept()?;
    for max_packet in [64, 640, 4096] {
        guest.behaviour.max_packet = max_packet;
        let bytes = pattern(200_000);
        guest.write_all(stream, &bytes)?;
        assert!(
            end.read_exact(bytes.len())? == bytes,
            "packets of {max_packet}"
        );
    }
    Ok(())
}

#[test]
fn fills_many_rx_buffers_of_many_pieces_at_once() -> Result<(), Error> {
    let rx = RxBuffers {
        indirect: true,
        ..RxBuffers::of([vec![44], vec![16; 64]].concat())
    };
    receives(
        Setup {
            queue_size: 1024,
            rx,
            ..Setup::default()
        },
        &pattern(1 << 20),
    )
}

#[test]
fn takes_packets_larger_than_linux_sends() -> Result<(), Error> {
    let device = Device::start();
    let host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    guest.behaviour.max_packet = usize::MAX;
    let stream = guest.connect(700)?;
    let mut end = host.accept()?;
    guest.write_all(stream, &pattern(256 << 10))?;
    assert!(end.read_exact(256 << 10)? == pattern(256 << 10));
    Ok(())
}

#[test]
fn a_packet_without_payload_is_not_the_end() -> Result<(), Error> {
    let device = Device::start();
    let host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    let stream = guest.connect(700)?;
    let mut end = host.accept()?;
    for _ in 0..10 {
        guest.send_op(stream, Op::Rw)?;
        guest.write_all(stream, b"goes on")?;
        assert_eq!(end.read_exact(7)?, b"goes on");
    }
    Ok(())
}

#[test]
fn has_no_streams_for_a_driver_that_wants_none() -> Result<(), Error> {
    let device = Device::start();
    let _host = HostListener::bind(&device.uds(), 700)?;
    let none = Features::NO_IMPLIED_STREAM.bits();
    for (streams, has_streams) in [(0, true), (none, false), (none | 1, true)] {
        let features = feature::VERSION_1 | streams;
        let mut guest = device.guest_with(Setup {
            features,
            ..Setup::default()
        })?;
        assert_eq!(
            guest.connect(700).is_ok(),
            has_streams,
            "features {features:#x}"
        );
    }
    Ok(())
}

#[test]
fn refuses_a_ring_larger_than_was_allowed() {
    let device = Device::with(|config| config.queue_size = 256);
    let start = |queue_size| {
        device.guest_with(Setup {
            queue_size,
            ..Setup::default()
        })
    };
    start(256).unwrap();
    let error = start(512).unwrap_err();
    assert!(error.to_string().contains("SET_VRING_NUM"), "{error}");
    start(128).unwrap();
}

#[test]
fn memory_may_be_told_as_a_table_or_in_slots_and_again_at_any_time() -> Result<(), Error> {
    for protocol in [
        VhostUser::QEMU,
        VhostUser::QEMU - ProtocolFeatures::CONFIGURE_MEM_SLOTS,
    ] {
        let device = Device::start();
        let _echo = Service::echo(&device.uds(), 700)?;
        let memory = Some(Memory::touching_regions(3)?);
        let mut guest = device.guest_with(Setup {
            memory,
            protocol,
            ..Setup::default()
        })?;
        let stream = guest.connect(700)?;
        for _ in 0..20 {
            guest.write_some(stream, &pattern(100_000))?;
            guest.transport().share_memory()?;
            assert!(guest.read_exact(stream, 100_000)? == pattern(100_000));
        }
    }
    Ok(())
}

#[test]
fn only_len_bytes_of_a_packet_count() -> Result<(), Error> {
    let device = Device::start();
    let host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    guest.send_packet(
        &header(&guest, Op::Request, 50, 700).to_raw(),
        &[],
        &Layout::linux(),
    )?;
    guest.expect_packet(Op::Response)?;
    let mut end = host.accept()?;
    let mut short = header(&guest, Op::Rw, 50, 700).to_raw();
    short.set_len(3);
    guest.send_packet(&short, b"abcdef", &Layout::linux())?;
    guest.send_packet(&short, b"ghijkl", &Layout::whole())?;
    assert_eq!(end.read_exact(6)?, b"abcghi");
    Ok(())
}

#[test]
fn a_large_transfer_each_way_at_once_arrives_whole() -> Result<(), Error> {
    let device = Device::start();
    let mut guest = device.guest()?;
    guest.listen(1234);
    let client = Client::dial(&device.uds(), 1234)?;
    let stream = guest.accept(1234)?;
    let (mut end, _) = client.accepted()?;
    let host = thread::spawn(move || -> Result<(), Error> {
        let echoed = end.read_exact(1 << 20)?;
        end.write_all(&echoed)
    });
    let bytes = pattern(1 << 20);
    assert!(guest.exchange(stream, &bytes, bytes.len())? == bytes);
    host.join().unwrap()?;
    guest.close(stream)
}
