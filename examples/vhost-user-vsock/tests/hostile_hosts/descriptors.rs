//! No descriptors left: the daemon waits, says so once, and goes on when there are some.

use std::process::Command;
use std::time::Duration;

use vsock_testkit::host::{Client, HostListener};
use vsock_testkit::{Error, StreamId};

use crate::hostile::raw::{RawFrontend, VERSION, request};
use crate::hostile::{HOSTILE, House, SIBLING, done};
use crate::support::BINARY;

/// A house that has this many descriptors.
fn with_descriptors(count: usize) -> House {
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={count}:{count}")).arg(BINARY);
    House::with(&mut command)
}

/// Lines of the log that warn, one of a kind.
fn warnings(house: &House, of: &str) -> usize {
    let log = house.daemon.log();
    let warns = |line: &&String| line.contains("WARN") && line.contains(of);
    log.iter().filter(warns).count()
}

#[test]
fn used_up_by_applications_that_stay() {
    let house = with_descriptors(120);
    let mut guest = house.guest();
    guest.listen(80);
    house.works(&mut guest);
    let clients: Vec<_> = (0..150)
        .map(|_| done(Client::dial(&house.uds(HOSTILE), 80)))
        .collect();
    done(guest.pump(Duration::from_millis(300)));
    assert_eq!(warnings(&house, "cannot accept"), 1);
    // The guest is refused at once.
    let refused = guest.connect(700);
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    house.is_at_rest();
    done(guest.pump(Duration::from_millis(300)));
    assert_eq!(warnings(&house, "cannot accept"), 0, "once is enough");
    drop(clients);
    done(guest.pump(Duration::from_millis(300)));
    let client = done(Client::dial(&house.uds(HOSTILE), 80));
    done(guest.wait_until("the application to be let in", |guest| {
        guest.accept(80).is_ok()
    }));
    drop(client);
    house.works_again(&mut guest);
    drop(guest);
    house.has_counted(&["refused_requests"]);
    house.ends_unharmed();
}

#[test]
fn used_up_by_a_guest_that_connects() {
    let house = with_descriptors(120);
    let mut guest = house.guest();
    let listener = done(HostListener::bind(&house.uds(HOSTILE), 710));
    let mut open: Vec<StreamId> = Vec::new();
    let refused = loop {
        match guest.connect(710) {
            Ok(stream) => open.push(stream),
            Err(error) => break error,
        }
        assert!(open.len() < 120);
    };
    assert!(matches!(refused, Error::Refused { .. }), "{refused}");
    house.is_at_rest();
    for stream in open {
        done(guest.close(stream));
    }
    drop(listener);
    house.works_again(&mut guest);
    drop(guest);
    house.has_counted(&["refused_requests"]);
    house.ends_unharmed();
}

/// A frontend that comes then is served as soon as that is possible.
#[test]
fn used_up_when_a_frontend_comes() {
    let house = with_descriptors(120);
    let mut guest = house.guest();
    let listener = done(HostListener::bind(&house.uds(HOSTILE), 710));
    let refused = loop {
        if let Err(error) = guest.connect(710) {
            break error;
        }
    };
    assert!(matches!(refused, Error::Refused { .. }), "{refused}");
    let frontend = RawFrontend::connect(&house.socket(SIBLING));
    assert!(frontend.say(request::GET_FEATURES, VERSION, &[], &[]));
    assert!(frontend.is_quiet_for(Duration::from_millis(500)));
    assert_eq!(warnings(&house, "cannot serve the frontend"), 1);
    house.is_at_rest();
    done(guest.reset());
    assert!(!frontend.is_quiet_for(Duration::from_secs(5)));
    drop((frontend, listener));
    house.works(&mut guest);
    drop(guest);
    house.ends_unharmed();
}
