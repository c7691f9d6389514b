//! vhost-user messages out of order, repeated, cut short, with wrong and missing
//! descriptors.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use vsock_testkit::feature;

use crate::hostile::raw::{
    NEED_REPLY, RawFrontend, VERSION, longs, memfd, message, null, request, words,
};
use crate::hostile::{Dice, HOSTILE, House};

/// What a frontend's address space begins with, as it says.
const USER: u64 = 0x7000_0000_0000;
const MEMORY: u64 = 1 << 20;

/// How far a frontend has come with its handshake.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Connected,
    Negotiated,
    Running,
}

const STAGES: [Stage; 3] = [Stage::Connected, Stage::Negotiated, Stage::Running];

/// All protocol features there could be, those that are not offered too.
const EVERYTHING: u64 = u64::MAX;
/// What is offered to a driver, and the protocol features.
const FEATURES: u64 = feature::LINUX | 1 << 30;

/// Comes as far as `stage`.
fn frontend(house: &House, stage: Stage, protocol: u64) -> RawFrontend {
    let frontend = RawFrontend::connect(&house.socket(HOSTILE));
    let says = |code, body: &[u8], fds: &[BorrowedFd<'_>]| {
        assert!(frontend.say(code, VERSION, body, fds), "{code}");
    };
    if matches!(stage, Stage::Connected) {
        return frontend;
    }
    says(request::GET_FEATURES, &[], &[]);
    frontend.read().unwrap();
    says(request::SET_PROTOCOL_FEATURES, &longs(&[protocol]), &[]);
    says(request::SET_FEATURES, &longs(&[FEATURES]), &[]);
    if matches!(stage, Stage::Negotiated) {
        return frontend;
    }
    let memory = memfd(MEMORY);
    says(request::SET_MEM_TABLE, &table(), &[memory.as_fd()]);
    for ring in 0..2 {
        let place = USER + u64::from(ring) * 0x10000;
        says(request::SET_VRING_NUM, &words(&[ring, 128]), &[]);
        says(request::SET_VRING_BASE, &words(&[ring, 0]), &[]);
        says(request::SET_VRING_ADDR, &ring_addresses(ring, place), &[]);
        for code in [request::SET_VRING_KICK, request::SET_VRING_CALL] {
            says(code, &longs(&[ring.into()]), &[eventfd().as_fd()]);
        }
        says(request::SET_VRING_ENABLE, &words(&[ring, 1]), &[]);
    }
    frontend
}

fn table() -> Vec<u8> {
    let region = longs(&[0, MEMORY, USER, 0]);
    [words(&[1, 0]), region].concat()
}

fn ring_addresses(ring: u32, place: u64) -> Vec<u8> {
    let addresses = longs(&[
        place,
        place.wrapping_add(0x2000),
        place.wrapping_add(0x1000),
        0,
    ]);
    [words(&[ring, 0]), addresses].concat()
}

