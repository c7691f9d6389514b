//! Credit that is taken without being given, and promised without being there.

use std::time::Duration;

use vsock_packet::{Header, Op, VsockAddr};
use vsock_testkit::host::HostListener;
use vsock_testkit::{Behaviour, Error, Guest, Layout, Setup};

use crate::hostile::{ECHO, HOSTILE, House, done, header, host};

const PORT: u32 = 1000;

/// Opens a connection by hand, and waits for the answer.
fn open(guest: &mut Guest, to: VsockAddr) -> Result<(), Error> {
    let request = header(guest, Op::Request, PORT, to);
    guest.send_packet(&request.to_raw(), &[], &Layout::linux())?;
    guest.expect_packet(Op::Response).map(drop)
}

/// A sibling that accepts at port 80, and the connection to it.
fn open_to_sibling(house: &House, guest: &mut Guest) -> Guest {
    let mut sibling = house.sibling();
    sibling.listen(80);
    let request = header(guest, Op::Request, PORT, sibling.at(80));
    done(guest.send_packet(&request.to_raw(), &[], &Layout::linux()));
    done(sibling.accept(80));
    done(guest.expect_packet(Op::Response));
    sibling
}

fn is_reset(guest: &mut Guest) {
    done(guest.expect_packet(Op::Rst));
}

#[test]
fn more_than_the_host_allowed_is_reset() {
    let house = House::new();
    let mut guest = house.guest();
    let deaf = done(HostListener::bind(&house.uds(HOSTILE), 701));
    done(open(&mut guest, host(701)));
    let end = done(deaf.accept());
    let mut packet = header(&guest, Op::Rw, PORT, host(701)).to_raw();
    packet.set_len(60_000);
    for _ in 0..20 {
        done(guest.send_packet(&packet, &[1; 60_000], &Layout::linux()));
    }
    is_reset(&mut guest);
    house.works_again(&mut guest);
    drop((guest, deaf, end));
    house.has_counted(&["violations"]);
    house.ends_unharmed();
}

#[test]
fn more_than_a_sibling_allowed_is_reset_at_both_ends() {
    let house = House::new();
    let mut guest = house.guest();
    let mut sibling = open_to_sibling(&house, &mut guest);
    let mut packet = header(&guest, Op::Rw, PORT, sibling.at(80)).to_raw();
    packet.set_len(60_000);
    for _ in 0..20 {
        done(guest.send_packet(&packet, &[1; 60_000], &Layout::linux()));
    }
    is_reset(&mut guest);
    house.works(&mut sibling);
    house.works_again(&mut guest);
    drop((guest, sibling));
    house.has_counted(&["violations"]);
    house.ends_unharmed();
}

/// What a guest says of its own window, between nothing and 4 GiB, while a host and a
/// sibling have a lot for it.
#[test]
fn windows_of_every_size_with_counts_that_wrap() {
    let house = House::new();
    let mut guest = house.guest();
    let mut sibling = house.sibling();
    sibling.listen(80);
    let windows = [
        0,
        1,
        44,
        3732,
        65_536,
        1 << 20,
        1 << 31,
        u32::MAX - 1,
        u32::MAX,
    ];
    let mut port = PORT;
    for buf_alloc in windows {
        for fwd_cnt in [0, 1, 100_000, 1 << 31, u32::MAX - 100, u32::MAX] {
            for to in [host(ECHO), sibling.at(80)] {
                port += 1;
                let mut packet = Header {
                    len: 5000,
                    ..header(&guest, Op::Rw, port, to)
                };
                let request = header(&guest, Op::Request, port, to).to_raw();
                done(guest.send_packet(&request, &[], &Layout::linux()));
                done(guest.send_packet(&packet.to_raw(), &[1; 5000], &Layout::linux()));
                for (buf_alloc, fwd_cnt) in [(buf_alloc, fwd_cnt), (0, fwd_cnt), (1 << 18, 0)] {
                    (packet.buf_alloc, packet.fwd_cnt) = (buf_alloc, fwd_cnt);
                    let told = Header {
                        op: Op::CreditUpdate,
                        len: 0,
                        ..packet
                    };
                    done(guest.send_packet(&told.to_raw(), &[], &Layout::linux()));
                    done(guest.send_packet(&packet.to_raw(), &[1; 5000], &Layout::linux()));
                }
                while let Some(stream) = accepted(&mut sibling) {
                    // Some of these end early.
                    let _ = sibling.write_some(stream, &[2; 10_000]);
                }
                guest.inbox().clear();
            }
        }
    }
    done(sibling.pump(Duration::from_millis(20)));
    house.works(&mut sibling);
    house.works_again(&mut guest);
    drop((guest, sibling));
    house.has_counted(&["violations"]);
    house.ends_unharmed();
}

fn accepted(guest: &mut Guest) -> Option<vsock_testkit::StreamId> {
    let patience = std::mem::replace(&mut guest.patience, Duration::ZERO);
    let stream = guest.accept(80).ok();
    guest.patience = patience;
    stream
}

/// The window shrinks to nothing under a host that has much to say, and opens again.
#[test]
fn a_window_that_shrinks_to_nothing_stops_the_host_and_not_for_good() {
    let house = House::new();
    // Linux would give up the stream for what is in flight when its buffer shrinks.
    let behaviour = Behaviour {
        cost_of_a_packet: 0,
        ..Behaviour::linux()
    };
    let mut guest = house.guest_with(Setup {
        behaviour,
        ..Setup::default()
    });
    let listener = done(HostListener::bind(&house.uds(HOSTILE), 702));
    let stream = done(guest.connect(702));
    let mut end = done(listener.accept());
    let sender = std::thread::spawn(move || end.write_all(&[3; 1 << 20]).map(|()| end));
    for buf_alloc in [0, 1 << 30, 0, 1 << 18] {
        guest.set_buf_alloc(stream, buf_alloc);
        done(guest.send_op(stream, Op::CreditUpdate));
        done(guest.pump(Duration::from_millis(10)));
        assert!(!guest.stream(stream).was_reset());
        done(guest.read_some(stream, usize::MAX).map(drop));
    }
    done(guest.wait_until("all of it", |guest| {
        guest.read_some(stream, usize::MAX).is_ok() && guest.stream(stream).rx_cnt() == 1 << 20
    }));
    drop(done(sender.join().unwrap()));
    house.works_again(&mut guest);
    drop((guest, listener));
    house.ends_unharmed();
}
