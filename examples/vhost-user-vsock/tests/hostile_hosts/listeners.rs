//! Sockets of the host's that a guest is connected to, or would like to be.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::{Duration, Instant};

use vsock_testkit::host::{FullBacklog, HostListener, port_path};
use vsock_testkit::{Error, Guest};

use crate::hostile::{HOSTILE, House, done};

const PORT: u32 = 710;

/// The guest is refused, and does not wait for it.
#[track_caller]
fn is_refused(guest: &mut Guest) {
    let start = Instant::now();
    let outcome = guest.connect(PORT);
    assert!(matches!(outcome, Err(Error::Refused { .. })), "{outcome:?}");
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
}

/// As many connections as the backlog takes, or the guest may have, are there and can be
/// written to; the next are refused.
#[test]
fn that_never_accept() {
    let house = House::new();
    let mut guest = house.guest();
    let deaf = done(HostListener::bind(&house.uds(HOSTILE), PORT));
    let mut open = 0;
    let refused = loop {
        match guest.connect(PORT) {
            Ok(stream) => {
                done(guest.write_some(stream, &[1; 300_000]).map(drop));
                open += 1;
            }
            Err(error) => break error,
        }
        assert!(open < 5000, "is there no end to them?");
    };
    assert!(matches!(refused, Error::Refused { .. }), "{refused}");
    for _ in 0..500 {
        is_refused(&mut guest);
    }
    done(guest.expect_tx_returned());
    house.is_at_rest();
    drop(deaf);
    house.works_again(&mut guest);
    drop(guest);
    house.has_counted(&["refused_requests"]);
    house.ends_unharmed();
}

#[test]
fn whose_backlog_is_full() {
    let house = House::new();
    let mut guest = house.guest();
    let full = done(FullBacklog::bind(&house.uds(HOSTILE), PORT));
    for _ in 0..500 {
        is_refused(&mut guest);
    }
    drop(full);
    house.works_again(&mut guest);
    drop(guest);
    house.has_counted(&["refused_requests"]);
    house.ends_unharmed();
}

/// What is connected stays so; who comes later goes to whoever listens then.
#[test]
fn that_are_removed_and_replaced_while_in_use() {
    let house = House::new();
    let mut guest = house.guest();
    let path = port_path(&house.uds(HOSTILE), PORT);
    let mut open = Vec::new();
    for round in 0..20 {
        let listener = UnixListener::bind(&path).unwrap();
        let stream = done(guest.connect(PORT));
        let (end, _) = listener.accept().unwrap();
        open.push((stream, end));
        fs::remove_file(&path).unwrap();
        is_refused(&mut guest);
        if round % 2 == 0 {
            drop(listener);
        }
    }
    for (stream, end) in &mut open {
        use std::io::{Read, Write};
        done(guest.write_all(*stream, b"still here"));
        let mut bytes = [0; 10];
        end.read_exact(&mut bytes).unwrap();
        end.write_all(&bytes).unwrap();
        assert_eq!(done(guest.read_exact(*stream, 10)), b"still here");
    }
    drop(open);
    house.works_again(&mut guest);
    drop(guest);
    house.has_counted(&["refused_requests"]);
    house.ends_unharmed();
}

#[test]
fn that_are_no_listeners() {
    let house = House::new();
    let mut guest = house.guest();
    let path = port_path(&house.uds(HOSTILE), PORT);
    let remove = || fs::remove_file(&path).unwrap();

    fs::write(&path, "a file").unwrap();
    is_refused(&mut guest);
    remove();
    fs::create_dir(&path).unwrap();
    is_refused(&mut guest);
    fs::remove_dir(&path).unwrap();
    symlink(&path, &path).unwrap();
    is_refused(&mut guest);
    remove();
    symlink("/nowhere", &path).unwrap();
    is_refused(&mut guest);
    remove();
    let datagrams = UnixDatagram::bind(&path).unwrap();
    is_refused(&mut guest);
    remove();
    let listener = UnixListener::bind(&path).unwrap();
    drop(listener);
    is_refused(&mut guest);
    remove();

    drop(datagrams);
    house.works_again(&mut guest);
    drop(guest);
    house.has_counted(&["refused_requests"]);
    house.ends_unharmed();
}

/// An application that accepts and ends at once, over and over.
#[test]
fn that_accept_and_hang_up() {
    let house = House::new();
    let mut guest = house.guest();
    let listener = UnixListener::bind(port_path(&house.uds(HOSTILE), PORT)).unwrap();
    let hangs_up = std::thread::spawn(move || {
        for _ in 0..500 {
            drop(listener.accept().unwrap());
        }
    });
    for _ in 0..500 {
        // The end may come with the answer.
        if let Ok(stream) = guest.connect(PORT) {
            done(guest.write_some(stream, &[1; 10_000]).map(drop));
        }
    }
    hangs_up.join().unwrap();
    house.works_again(&mut guest);
    drop(guest);
    house.ends_unharmed();
}
