//! Guests are listed, changed and removed while they are busy, and nobody else notices.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{CID, Device, PORT, connect, house, pattern};
use vsock_packet::{Cid, GuestCid, PortNumber, VsockAddr};
use vsock_router::{Refusal, Request, Route};
use vsock_testkit::host::{Client, HostListener, Service};
use vsock_testkit::{Error, Guest, StreamId};
use vsock_vhost_user::{
    AddError, ChangeError, Changes, ClientRefusal, ConnectionKind, ConnectionState, Event, Events,
    GuestState,
};

/// How long something may take that happens on another thread.
const SOON: Duration = Duration::from_secs(5);
/// How long a removal may take.
const REMOVAL: Duration = Duration::from_secs(1);

fn cid(cid: u64) -> GuestCid {
    GuestCid::new(cid).unwrap()
}

fn groups(names: &[&str]) -> Changes {
    Changes {
        groups: Some(names.iter().map(ToString::to_string).collect()),
        ..Changes::default()
    }
}

/// The next event that `is_meant`.
fn event(events: &Events, what: &str, is_meant: impl Fn(&Event) -> bool) -> Event {
    let deadline = Instant::now() + SOON;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match events.recv_timeout(left) {
            Ok(event) if is_meant(&event) => return event,
            Ok(_) => (),
            Err(error) => panic!("waiting for {what}: {error}"),
        }
    }
}

fn state_of(device: &Device, of: u64) -> GuestState {
    device.server.guest(cid(of)).unwrap().state
}

#[test]
fn a_guest_is_listed_with_its_settings_and_its_state() -> Result<(), Error> {
    let device = Device::with(|config| {
        config.groups = vec!["a".into(), "b".into()];
        config.max_connections = 7;
    });
    let events = device.server.events();
    let status = device.server.guest(cid(CID)).unwrap();
    assert_eq!(status.socket, Some(device.socket(CID)));
    assert_eq!(status.uds_path, device.uds());
    assert_eq!(status.groups, ["a", "b"]);
    assert_eq!(status.max_connections, 7);
    assert_eq!(status.state, GuestState::Waiting);
    assert_eq!(device.server.guests(), [status]);

    let mut guest = device.guest()?;
    event(&events, "the guest", |event| {
        *event == Event::GuestUp { cid: cid(CID) }
    });
    assert_eq!(state_of(&device, CID), GuestState::Running);
    let bases = guest.stop()?;
    event(&events, "the pause", |event| {
        *event == Event::GuestPaused { cid: cid(CID) }
    });
    assert_eq!(state_of(&device, CID), GuestState::Paused);
    guest.resume(&bases)?;
    event(&events, "the guest again", |event| {
        *event == Event::GuestUp { cid: cid(CID) }
    });
    drop(guest);
    event(&events, "its end", |event| {
        *event == Event::GuestDown { cid: cid(CID) }
    });
    assert_eq!(state_of(&device, CID), GuestState::Waiting);
    Ok(())
}

#[test]
fn connections_are_listed_with_both_ends_and_what_went_each_way() -> Result<(), Error> {
    let device = house(&[(3, &["a"]), (4, &["a"])]);
    let _echo = Service::echo(&device.uds_of(3), 700)?;
    let (mut one, mut other) = (device.guest_of(3)?, device.guest_of(4)?);
    let out = one.connect(700)?;
    one.exchange(out, &pattern(1000), 1000)?;
    let (there, here) = connect(&mut one, &mut other)?;
    one.write_all(there, &pattern(500))?;
    other.read_exact(here, 500)?;

    let list = device.server.connections(None);
    let [to_host, sibling] = list.as_slice() else {
        panic!("{list:?}")
    };
    assert_eq!(to_host.kind, ConnectionKind::GuestToHost);
    assert_eq!(to_host.to, VsockAddr::new(Cid::HOST, 700));
    assert_eq!((to_host.sent, to_host.received), (1000, 1000));
    assert_eq!(to_host.state, ConnectionState::Established);
    assert_eq!(sibling.kind, ConnectionKind::Sibling);
    assert_eq!(sibling.from.cid, one.cid());
    assert_eq!(sibling.to, other.at(PORT));
    assert_eq!((sibling.sent, sibling.received), (500, 0));
    assert!(to_host.age >= sibling.age);
    let its: Vec<_> = device.server.connections(Some(cid(4)));
    assert_eq!(its.len(), 1);
    assert_eq!(its[0].id, sibling.id);
    assert_eq!(device.server.guest(cid(3)).unwrap().connections, 2);
    assert!(device.server.connections(Some(cid(9))).is_empty());
    Ok(())
}

