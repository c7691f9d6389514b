//! What an application writes little by little is gathered, and arrives all the same.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::thread;
use std::time::Duration;

use common::{Device, pattern};
use vsock_packet::Op;
use vsock_testkit::Error;
use vsock_testkit::host::HostListener;
use vsock_vhost_user::GuestConfig;

/// An application that writes byte by byte and stops where one may be gathered: the guest
/// gets the last one before it asks for more.
fn trickle(busy_poll: Duration) -> Result<(), Error> {
    let device = Device::with(|config| config.busy_poll = busy_poll);
    let host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    let stream = guest.connect(700)?;
    let mut end = host.accept()?;
    for round in 0..500 {
        let bytes = pattern(1 + round * 7 % 200);
        for byte in &bytes {
            end.write_all(&[*byte])?;
        }
        assert_eq!(
            guest.read_exact(stream, bytes.len())?,
            bytes,
            "round {round}"
        );
    }
    end.write_all(b"the end")?;
    end.shutdown_write()?;
    assert_eq!(guest.read_to_end(stream)?, b"the end");
    Ok(())
}

#[test]
fn the_last_byte_arrives_wherever_a_trickle_stops() -> Result<(), Error> {
    trickle(GuestConfig::DEFAULT_BUSY_POLL)?;
    trickle(Duration::ZERO)
}

#[test]
fn a_guest_that_reads_late_gets_all_of_a_trickle() -> Result<(), Error> {
    const BYTES: usize = 1 << 20;
    let device = Device::start();
    let host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    let stream = guest.connect(700)?;
    let mut end = host.accept()?;
    let writer = thread::spawn(move || {
        let result = pattern(BYTES)
            .chunks(64)
            .try_for_each(|piece| end.write_all(piece));
        result.map(|()| end)
    });
    // Far more than the guest has room for: it is asked whether it has any.
    guest.wait_until("the guest to be asked for room", |guest| {
        guest.stream(stream).came(Op::CreditRequest) > 0
    })?;
    let bytes = guest.read_exact(stream, BYTES)?;
    assert!(bytes == pattern(BYTES), "not what was written");
    drop(writer.join().unwrap()?);
    Ok(())
}
