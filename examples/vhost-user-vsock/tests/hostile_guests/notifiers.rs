//! Kicks and calls that are not what they should be. A VMM whose notifiers cannot be used
//! is told by the end of its session: no guest is left connected and unserved.

use std::io::{Read, Write, pipe};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{read, write};
use vsock_testkit::{Error, Guest, queue};

use crate::hostile::raw::{RawFrontend, longs, memfd, request};
use crate::hostile::{ECHO, House, done};

/// The number that an eventfd cannot be written beyond.
const FULL: u64 = u64::MAX - 1;

fn blocking_eventfd() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

/// Gives a running ring another kick or call. `false` when that ended the session.
fn give(guest: &mut Guest, code: u32, queue: usize, fd: BorrowedFd<'_>) -> bool {
    RawFrontend::of(guest).ask(code, &longs(&[queue as u64]), &[fd])
}

/// Nobody waits for a VMM that does not read its calls, however full they are.
#[test]
fn a_blocking_call_that_is_full_stops_nobody() {
    let house = House::new();
    let mut guest = house.guest();
    let mut sibling = house.sibling();
    guest.listen(80);
    let to_guest = done(sibling.start_connect(guest.at(80)));
    let from_sibling = done(guest.accept(80));
    let calls = [blocking_eventfd(), blocking_eventfd()];
    for (queue, call) in calls.iter().enumerate() {
        assert!(give(
            &mut guest,
            request::SET_VRING_CALL,
            queue,
            call.as_fd()
        ));
        write(call, &FULL.to_ne_bytes()).unwrap();
    }
    for _ in 0..20 {
        done(sibling.write_some(to_guest, &[1; 5000]).map(drop));
        house.works(&mut sibling);
        done(guest.step().map(drop));
        done(guest.read_some(from_sibling, usize::MAX).map(drop));
    }
    // The guest itself has only to look.
    for call in &calls {
        read(call, &mut [0; 8]).unwrap();
    }
    done(guest.reset());
    house.works(&mut guest);
    drop((guest, sibling));
    house.ends_unharmed();
}

/// What is written to a call that is no eventfd may block, or be anybody's.
#[test]
fn a_call_that_is_no_eventfd_ends_the_session() {
    for fd in no_eventfds() {
        let house = House::new();
        let mut guest = house.guest();
        give(&mut guest, request::SET_VRING_CALL, queue::RX, fd.as_fd());
        session_ends(&house, guest);
    }
}

#[test]
fn a_kick_that_is_no_eventfd_ends_the_session() {
    for fd in no_eventfds() {
        let house = House::new();
        let mut guest = house.guest();
        done(guest.stop());
        give(&mut guest, request::SET_VRING_KICK, queue::TX, fd.as_fd());
        let _ = guest.transport().enable(queue::TX, true);
        session_ends(&house, guest);
    }
}

fn no_eventfds() -> Vec<OwnedFd> {
    let (reader, mut writer) = pipe().unwrap();
    writer.write_all(b"1").unwrap();
    let (mut silent, _) = pipe().unwrap();
    assert_eq!(silent.read(&mut [0; 1]).unwrap(), 0);
    let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    vec![
        reader.into(),
        writer.into(),
        silent.into(),
        one.into(),
        memfd(4096),
        std::fs::File::open("/dev/null").unwrap().into(),
    ]
}

/// The guest's session ends by itself, in a bounded time.
#[track_caller]
fn session_ends(house: &House, mut guest: Guest) {
    let frontend = RawFrontend::of(&mut guest);
    frontend.expect_end();
    drop((guest, frontend));
    let mut next = house.guest();
    house.works(&mut next);
    house.has_ended_a_session();
    assert!(house.daemon.is_alive());
}

/// A kick that another reads first is a kick that was nothing.
#[test]
fn a_blocking_kick_that_another_reads() {
    let house = House::new();
    let mut guest = house.guest();
    let bases = done(guest.stop());
    let rings: Vec<_> = guest
        .rings()
        .rings()
        .iter()
        .map(|ring| (ring.size(), ring.addresses()))
        .collect();
    for (queue, (size, areas)) in rings.into_iter().enumerate() {
        done(
            guest
                .transport()
                .start_ring(queue, size, areas, bases[queue]),
        );
        let kick = blocking_eventfd();
        assert!(give(
            &mut guest,
            request::SET_VRING_KICK,
            queue,
            kick.as_fd()
        ));
        done(guest.transport().enable(queue, true));
        for _ in 0..20_000 {
            write(&kick, &1u64.to_ne_bytes()).unwrap();
            let flags = rustix::io::ReadWriteFlags::NOWAIT;
            let _ = rustix::io::preadv2(
                &kick,
                &mut [std::io::IoSliceMut::new(&mut [0; 8])],
                u64::MAX,
                flags,
            );
        }
    }
    done(guest.pump(Duration::from_millis(20)));
    done(guest.reset());
    house.works(&mut guest);
    drop(guest);
    house.ends_unharmed();
}

/// A VMM that gives a running ring another kick, and goes on kicking with the old one.
#[test]
fn a_kick_that_was_replaced_keeps_nobody_busy() {
    let house = House::new();
    let mut guest = house.guest();
    let stream = done(guest.connect(ECHO));
    let bases = done(guest.stop());
    let size = guest.rings().ring(queue::TX).size();
    let areas = guest.rings().ring(queue::TX).addresses();
    done(
        guest
            .transport()
            .start_ring(queue::TX, size, areas, bases[queue::TX]),
    );
    let old = blocking_eventfd();
    assert!(give(
        &mut guest,
        request::SET_VRING_KICK,
        queue::TX,
        old.as_fd()
    ));
    done(guest.transport().enable(queue::TX, true));
    let new = blocking_eventfd();
    assert!(give(
        &mut guest,
        request::SET_VRING_KICK,
        queue::TX,
        new.as_fd()
    ));
    write(&old, &1u64.to_ne_bytes()).unwrap();
    let ended: Result<(), Error> = guest.write_some(stream, b"x").map(drop);
    drop(ended);
    RawFrontend::of(&mut guest).expect_end();
    drop(guest);
    house.has_counted(&["faults"]);
    house.ends_unharmed();
}
