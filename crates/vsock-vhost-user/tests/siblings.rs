//! Guests of one server reach each other, by the groups they share.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::{AT_ONCE, PORT, assert_at_once, connect, house, is_up, pattern};
use vsock_packet::{Cid, Features, Header, Op, ShutdownFlags, SocketType, VsockAddr};
use vsock_testkit::host::Service;
use vsock_testkit::{Behaviour, Error, Guest, Layout, Refill, RxBuffers, Setup, State, feature};

fn at(guest: &Guest, port: u32) -> VsockAddr {
    guest.at(port)
}

/// Has a guest ask for a connection that it must not get.
fn refused_at_once(guest: &mut Guest, peer: VsockAddr) {
    let start = Instant::now();
    let error = guest.connect_to(peer).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert_at_once(start, "the refusal");
}

#[test]
fn bulk_data_arrives_whole_whatever_the_size_of_packets() -> Result<(), Error> {
    const LEN: usize = 4 << 20;
    for max_packet in [1000, 3732, 3733, 64 << 10] {
        let device = house(&[(3, &["a"]), (4, &["a"])]);
        let behaviour = Behaviour {
            max_packet,
            ..Behaviour::linux()
        };
        let mut one = Guest::start(
            device.socket(3),
            Setup {
                behaviour,
                ..Setup::default()
            },
        )?;
        let mut other = device.guest_of(4)?;
        let (there, here) = connect(&mut one, &mut other)?;
        let reader = thread::spawn(move || other.read_exact(here, LEN));
        one.write_all(there, &pattern(LEN))?;
        assert!(
            reader.join().unwrap()? == pattern(LEN),
            "packets of {max_packet}"
        );
    }
    Ok(())
}

#[test]
fn both_ways_at_once() -> Result<(), Error> {
    const LEN: usize = 4 << 20;
    let device = house(&[(3, &["a"]), (4, &["a"])]);
    let (mut one, mut other) = (device.guest_of(3)?, device.guest_of(4)?);
    let (there, here) = connect(&mut one, &mut other)?;
    let peer = thread::spawn(move || other.exchange(here, &pattern(LEN), LEN));
    assert!(one.exchange(there, &pattern(LEN), LEN)? == pattern(LEN));
    assert!(peer.join().unwrap()? == pattern(LEN));
    Ok(())
}

#[test]
fn many_small_packets_do_not_overrun_a_reader_that_is_away() -> Result<(), Error> {
    let device = house(&[(3, &["a"]), (4, &["a"])]);
    let behaviour = Behaviour {
        max_packet: 1,
        ..Behaviour::linux()
    };
    let mut one = Guest::start(
        device.socket(3),
        Setup {
            behaviour,
            ..Setup::default()
        },
    )?;
    let mut other = device.guest_of(4)?;
    let (there, here) = connect(&mut one, &mut other)?;
    one.write_all(there, &pattern(5000))?;
    let bytes = thread::spawn(move || other.read_exact(here, 5000))
        .join()
        .unwrap()?;
    assert!(bytes == pattern(5000));
    Ok(())
}

#[test]
fn only_those_who_share_a_group_meet() -> Result<(), Error> {
    let device = house(&[(3, &["a", "b"]), (4, &["b"]), (5, &["c"]), (6, &[])]);
    let mut one = device.guest_of(3)?;
    let mut alike = device.guest_of(4)?;
    connect(&mut one, &mut alike)?;
    for cid in [5, 6] {
        let mut other = device.guest_of(cid)?;
        is_up(&mut other);
        other.listen(PORT);
        let theirs = at(&other, PORT);
        refused_at_once(&mut one, theirs);
        let ours = at(&one, PORT);
        refused_at_once(&mut other, ours);
    }
    Ok(())
}

#[test]
fn a_guest_without_a_group_reaches_the_host() -> Result<(), Error> {
    let device = house(&[(6, &[])]);
    let _echo = Service::echo(&device.uds_of(6), 700)?;
    let mut guest = device.guest_of(6)?;
    let stream = guest.connect(700)?;
    assert_eq!(guest.exchange(stream, b"hello", 5)?, b"hello");
    Ok(())
}