#[test]
fn a_killed_connection_ends_at_both_ends_and_the_others_go_on() -> Result<(), Error> {
    let device = house(&[(3, &["a"]), (4, &["a"])]);
    let listener = HostListener::bind(&device.uds_of(3), 700)?;
    let (mut one, mut other) = (device.guest_of(3)?, device.guest_of(4)?);
    let (first, second) = (one.connect(700)?, one.connect(700)?);
    let (mut first_end, mut second_end) = (listener.accept()?, listener.accept()?);
    let (there, here) = connect(&mut one, &mut other)?;
    let ids: Vec<_> = device
        .server
        .connections(None)
        .iter()
        .map(|connection| connection.id)
        .collect();

    assert!(device.server.kill(ids[0]));
    one.expect_reset(first)?;
    first_end.expect_end_within(SOON)?;
    assert!(device.server.kill(ids[2]));
    one.expect_reset(there)?;
    other.expect_reset(here)?;
    assert!(!device.server.kill(ids[2]), "it is over");

    one.write_all(second, b"still here")?;
    assert_eq!(second_end.read_exact(10)?, b"still here");
    Ok(())
}

#[test]
fn events_tell_of_connections_and_of_refusals_with_their_reasons() -> Result<(), Error> {
    let device = house(&[(3, &["a"]), (4, &[])]);
    let events = device.server.events();
    let client = Client::dial(&device.uds_of(3), 80)?;
    client.expect_refusal(SOON)?;
    let refused = event(&events, "the client", |event| {
        matches!(event, Event::ClientRefused { .. })
    });
    let why = ClientRefusal::NotUp;
    assert_eq!(
        refused,
        Event::ClientRefused {
            cid: cid(3),
            port: Some(PortNumber::new(80)),
            why
        }
    );

    let mut guest = device.guest_of(3)?;
    for (to, why) in [
        (VsockAddr::new(Cid::HOST, 9), Refusal::NotListening),
        (VsockAddr::new(Cid::new(4), 9), Refusal::NoSharedGroup),
        (VsockAddr::new(Cid::new(99), 9), Refusal::NoRoute),
    ] {
        guest.connect_to(to).unwrap_err();
        let refused = event(&events, "the refusal", |event| {
            matches!(event, Event::Refused { .. })
        });
        assert!(
            matches!(refused, Event::Refused { to: its, why: reason, .. } if its == to && reason == why),
            "{refused:?}"
        );
    }

    let _echo = Service::echo(&device.uds_of(3), 700)?;
    let stream = guest.connect(700)?;
    let opened = event(&events, "the connection", |event| {
        matches!(event, Event::ConnectionOpened { .. })
    });
    guest.exchange(stream, b"abc", 3)?;
    guest.close(stream)?;
    let closed = event(&events, "its end", |event| {
        matches!(event, Event::ConnectionClosed { .. })
    });
    let (
        Event::ConnectionOpened { id, .. },
        Event::ConnectionClosed {
            id: same,
            sent,
            received,
            ..
        },
    ) = (opened, closed)
    else {
        unreachable!("they were chosen so")
    };
    assert_eq!((id, sent, received), (same, 3, 3));
    Ok(())
}

