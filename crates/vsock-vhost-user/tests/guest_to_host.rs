//! Guest to host: a guest's connection to port P goes to `<uds-path>_P`, or is refused at once.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::time::{Duration, Instant};

use common::{AT_ONCE, Device, assert_at_once, header, host_port, pattern};
use vsock_packet::{Cid, Header, Op, VsockAddr};
use vsock_testkit::host::{Client, FullBacklog, HostListener, Service, port_path, refuse};
use vsock_testkit::{Error, Guest, Layout, State, Transport, queue};

/// Connects to `peer`, which must answer with an RST at once.
#[track_caller]
fn assert_refused(guest: &mut Guest, peer: VsockAddr) {
    let start = Instant::now();
    let error = guest.connect_to(peer).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{peer}: {error}");
    assert_at_once(start, "the refusal");
}

#[test]
fn connects_to_the_path_of_the_port() -> Result<(), Error> {
    let device = Device::start();
    let hosts = [1, 700, 65536, u32::MAX - 1]
        .map(|port| (port, HostListener::bind(&device.uds(), port).unwrap()));
    let mut guest = device.guest()?;
    for (port, host) in hosts {
        let stream = guest.connect(port)?;
        let mut end = host.accept()?;
        guest.write_all(stream, b"to the host")?;
        assert_eq!(end.read_exact(11)?, b"to the host");
        end.write_all(b"to the guest")?;
        assert_eq!(guest.read_exact(stream, 12)?, b"to the guest");
        guest.close(stream)?;
        assert_eq!(end.read_to_end()?, b"");
    }
    Ok(())
}

#[test]
fn data_may_follow_before_the_host_has_accepted() -> Result<(), Error> {
    let device = Device::start();
    let host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    let stream = guest.connect(700)?;
    guest.write_all(stream, &pattern(100_000))?;
    assert!(host.accept()?.read_exact(100_000)? == pattern(100_000));
    Ok(())
}

#[test]
fn refuses_a_port_nobody_serves() -> Result<(), Error> {
    let device = Device::start();
    let mut guest = device.guest()?;
    assert_refused(&mut guest, host_port(700));
    refuse(&device.uds(), 701)?;
    assert_refused(&mut guest, host_port(701));
    std::fs::write(port_path(&device.uds(), 702), b"").unwrap();
    assert_refused(&mut guest, host_port(702));
    Ok(())
}

#[test]
fn refuses_a_full_backlog_and_is_not_blocked_by_it() -> Result<(), Error> {
    let device = Device::start();
    let _full = FullBacklog::bind(&device.uds(), 700)?;
    let _echo = Service::echo(&device.uds(), 701)?;
    let mut guest = device.guest()?;
    let other = guest.connect(701)?;
    for _ in 0..10 {
        assert_refused(&mut guest, host_port(700));
        assert_eq!(guest.exchange(other, b"hello", 5)?, b"hello");
    }
    Ok(())
}