#[test]
fn refuses_at_once_what_is_not_there() -> Result<(), Error> {
    let device = house(&[(3, &["a"]), (4, &["a"]), (5, &["a"])]);
    let mut one = device.guest_of(3)?;
    refused_at_once(&mut one, VsockAddr::new(Cid::new(99), PORT));
    refused_at_once(&mut one, VsockAddr::new(Cid::new(5), PORT));
    let own = at(&one, PORT);
    refused_at_once(&mut one, own);

    let mut other = device.guest_of(4)?;
    is_up(&mut other);
    let closed = one.start_connect(at(&other, PORT))?;
    let start = Instant::now();
    other.wait_until("the REQUEST", |other| other.refused() > 0)?;
    one.wait_until("the refusal", |one| one.stream(closed).was_reset())?;
    assert_at_once(start, "the refusal");
    Ok(())
}

#[test]
fn a_type_the_sibling_does_not_take_is_refused() -> Result<(), Error> {
    let device = house(&[(3, &["a"]), (4, &["a"])]);
    let mut one = device.guest_of(3)?;
    let mut other = Guest::start(
        device.socket(4),
        Setup {
            features: feature::LINUX & !Features::SEQPACKET.bits(),
            ..Setup::default()
        },
    )?;
    is_up(&mut other);
    let request = Header {
        socket_type: SocketType::Seqpacket,
        ..Header::new(Op::Request, at(&one, 50), at(&other, PORT))
    };
    one.send_packet(&request.to_raw(), &[], &Layout::linux())?;
    let rst = one.expect_packet(Op::Rst)?.parse().unwrap();
    assert_eq!(
        (rst.socket_type, rst.src, rst.dst),
        (request.socket_type, request.dst, request.src)
    );
    Ok(())
}

#[test]
fn an_absent_sibling_can_be_reached_once_it_is_there() -> Result<(), Error> {
    let device = house(&[(3, &["a"]), (4, &["a"])]);
    let mut one = device.guest_of(3)?;
    refused_at_once(&mut one, VsockAddr::new(Cid::new(4), PORT));
    let mut other = device.guest_of(4)?;
    let (there, here) = connect(&mut one, &mut other)?;
    one.write_all(there, b"hello")?;
    assert_eq!(other.read_exact(here, 5)?, b"hello");
    Ok(())
}

#[test]
fn halves_end_one_by_one() -> Result<(), Error> {
    let device = house(&[(3, &["a"]), (4, &["a"])]);
    let (mut one, mut other) = (device.guest_of(3)?, device.guest_of(4)?);
    let (there, here) = connect(&mut one, &mut other)?;
    one.write_all(there, b"question")?;
    one.shutdown(there, ShutdownFlags::SEND)?;
    assert_eq!(other.read_to_end(here)?, b"question");
    other.write_all(here, b"answer")?;
    assert_eq!(one.read_exact(there, 6)?, b"answer");
    other.start_close(here)?;
    assert_eq!(one.read_to_end(there)?, b"");
    one.pump(Duration::from_millis(20))?;
    other.wait_until("the RST", |other| {
        other.stream(here).state() == State::Closed
    })?;
    Ok(())
}

#[test]
fn a_close_loses_nothing_that_was_sent() -> Result<(), Error> {
    let device = house(&[(3, &["a"]), (4, &["a"])]);
    let (mut one, mut other) = (device.guest_of(3)?, device.guest_of(4)?);
    let (there, here) = connect(&mut one, &mut other)?;
    one.write_all(there, &pattern(200_000))?;
    one.start_close(there)?;
    assert!(other.read_to_end(here)? == pattern(200_000));
    Ok(())
}

#[test]
fn a_sibling_that_dies_ends_its_connections_at_once_and_its_successor_is_reached()
-> Result<(), Error> {
    let device = house(&[(3, &["a"]), (4, &["a"])]);
    let (mut one, mut other) = (device.guest_of(3)?, device.guest_of(4)?);
    let (there, _) = connect(&mut one, &mut other)?;
    one.write_all(there, &pattern(100_000))?;
    let start = Instant::now();
    drop(other);
    one.wait_until("the RST", |one| one.stream(there).was_reset())?;
    assert_at_once(start, "the RST");

    let mut other = device.guest_of(4)?;
    let (there, here) = connect(&mut one, &mut other)?;
    one.write_all(there, b"hello")?;
    assert_eq!(other.read_exact(here, 5)?, b"hello");
    Ok(())
}

#[test]
fn a_sibling_that_is_reset_ends_its_connections() -> Result<(), Error> {
    let device = house(&[(3, &["a"]), (4, &["a"])]);
    let (mut one, mut other) = (device.guest_of(3)?, device.guest_of(4)?);
    let (there, _) = connect(&mut one, &mut other)?;
    other.reset()?;
    one.wait_until("the RST", |one| one.stream(there).was_reset())?;
    connect(&mut one, &mut other)?;
    Ok(())
}