#[test]
fn a_change_of_groups_resets_what_it_forbids_and_leaves_the_rest() -> Result<(), Error> {
    let device = house(&[(3, &["a", "b"]), (4, &["a"]), (5, &["b"])]);
    let echo = Service::echo(&device.uds_of(3), 700)?;
    let (mut one, mut four, mut five) = (
        device.guest_of(3)?,
        device.guest_of(4)?,
        device.guest_of(5)?,
    );
    let host = one.connect(700)?;
    let (to_four, from_one) = connect(&mut one, &mut four)?;
    let (to_five, five_end) = connect(&mut one, &mut five)?;

    device.server.change(cid(3), &groups(&["b"])).unwrap();
    one.expect_reset(to_four)?;
    four.expect_reset(from_one)?;
    assert!(matches!(
        one.connect_to(four.at(PORT)),
        Err(Error::Refused { .. })
    ));
    one.write_all(to_five, b"same as before")?;
    assert_eq!(five.read_exact(five_end, 14)?, b"same as before");
    assert_eq!(one.exchange(host, b"x", 1)?, b"x");

    device.server.change(cid(3), &groups(&["a", "b"])).unwrap();
    connect(&mut one, &mut four)?;
    drop(echo);
    Ok(())
}

#[test]
fn other_limits_hold_for_what_comes() -> Result<(), Error> {
    let device = Device::start();
    let _echo = Service::echo(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    let (first, second) = (guest.connect(700)?, guest.connect(700)?);
    let change = Changes {
        max_connections: Some(1),
        tx_buffer_size: Some(8192),
        ..Changes::default()
    };
    device.server.change(cid(CID), &change).unwrap();
    assert!(guest.connect(700).is_err(), "one is the limit");
    guest.close(first)?;
    assert_eq!(guest.exchange(second, b"x", 1)?, b"x");
    guest.close(second)?;
    let third = guest.connect(700)?;
    assert_eq!(guest.stream(third).peer_buf_alloc(), 8192);
    let status = device.server.guest(cid(CID)).unwrap();
    assert_eq!((status.max_connections, status.tx_buffer_size), (1, 8192));
    Ok(())
}

#[test]
fn other_host_routes_hold_at_once() -> Result<(), Error> {
    let device = Device::with(|config| config.host_cids = vec![Cid::new(8)]);
    let _echo = Service::echo(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    let old = guest.connect_to(VsockAddr::new(Cid::new(8), 700))?;
    let stays = guest.connect(700)?;
    let change = Changes {
        host_cids: Some(vec![Cid::new(9)]),
        ..Changes::default()
    };
    device.server.change(cid(CID), &change).unwrap();
    guest.expect_reset(old)?;
    assert!(guest.connect_to(VsockAddr::new(Cid::new(8), 700)).is_err());
    let new = guest.connect_to(VsockAddr::new(Cid::new(9), 700))?;
    assert_eq!(guest.exchange(new, b"x", 1)?, b"x");
    assert_eq!(guest.exchange(stays, b"y", 1)?, b"y");
    Ok(())
}

#[test]
fn what_cannot_be_changed_leaves_the_guest_as_it_was() {
    let device = house(&[(3, &["a"]), (4, &["b"])]);
    let server = &device.server;
    let no_such = server.change(cid(9), &groups(&["a"]));
    assert_eq!(no_such, Err(ChangeError::NoSuchGuest(cid(9))));

    let means_host = |cids: &[u32]| Changes {
        host_cids: Some(cids.iter().copied().map(Cid::new).collect()),
        ..Changes::default()
    };
    server.change(cid(3), &means_host(&[4])).unwrap();
    let error = server.change(cid(4), &groups(&["a"])).unwrap_err();
    assert!(matches!(error, ChangeError::TwoMeanings(_)), "{error}");
    assert_eq!(server.guest(cid(4)).unwrap().groups, ["b"]);
    let mut fifth = device.config(5);
    fifth.groups = vec!["a".into()];
    fifth.host_cids = vec![Cid::new(3)];
    let error = server.add(fifth).unwrap_err();
    assert!(matches!(error, AddError::TwoMeanings(_)), "{error}");
    assert!(!device.socket(5).exists() && !device.uds_of(5).exists());

    let refuses_all = Arc::new(|_: &Request| Route::Refuse(Refusal::NoRoute));
    server.add_with(device.config(6), refuses_all).unwrap();
    let error = server.change(cid(6), &means_host(&[8])).unwrap_err();
    assert_eq!(error, ChangeError::OwnRouter(cid(6)));
}

/// Sends as much as goes until nobody takes any more.
fn write_on(mut guest: Guest, streams: Vec<StreamId>) -> thread::JoinHandle<Guest> {
    let bytes = pattern(64 << 10);
    guest.patience = Duration::from_millis(500);
    thread::spawn(move || {
        while streams
            .iter()
            .all(|stream| guest.write_all(*stream, &bytes).is_ok())
        {}
        guest
    })
}

/// Reads until the stream is reset. `started` is set once something has come.
fn read_on(
    mut guest: Guest,
    stream: StreamId,
    started: Arc<AtomicBool>,
) -> thread::JoinHandle<Result<Guest, Error>> {
    thread::spawn(move || {
        while !guest.stream(stream).was_reset() {
            let some = guest.read_some(stream, 64 << 10)?;
            started.fetch_or(!some.is_empty(), Ordering::Relaxed);
        }
        Ok(guest)
    })
}

fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "waiting for {what}");
        thread::yield_now();
    }
}