fn eventfd() -> OwnedFd {
    use rustix::event::{EventfdFlags, eventfd};
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

#[test]
fn every_message_of_every_length_with_and_without_descriptors() {
    let house = House::new();
    let fd = null();
    for stage in STAGES {
        for code in 0..=request::END {
            for len in [0, 1, 7, 8, 12, 16, 32, 40, 48, 4096] {
                for fds in [0, 1, 3] {
                    let frontend = frontend(&house, stage, EVERYTHING);
                    let fds = vec![fd.as_fd(); fds];
                    frontend.say(code, NEED_REPLY, &vec![1; len], &fds);
                }
            }
        }
    }
    house.has_counted(&["faults"]);
    house.ends_unharmed();
}

#[test]
fn headers_of_messages_that_are_none() {
    let house = House::new();
    for (code, flags, len) in [
        (0, 0, 0),
        (1, 0, 0),
        (1, 2, 0),
        (1, 4, 0),
        (1, 5, 0),
        (1, u32::MAX, 0),
        (1, 1, 4097),
        (1, 1, u32::MAX),
        (u32::MAX, 1, 0),
        (u32::MAX, u32::MAX, u32::MAX),
    ] {
        let frontend = RawFrontend::connect(&house.socket(HOSTILE));
        frontend.send(&words(&[code, flags, len]), &[]);
        frontend.expect_end();
    }
    house.has_counted(&["faults"]);
    house.ends_unharmed();
}

#[test]
fn messages_cut_short_at_every_byte() {
    let house = House::new();
    let memory = memfd(MEMORY);
    for stage in [Stage::Connected, Stage::Negotiated] {
        let whole = message(request::SET_MEM_TABLE, NEED_REPLY, &table());
        for cut in 0..whole.len() {
            let frontend = frontend(&house, stage, 0);
            frontend.send(&whole[..cut], &[memory.as_fd()]);
        }
    }
    house.has_counted(&["faults"]);
    house.ends_unharmed();
}

/// A frontend that stops in the middle of a message holds up nobody, nor the end.
#[test]
fn a_message_that_never_ends() {
    let house = House::new();
    let frontend = frontend(&house, Stage::Running, 0);
    frontend.send(
        &message(request::SET_VRING_NUM, VERSION, &words(&[0, 128]))[..7],
        &[],
    );
    assert!(frontend.is_quiet_for(Duration::from_millis(50)));
    drop(frontend);
    house.ends_unharmed();
}

#[test]
fn right_messages_in_any_order_with_any_values() {
    let house = House::new();
    let mut dice = Dice::new(5);
    for _ in 0..300 {
        let stage = dice.pick(&STAGES);
        let protocol = dice.pick(&[0, EVERYTHING, 1 << 15, 1 << 3]);
        let frontend = frontend(&house, stage, protocol);
        for _ in 0..30 {
            if !says_anything(&frontend, &mut dice) {
                break;
            }
        }
    }
    house.has_counted(&["faults"]);
    house.ends_unharmed();
}

/// A message that is well-formed, at least.
fn says_anything(frontend: &RawFrontend, dice: &mut Dice) -> bool {
    use request::*;
    let code = dice.pick(&[
        SET_FEATURES,
        SET_OWNER,
        RESET_OWNER,
        SET_MEM_TABLE,
        SET_VRING_NUM,
        SET_VRING_ADDR,
        SET_VRING_BASE,
        GET_VRING_BASE,
        SET_VRING_KICK,
        SET_VRING_CALL,
        SET_VRING_ENABLE,
        SET_PROTOCOL_FEATURES,
        ADD_MEM_REG,
        REM_MEM_REG,
        34,
    ]);
    let ring = dice.pick(&[0, 0, 0, 1, 1, 1, 2, 3, 255, u32::MAX]);
    let number = dice.pick(&[0, 1, 1, 1, 127, 128, 256, 1024, 1025, 65_535, u32::MAX]);
    let place = dice.pick(&[
        USER,
        USER + 0x10000,
        USER + 1,
        USER + MEMORY - 8,
        0,
        u64::MAX - 8,
    ]);
    let size = dice.pick(&[MEMORY, MEMORY, 0, 1, 4096, 1 << 40, u64::MAX]);
    let start = dice.pick(&[0, 0, 0, MEMORY, 4096, 1 << 63, u64::MAX]);
    let region = longs(&[start, size, place, dice.pick(&[0, 0, 4096, u64::MAX])]);
    let fd = match dice.below(4) {
        0 => memfd(4096),
        1 => null(),
        2 => memfd(MEMORY),
        _ => eventfd(),
    };
    let fd = [fd.as_fd()];
    match code {
        SET_FEATURES => frontend.say(code, VERSION, &longs(&[dice.pick(&[FEATURES, 0])]), &[]),
        SET_PROTOCOL_FEATURES => frontend.say(code, VERSION, &longs(&[dice.next()]), &[]),
        SET_MEM_TABLE => {
            let table = [words(&[1, 0]), region].concat();
            frontend.say(code, VERSION, &table, &fd)
        }
        ADD_MEM_REG => frontend.say(code, VERSION, &[longs(&[0]), region].concat(), &fd),
        REM_MEM_REG => frontend.say(code, VERSION, &[longs(&[0]), region].concat(), &[]),
        SET_VRING_ADDR => frontend.say(code, VERSION, &ring_addresses(ring, place), &[]),
        SET_VRING_KICK | SET_VRING_CALL => {
            let without = u64::from(dice.below(4) == 0) << 8;
            let fds = if without == 0 { &fd[..] } else { &[] };
            let eventfd = eventfd();
            let eventfd = [eventfd.as_fd()];
            let fds = if dice.below(2) == 0 && without == 0 {
                &eventfd[..]
            } else {
                fds
            };
            frontend.say(code, VERSION, &longs(&[u64::from(ring) | without]), fds)
        }
        SET_OWNER | RESET_OWNER | 34 => frontend.say(code, VERSION, &[], &[]),
        _ => frontend.say(code, VERSION, &words(&[ring, number]), &[]),
    }
}

/// The second is served when the first has left: it may be the next VM, come early.
#[test]
fn two_frontends_on_one_socket() {
    let house = House::new();
    let mut guest = house.guest();
    let second = RawFrontend::connect(&house.socket(HOSTILE));
    assert!(second.say(request::GET_FEATURES, VERSION, &[], &[]));
    assert!(second.is_quiet_for(Duration::from_millis(50)));
    house.works(&mut guest);
    drop(guest);
    let second_again = RawFrontend::connect(&house.socket(HOSTILE));
    drop(second);
    assert!(second_again.say(request::GET_FEATURES, VERSION, &[], &[]));
    assert!(second_again.read().is_some());
    drop(second_again);
    house.ends_unharmed();
}

/// Regions cost the process descriptors and mappings, of which all guests need some.
#[test]
fn memory_in_ever_more_regions() {
    let house = House::new();
    let frontend = frontend(&house, Stage::Negotiated, 1 << 15 | 1 << 3);
    let memory = memfd(4096);
    let mut count = 0;
    for index in 0..5000 {
        let region = longs(&[0, index << 12, 4096, USER + (index << 12), 0]);
        if !frontend.ask(request::ADD_MEM_REG, &region, &[memory.as_fd()]) {
            break;
        }
        count = index + 1;
    }
    assert_eq!(count, 509, "as many as GET_MAX_MEM_SLOTS says");
    drop(frontend);
    house.ends_unharmed();
}

#[test]
fn memory_told_again_and_again() {
    let house = House::new();
    let frontend = frontend(&house, Stage::Running, 1 << 15 | 1 << 3);
    let memory = memfd(MEMORY);
    for _ in 0..2000 {
        assert!(frontend.ask(request::SET_MEM_TABLE, &table(), &[memory.as_fd()]));
    }
    drop(frontend);
    house.ends_unharmed();
}

#[test]
fn frontends_that_come_and_go() {
    let house = House::new();
    for round in 0..300 {
        drop(frontend(&house, STAGES[round % 3], EVERYTHING));
    }
    house.ends_unharmed();
}
