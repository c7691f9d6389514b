//! Packets without measure: to the host, to siblings, to nobody.

use std::time::Duration;

use vsock_packet::{Cid, Header, Op, ShutdownFlags, VsockAddr};
use vsock_testkit::{Behaviour, Guest, Layout, Setup};

use crate::hostile::{ECHO, HOSTILE, House, SIBLING, WITNESS, done, header, host};

/// Packets of a flood.
const COUNT: u32 = 20_000;

/// Sends a flood that the scenario makes up, to the host, to a sibling and to nobody. It is
/// found in these counters.
fn flood(counters: &[&str], mut packet: impl FnMut(&Guest, VsockAddr, u32) -> Header) {
    let house = House::new();
    let mut guest = house.guest_with(Setup {
        behaviour: Behaviour {
            resets_strangers: false,
            ..Behaviour::linux()
        },
        ..Setup::default()
    });
    let mut sibling = house.sibling();
    sibling.listen(80);
    let nobody = VsockAddr::new(Cid::new(WITNESS), 80);
    for (to, count) in [
        (host(ECHO), COUNT),
        (sibling.at(80), COUNT / 2),
        (nobody, COUNT / 4),
    ] {
        for round in 0..count {
            let header = packet(&guest, to, round).to_raw();
            let payload = &[1; 64][..header.len() as usize];
            done(guest.send_packet(&header, payload, &Layout::whole()));
            guest.inbox().clear();
            if round % 64 == 0 {
                done(sibling.step());
                sibling.inbox().clear();
            }
        }
        done(guest.expect_tx_returned());
    }
    house.works_again(&mut guest);
    house.works(&mut sibling);
    drop((guest, sibling));
    house.has_counted(counters);
    house.ends_unharmed();
}

#[test]
fn of_requests_from_ever_new_ports() {
    flood(&["refused_requests"], |guest, to, round| {
        header(guest, Op::Request, 1000 + round, to)
    });
}

#[test]
fn of_requests_from_one_port() {
    flood(&["refused_requests", "violations"], |guest, to, _| {
        header(guest, Op::Request, 1000, to)
    });
}

#[test]
fn of_requests_to_ever_new_ports() {
    flood(&["refused_requests"], |guest, mut to, round| {
        to = VsockAddr::new(to.cid, round);
        header(guest, Op::Request, 1000, to)
    });
}

#[test]
fn of_resets() {
    flood(&["tx_packets"], |guest, to, round| {
        header(guest, Op::Rst, 1000 + round % 500, to)
    });
}

#[test]
fn of_requests_and_resets() {
    flood(&["refused_requests"], |guest, to, round| {
        let op = [Op::Request, Op::Rst][round as usize % 2];
        header(guest, op, 1000 + round / 2 % 100, to)
    });
}

#[test]
fn of_credit_requests() {
    flood(&["strangers"], |guest, to, round| {
        let op = if round == 0 {
            Op::Request
        } else {
            Op::CreditRequest
        };
        header(guest, op, 1000, to)
    });
}

#[test]
fn of_shutdowns() {
    flood(&["strangers"], |guest, to, round| {
        let op = if round % 100 == 0 {
            Op::Request
        } else {
            Op::Shutdown
        };
        Header {
            flags: round % 4,
            ..header(guest, op, 1000 + round / 100, to)
        }
    });
}

#[test]
fn of_responses_that_nobody_asked_for() {
    flood(&["strangers"], |guest, to, round| {
        header(guest, Op::Response, 1000 + round, to)
    });
}

#[test]
fn of_packets_to_strangers() {
    flood(&["strangers"], |guest, mut to, round| {
        to = VsockAddr::new(
            Cid::new([0, 1, 77, HOSTILE, SIBLING][round as usize % 5]),
            to.port.value(),
        );
        let op = [Op::Rw, Op::CreditUpdate, Op::Shutdown][round as usize % 3];
        header(guest, op, 1000 + round, to)
    });
}

#[test]
fn of_packets_of_one_byte() {
    let mut sent = 0;
    flood(&["tx_bytes", "strangers"], |guest, to, round| {
        if round == 0 {
            sent = 0;
            return header(guest, Op::Request, 1000, to);
        }
        sent += 1;
        Header {
            len: 1,
            // What the echo sends back has been read.
            fwd_cnt: sent - 1,
            ..header(guest, Op::Rw, 1000, to)
        }
    });
}

#[test]
fn of_empty_packets() {
    flood(&["tx_packets", "strangers"], |guest, to, round| {
        let op = if round == 0 { Op::Request } else { Op::Rw };
        header(guest, op, 1000, to)
    });
}

/// As many connections as there may be, all of them with something to do.
#[test]
fn of_connections_that_all_talk() {
    let house = House::new();
    let mut guest = house.guest();
    let streams: Vec<_> = (0..400)
        .map(|_| done(guest.start_connect(host(ECHO))))
        .collect();
    for _ in 0..5 {
        for &stream in &streams {
            done(guest.write_some(stream, &[1; 3000]).map(drop));
            done(guest.read_some(stream, usize::MAX).map(drop));
        }
    }
    for &stream in &streams {
        done(guest.shutdown(stream, ShutdownFlags::SEND));
    }
    done(guest.pump(Duration::from_millis(50)));
    house.works_again(&mut guest);
    drop(guest);
    house.ends_unharmed();
}