#[test]
fn a_guest_is_removed_under_full_load_and_comes_back_with_the_same_cid() -> Result<(), Error> {
    let device = house(&[(3, &["a"]), (4, &["a"]), (5, &["a"])]);
    let (sink, _echo) = (
        Service::sink(&device.uds_of(3), 700)?,
        Service::echo(&device.uds_of(5), 700)?,
    );
    let (mut one, mut other) = (device.guest_of(3)?, device.guest_of(4)?);
    let mut witness = device.guest_of(5)?;
    let witnessed = witness.connect(700)?;
    for round in 0..5 {
        let to_host = one.connect(700)?;
        let (there, here) = connect(&mut one, &mut other)?;
        let started = Arc::new(AtomicBool::new(false));
        let writer = write_on(one, vec![there, to_host]);
        let reader = read_on(other, here, Arc::clone(&started));
        wait_for("load", || started.load(Ordering::Relaxed));

        let start = Instant::now();
        assert!(device.remove(3));
        let elapsed = start.elapsed();
        assert!(elapsed < REMOVAL, "removal {round} took {elapsed:?}");
        assert!(!device.socket(3).exists() && !device.uds_of(3).exists());
        let mut removed = writer.join().unwrap();
        assert!(removed.stop().is_err(), "its frontend is still connected");
        other = reader.join().unwrap()?;
        assert_eq!(witness.exchange(witnessed, b"unharmed", 8)?, b"unharmed");

        let mut config = device.config(3);
        config.groups = vec!["a".into()];
        device.server.add(config).unwrap();
        one = device.guest_of(3)?;
    }
    assert!(device.server.connections(Some(cid(3))).is_empty());
    drop(sink);
    Ok(())
}

#[test]
fn a_list_does_not_wait_for_guests_that_are_being_removed() {
    let device = house(&[(3, &[])]);
    let done = AtomicBool::new(false);
    let longest = thread::scope(|scope| {
        let lists = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            while !done.load(Ordering::Relaxed) {
                let start = Instant::now();
                device.server.connections(None);
                longest = longest.max(start.elapsed());
            }
            longest
        });
        for _ in 0..200 {
            device.server.add(device.config(4)).unwrap();
            assert!(device.remove(4));
        }
        done.store(true, Ordering::Relaxed);
        lists.join().unwrap()
    });
    assert!(longest < REMOVAL, "a list took {longest:?}");
}
