//! What two workers do to the same connection at once, in every order that a scheduler
//! comes upon. Run by `cargo xtask interleavings`; otherwise there is nothing here.
//!
//! Afterwards neither half of a connection is there without the other, nothing is charged
//! and nothing waits beside a free buffer, and whoever had a connection knows of its end.

#![cfg(shuttle)]
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

#[path = "interleavings/house.rs"]
mod house;

use house::{Guest, House, explore};
use vsock_packet::{Header, Op, ShutdownFlags};

/// Both at once, on threads of their own.
fn race(one: impl FnOnce() + Send + 'static, other: impl FnOnce() + Send + 'static) {
    let threads = [Box::new(one) as Box<dyn FnOnce() + Send>, Box::new(other)];
    let threads = threads.map(shuttle::thread::spawn);
    for thread in threads {
        thread.join().unwrap();
    }
}

fn connect(house: &House, from: &Guest, to: &Guest) {
    assert!(house.request(from, to));
    to.say(from, Op::Response);
    assert_eq!(from.ops(), [Op::Response]);
    assert_eq!(to.ops(), [Op::Request]);
}

#[test]
fn a_request_while_the_other_leaves() {
    explore(|| {
        let house = House::new();
        let [a, b] = house.pair();
        let (asker, one, other) = (house.clone(), a.clone(), b.clone());
        let (leaver, left) = (house.clone(), b.clone());
        race(move || asker.ask(&one, &other), move || leaver.leave(&left));
        assert!(a.knows_of_the_end());
        house.check_rest(&[&a, &b]);
        assert_eq!(a.member.connections(), 0);
    });
}

#[test]
fn a_request_while_the_other_starts_anew() {
    explore(|| {
        let house = House::new();
        let [a, b] = house.pair();
        let (asker, one, other) = (house.clone(), a.clone(), b.clone());
        let (reset, now) = (b.clone(), house.now);
        race(
            move || asker.ask(&one, &other),
            move || reset.member.reset(now),
        );
        house.check_rest(&[&a, &b]);
        let open = a.member.connections() == 1;
        assert!(open || a.knows_of_the_end());
    });
}

#[test]
fn a_request_while_groups_change() {
    for of_the_asker in [true, false] {
        explore(move || {
            let house = House::new();
            let [a, b] = house.pair();
            let (asker, one, other) = (house.clone(), a.clone(), b.clone());
            let (mover, moved) = (
                house.clone(),
                if of_the_asker { a.clone() } else { b.clone() },
            );
            race(
                move || asker.ask(&one, &other),
                move || mover.set_groups(&moved, "elsewhere"),
            );
            assert!(a.knows_of_the_end());
            house.check_rest(&[&a, &b]);
            assert_eq!(a.member.connections(), 0, "between groups");
        });
    }
}

#[test]
fn requests_for_each_other_with_the_same_ends() {
    explore(|| {
        let house = House::new();
        let [a, b] = house.pair();
        let (first, one, other) = (house.clone(), a.clone(), b.clone());
        let (second, this, that) = (house.clone(), b.clone(), a.clone());
        race(
            move || first.ask(&one, &other),
            move || second.ask(&this, &that),
        );
        house.check_rest(&[&a, &b]);
    });
}

#[test]
fn payload_while_the_other_leaves() {
    explore(|| {
        let house = House::new();
        let [a, b] = house.pair();
        connect(&house, &a, &b);
        let (sender, receiver) = (a.clone(), b.clone());
        let (leaver, left) = (house.clone(), b.clone());
        race(
            move || (0..3).for_each(|_| sender.send(&receiver, b"payload")),
            move || leaver.leave(&left),
        );
        assert!(a.ops().contains(&Op::Rst));
        house.check_rest(&[&a, &b]);
        assert_eq!(a.member.connections(), 0);
    });
}

