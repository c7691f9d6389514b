//! A worker that looks for more to do instead of sleeping misses nothing when it stops.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::{CID, Device, pattern};
use vsock_packet::GuestCid;
use vsock_testkit::host::{HostListener, Service};
use vsock_testkit::{Error, Guest, Setup};
use vsock_vhost_user::GuestConfig;

/// A guest that soon gives up, for it is going to be removed.
fn impatient(device: &Device) -> Result<Guest, Error> {
    device.guest_with(Setup {
        patience: Duration::from_secs(3),
        ..Setup::default()
    })
}

/// Lets time pass without sleeping, which would take longer than the pauses that matter.
fn pass(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        thread::yield_now();
    }
}

/// Round trips with pauses in between that are now shorter, now longer than the worker looks.
fn talk(busy_poll: Duration) -> Result<(), Error> {
    let device = Device::with(|config| config.busy_poll = busy_poll);
    let _echo = Service::echo(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    let stream = guest.connect(700)?;
    for round in 0..3_000 {
        if round % 500 > 250 {
            pass(Duration::from_micros(round * 37 % 150));
        }
        guest.write_all(stream, b"?")?;
        assert_eq!(guest.read_exact(stream, 1)?, b"?", "round {round}");
    }
    Ok(())
}

#[test]
fn every_question_is_heard_however_long_the_pause_before_it() -> Result<(), Error> {
    talk(GuestConfig::DEFAULT_BUSY_POLL)?;
    talk(GuestConfig::MAX_BUSY_POLL)?;
    talk(Duration::ZERO)
}

#[test]
fn a_guest_that_keeps_its_worker_looking_can_be_removed_at_once() -> Result<(), Error> {
    let device = Device::with(|config| config.busy_poll = GuestConfig::MAX_BUSY_POLL);
    let host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = impatient(&device)?;
    let stream = guest.connect(700)?;
    let mut end = host.accept()?;
    let reader = thread::spawn(move || while end.read_exact(4096).is_ok() {});
    let writer = thread::spawn(move || while guest.write_all(stream, &pattern(4096)).is_ok() {});
    pass(Duration::from_millis(50));
    let start = Instant::now();
    assert!(device.server.remove(GuestCid::new(CID).unwrap()));
    let took = start.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    writer.join().unwrap();
    reader.join().unwrap();
    Ok(())
}