#[test]
fn a_sibling_that_is_removed_ends_its_connections() -> Result<(), Error> {
    let device = house(&[(3, &["a"]), (4, &["a"])]);
    let (mut one, mut other) = (device.guest_of(3)?, device.guest_of(4)?);
    let (there, _) = connect(&mut one, &mut other)?;
    assert!(device.remove(4));
    one.wait_until("the RST", |one| one.stream(there).was_reset())?;
    refused_at_once(&mut one, VsockAddr::new(Cid::new(4), PORT));
    Ok(())
}

#[test]
fn connections_survive_a_pause_of_the_sibling() -> Result<(), Error> {
    let device = house(&[(3, &["a"]), (4, &["a"])]);
    let (mut one, mut other) = (device.guest_of(3)?, device.guest_of(4)?);
    let (there, here) = connect(&mut one, &mut other)?;
    let bases = other.stop()?;
    one.write_all(there, &pattern(100_000))?;
    other.resume(&bases)?;
    assert!(other.read_exact(here, 100_000)? == pattern(100_000));
    other.write_all(here, b"back")?;
    assert_eq!(one.read_exact(there, 4)?, b"back");
    Ok(())
}

#[test]
fn a_sibling_that_never_refills_slows_nobody() -> Result<(), Error> {
    let device = house(&[(3, &["a"]), (4, &["a"]), (5, &["a"])]);
    let mut one = device.guest_of(3)?;
    let rx = RxBuffers {
        refill: Refill::ByHand,
        count: 8,
        ..RxBuffers::default()
    };
    let mut stalled = Guest::start(
        device.socket(4),
        Setup {
            rx,
            ..Setup::default()
        },
    )?;
    stalled.refill_rx(8)?;
    let mut lively = device.guest_of(5)?;
    let (to_stalled, _) = connect(&mut one, &mut stalled)?;
    let (to_lively, here) = connect(&mut one, &mut lively)?;
    let written = one.write_some(to_stalled, &pattern(256 << 10))?;
    assert_eq!(
        written,
        256 << 10,
        "all of the window, though nobody takes it"
    );
    let start = Instant::now();
    one.write_all(to_lively, b"hello")?;
    assert_eq!(lively.read_exact(here, 5)?, b"hello");
    assert!(start.elapsed() < AT_ONCE);
    Ok(())
}

#[test]
fn a_forged_source_is_refused_and_reaches_nobody() -> Result<(), Error> {
    let device = house(&[(3, &["a"]), (4, &["a"]), (5, &["a"])]);
    let (mut one, mut other) = (device.guest_of(3)?, device.guest_of(4)?);
    is_up(&mut other);
    other.listen(PORT);
    let forged = VsockAddr::new(Cid::new(5), 50);
    let request = Header::new(Op::Request, forged, at(&other, PORT));
    one.send_packet(&request.to_raw(), &[], &Layout::linux())?;
    let rst = one.expect_packet(Op::Rst)?.parse().unwrap();
    assert_eq!((rst.src, rst.dst), (request.dst, forged));
    other.pump(Duration::from_millis(20))?;
    assert_eq!(other.refused(), 0);
    assert!(other.inbox().is_empty());
    Ok(())
}

#[test]
fn whoever_exceeds_the_credit_is_reset_and_counted() -> Result<(), Error> {
    let device = house(&[(3, &["a"]), (4, &["a"])]);
    let (mut one, mut other) = (device.guest_of(3)?, device.guest_of(4)?);
    let (there, here) = connect(&mut one, &mut other)?;
    one.behaviour.obeys_credit = false;
    one.write_all(there, &pattern((256 << 10) + 1))?;
    one.wait_until("the RST", |one| one.stream(there).was_reset())?;
    other.wait_until("the RST", |other| other.stream(here).was_reset())?;
    let cid = vsock_packet::GuestCid::new(3).unwrap();
    assert_eq!(device.server.counters(cid).unwrap().siblings.violations, 1);
    Ok(())
}

#[test]
fn a_cid_may_mean_the_host_to_one_guest() -> Result<(), Error> {
    let device = house(&[(3, &["a"])]);
    let mut config = device.config(4);
    config.groups = vec!["b".into()];
    config.host_cids = vec![Cid::new(3)];
    device.server.add(config).unwrap();
    let _echo = Service::echo(&device.uds_of(4), 9000)?;
    let mut enclave = device.guest_of(4)?;
    let stream = enclave.connect_to(VsockAddr::new(Cid::new(3), 9000))?;
    assert_eq!(enclave.exchange(stream, &[0xb7], 1)?, [0xb7]);
    Ok(())
}