#[test]
fn payload_while_groups_change() {
    explore(|| {
        let house = House::new();
        let [a, b] = house.pair();
        connect(&house, &a, &b);
        let (sender, receiver) = (a.clone(), b.clone());
        let (mover, moved) = (house.clone(), b.clone());
        race(
            move || (0..3).for_each(|_| sender.send(&receiver, b"payload")),
            move || mover.set_groups(&moved, "elsewhere"),
        );
        assert!(a.ops().contains(&Op::Rst) && b.ops().contains(&Op::Rst));
        house.check_rest(&[&a, &b]);
        assert_eq!(a.member.connections(), 0);
    });
}

#[test]
fn payload_while_buffers_are_posted() {
    explore(|| {
        let house = House::new();
        let [a, b] = house.pair();
        connect(&house, &a, &b);
        b.port.with(|queue| queue.buffers = 0);
        let (sender, receiver) = (a.clone(), b.clone());
        let poster = b.clone();
        race(
            move || (0..4u8).for_each(|i| sender.send(&receiver, &[i; 5])),
            move || (0..4).for_each(|_| poster.post(2)),
        );
        b.post(100);
        let expected: Vec<u8> = (0..4u8).flat_map(|i| [i; 5]).collect();
        assert_eq!(b.bytes(), expected);
        house.check_rest(&[&a, &b]);
        assert_eq!(a.member.connections(), 1);
    });
}

#[test]
fn both_ends_close() {
    for [one, other] in [
        [Op::Rst, Op::Rst],
        [Op::Shutdown, Op::Rst],
        [Op::Shutdown, Op::Shutdown],
    ] {
        explore(move || {
            let house = House::new();
            let [a, b] = house.pair();
            connect(&house, &a, &b);
            let ends = [(a.clone(), b.clone(), one), (b.clone(), a.clone(), other)];
            let [first, second] = ends.map(|(from, to, op)| {
                move || {
                    from.send(&to, b"the last");
                    from.say(&to, op);
                }
            });
            race(first, second);
            // Whoever is told of a full shutdown answers with an RST.
            for (end, peer) in [(&a, &b), (&b, &a)] {
                if end.ops().contains(&Op::Shutdown) {
                    end.say(peer, Op::Rst);
                }
            }
            house.check_rest(&[&a, &b]);
            assert_eq!(a.member.connections(), 0);
        });
    }
}

#[test]
fn an_answer_while_its_time_is_up() {
    explore(|| {
        let house = House::new();
        let [a, b] = house.pair();
        assert!(house.request(&a, &b));
        let (late, waiting, to) = (house.later(), a.clone(), a.clone());
        let answering = b.clone();
        race(
            move || waiting.member.handle_timeouts(late),
            move || answering.say(&to, Op::Response),
        );
        house.check_rest(&[&a, &b]);
        if a.member.connections() == 0 {
            assert!(a.ops().contains(&Op::Rst) && b.ops().contains(&Op::Rst));
        }
    });
}

#[test]
fn both_leave() {
    explore(|| {
        let house = House::new();
        let [a, b] = house.pair();
        connect(&house, &a, &b);
        let [first, second] = [&a, &b].map(|guest| {
            let (house, guest) = (house.clone(), guest.clone());
            move || house.leave(&guest)
        });
        race(first, second);
        house.check_rest(&[&a, &b]);
        assert_eq!((a.member.connections(), b.member.connections()), (0, 0));
    });
}

#[test]
fn a_clean_close_in_the_middle_of_the_others_payload() {
    explore(|| {
        let house = House::new();
        let [a, b] = house.pair();
        connect(&house, &a, &b);
        let (closing, peer) = (a.clone(), b.clone());
        let (sender, receiver) = (b.clone(), a.clone());
        race(
            move || {
                closing.send(&peer, b"all there is");
                let flags = ShutdownFlags::all().bits();
                let header = closing.header(&peer, Op::Shutdown);
                closing.take(Header { flags, ..header }, b"");
            },
            move || (0..2).for_each(|_| sender.send(&receiver, b"more")),
        );
        assert_eq!(b.bytes(), b"all there is");
        b.say(&a, Op::Rst);
        house.check_rest(&[&a, &b]);
        assert_eq!(a.member.connections(), 0);
    });
}
