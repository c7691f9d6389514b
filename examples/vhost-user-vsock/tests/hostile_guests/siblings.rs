//! What guests of a group can do to each other.

use std::time::{Duration, Instant};

use vsock_packet::{Header, Op, RwFlags, SocketType};
use vsock_testkit::{Behaviour, Layout, Refill, RxBuffers, State};

use crate::hostile::{House, done, header};

/// Both wait for an RST that the other does not send, as Linux does not.
#[test]
fn two_that_close_at_once_wait_for_nobody() {
    let house = House::new();
    let (mut guest, mut sibling) = (house.guest(), house.sibling());
    for one in [&mut guest, &mut sibling] {
        one.behaviour.answers_shutdown = false;
    }
    sibling.listen(80);
    for _ in 0..20 {
        let to = done(guest.start_connect(sibling.at(80)));
        let from = done(sibling.accept(80));
        done(guest.wait_until("the answer", |guest| {
            guest.stream(to).state() == State::Established
        }));
        let start = Instant::now();
        done(guest.start_close(to));
        done(sibling.start_close(from));
        for (one, stream) in [(&mut guest, to), (&mut sibling, from)] {
            done(one.wait_until("the RST", |one| one.stream(stream).state() == State::Closed));
        }
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "{:?}",
            start.elapsed()
        );
    }
    for one in [&mut guest, &mut sibling] {
        one.behaviour = Behaviour::linux();
    }
    house.works_again(&mut guest);
    house.works(&mut sibling);
    drop((guest, sibling));
    house.ends_unharmed();
}

/// Empty messages take no credit, and yet a receiver that does not read gets only so many.
#[test]
fn empty_messages_to_one_that_does_not_read() {
    let house = House::new();
    let (mut guest, mut sibling) = (house.guest(), house.sibling());
    sibling.leave_to_hand(80);
    let to = sibling.at(80);
    let message = |op| Header {
        socket_type: SocketType::Seqpacket,
        flags: if op == Op::Rw { RwFlags::EOM.bits() } else { 0 },
        ..header(&guest, op, 1000, to)
    };
    let [request, empty, question] =
        [Op::Request, Op::Rw, Op::CreditRequest].map(|op| message(op).to_raw());
    done(guest.send_packet(&request, &[], &Layout::linux()));
    let asked = done(sibling.expect_packet(Op::Request)).parse().unwrap();
    let says = |op| {
        let answer = Header {
            src: asked.dst,
            dst: asked.src,
            ..asked
        };
        Header { op, ..answer }.to_raw()
    };
    done(sibling.send_packet(&says(Op::Response), &[], &Layout::linux()));
    done(guest.expect_packet(Op::Response));
    let mut came = 0;
    for _ in 0..2000 {
        done(guest.send_packet(&empty, &[], &Layout::linux()));
        done(guest.send_packet(&question, &[], &Layout::linux()));
        done(sibling.step());
        for packet in std::mem::take(sibling.inbox()) {
            match packet.op() {
                Some(Op::Rw) => came += 1,
                Some(Op::CreditRequest) => {
                    let answer = says(Op::CreditUpdate);
                    done(sibling.send_packet(&answer, &[], &Layout::linux()));
                }
                _ => (),
            }
        }
        guest.inbox().clear();
    }
    // One for each KiB of its buffer, and a few that are let through as time goes by.
    assert!((256..300).contains(&came), "{came} of 2000 came");
    house.works_again(&mut guest);
    house.works(&mut sibling);
    drop((guest, sibling));
    house.ends_unharmed();
}

/// A sibling that takes nothing costs who sends to it, and slows nobody else.
#[test]
fn much_for_one_that_takes_nothing() {
    let house = House::new();
    let (mut guest, mut sibling) = (house.guest(), house.sibling());
    sibling.listen(80);
    let mut streams = Vec::new();
    for _ in 0..50 {
        streams.push(done(guest.start_connect(sibling.at(80))));
        done(sibling.accept(80));
    }
    sibling.rings_mut().set_rx_buffers(RxBuffers {
        refill: Refill::ByHand,
        ..RxBuffers::default()
    });
    for _ in 0..20 {
        for &stream in &streams {
            done(guest.write_some(stream, &[1; 100_000]).map(drop));
        }
        done(sibling.step());
        done(guest.expect_tx_returned());
    }
    house.works(&mut guest);
    house.is_at_rest();
    sibling.rings_mut().set_rx_buffers(RxBuffers::default());
    done(sibling.reset());
    house.works(&mut sibling);
    house.works_again(&mut guest);
    drop((guest, sibling));
    house.ends_unharmed();
}