#[test]
fn refuses_whoever_is_not_there() -> Result<(), Error> {
    let device = Device::start();
    let _echo = Service::echo(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    for cid in [0, 1, 4, 5000, u32::MAX] {
        assert_refused(&mut guest, VsockAddr::new(Cid::new(cid), 700));
    }
    guest.connect(700).map(drop)
}

#[test]
fn a_refusal_is_a_bare_rst_with_the_ends_swapped() -> Result<(), Error> {
    let device = Device::start();
    let mut guest = device.guest()?;
    let request = header(&guest, Op::Request, 50, 700);
    guest.send_packet(&request.to_raw(), &[], &Layout::linux())?;
    let rst = guest.expect_packet(Op::Rst)?.parse().unwrap();
    assert_eq!((rst.src, rst.dst), (request.dst, request.src));
    assert_eq!((rst.socket_type, rst.len), (request.socket_type, 0));
    Ok(())
}

#[test]
fn a_response_tells_the_receive_buffer() -> Result<(), Error> {
    let device = Device::with(|config| config.tx_buffer_size = 100_000);
    let _host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    let stream = guest.connect(700)?;
    assert_eq!(guest.stream(stream).peer_buf_alloc(), 100_000);
    Ok(())
}

#[test]
fn two_hundred_connections_at_once_each_have_their_own_data() -> Result<(), Error> {
    let device = Device::start();
    let _echo = Service::echo(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    let mut streams = Vec::new();
    for _ in 0..200 {
        streams.push(guest.start_connect(host_port(700))?);
    }
    guest.wait_until("200 answers", |guest| {
        streams
            .iter()
            .all(|&stream| guest.stream(stream).state() != State::Connecting)
    })?;
    for (number, &stream) in streams.iter().enumerate() {
        guest.write_all(stream, format!("stream {number:3}").as_bytes())?;
    }
    for (number, &stream) in streams.iter().enumerate() {
        assert_eq!(
            guest.read_exact(stream, 10)?,
            format!("stream {number:3}").as_bytes()
        );
        guest.close(stream)?;
    }
    Ok(())
}

#[test]
fn connections_are_limited_in_number() -> Result<(), Error> {
    let device = Device::with(|config| config.max_connections = 4);
    let host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push((guest.connect(700)?, host.accept()?));
    }
    assert_refused(&mut guest, host_port(700));
    Client::dial(&device.uds(), 1234)?.expect_refusal(AT_ONCE)?;
    let (stream, _end) = open.remove(0);
    guest.close(stream)?;
    guest.connect(700).map(drop)
}

#[test]
fn what_waits_for_a_host_after_its_connection_ended_is_limited_too() -> Result<(), Error> {
    let device = Device::with(|config| config.max_connections = 4);
    let host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    let mut unread = Vec::new();
    let bytes = pattern(1000);
    for _ in 0..4 {
        let stream = guest.connect(700)?;
        unread.push(host.accept()?);
        // A byte by itself costs a socket the most: it is full before the guest's window is.
        for byte in &bytes {
            guest.write_all(stream, std::slice::from_ref(byte))?;
            guest.expect_tx_returned()?;
        }
        guest.send_op(stream, Op::Rst)?;
        guest.expect_tx_returned()?;
    }
    assert_refused(&mut guest, host_port(700));
    assert!(unread.remove(0).read_to_end()? == bytes);
    let again = (0..100).find_map(|_| {
        guest.pump(Duration::from_millis(1)).unwrap();
        guest.connect(700).ok()
    });
    assert!(again.is_some(), "the room was not given back");
    Ok(())
}

#[test]
fn a_port_may_be_used_again_once_it_is_closed() -> Result<(), Error> {
    let device = Device::start();
    let host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    for _ in 0..50 {
        guest.send_packet(
            &header(&guest, Op::Request, 50, 700).to_raw(),
            &[],
            &Layout::linux(),
        )?;
        guest.expect_packet(Op::Response)?;
        let mut end = host.accept()?;
        guest.send_packet(
            &header(&guest, Op::Rst, 50, 700).to_raw(),
            &[],
            &Layout::linux(),
        )?;
        assert_eq!(end.read_to_end()?, b"");
    }
    assert!(guest.inbox().is_empty(), "{:?}", guest.inbox());
    Ok(())
}

/// Among many, those of a pass are looked up before the first of them is dealt with.
#[test]
fn packets_sent_at_once_reach_each_its_own_of_many_connections() -> Result<(), Error> {
    let device = Device::start();
    let host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    let mut pairs = Vec::new();
    for _ in 0..300 {
        let stream = guest.connect(700)?;
        pairs.push((guest.stream(stream).local().port.value(), host.accept()?));
    }
    guest.expect_tx_returned()?;
    let mut put = |op, local_port: u32, payload: &[u8]| {
        let header = Header {
            len: payload.len() as u32,
            ..header(&guest, op, local_port, 700)
        };
        let rings = guest.rings_mut();
        assert!(rings.send(&header.to_raw(), payload, &Layout::default()));
    };
    let say = |port: u32| format!("from {port}").into_bytes();
    for (index, (port, _)) in pairs.iter().enumerate().skip(7).step_by(17) {
        put(Op::Rw, *port, &say(*port));
        match index {
            // From now on there are others than were looked up.
            75 => put(Op::Request, 1, &[]),
            // Nobody's.
            24 | 160 => put(Op::Rw, 2, b"stray"),
            _ => put(Op::Rw, *port, b"!"),
        }
    }
    guest.transport().kick(queue::TX)?;
    for (index, (port, end)) in pairs.iter_mut().enumerate().skip(7).step_by(17) {
        let mut expected = say(*port);
        if ![24, 75, 160].contains(&index) {
            expected.push(b'!');
        }
        assert_eq!(end.read_exact(expected.len())?, expected);
    }
    host.accept().map(drop)
}
