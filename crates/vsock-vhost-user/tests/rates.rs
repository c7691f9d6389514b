//! A guest gets as much as its operator allows it in a time, and no less.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::{CID, Device, pattern};
use vsock_packet::GuestCid;
use vsock_router::Refusal;
use vsock_testkit::Error;
use vsock_testkit::host::{HostListener, Service};
use vsock_vhost_user::{Changes, Event};

const RATE: u64 = 8 << 20;
/// Of this, a quarter of a second's worth comes at once, the rest at the rate.
const LEN: usize = 4 << 20;
const LEAST: Duration = Duration::from_millis(200);

fn limited() -> Device {
    Device::with(|config| config.max_bytes_per_second = Some(RATE))
}

#[test]
fn what_a_guest_sends_too_fast_comes_later_and_whole() -> Result<(), Error> {
    let device = limited();
    let host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    let stream = guest.connect(700)?;
    let mut end = host.accept()?;
    let reader = thread::spawn(move || end.read_exact(LEN));
    let start = Instant::now();
    guest.write_all(stream, &pattern(LEN))?;
    assert!(reader.join().unwrap()? == pattern(LEN));
    let took = start.elapsed();
    assert!(took > LEAST, "{took:?}");
    Ok(())
}

#[test]
fn what_a_guest_is_sent_too_fast_comes_later_and_whole() -> Result<(), Error> {
    let device = limited();
    let _source = Service::source(&device.uds(), 700, pattern(LEN))?;
    let _echo = Service::echo(&device.uds(), 701)?;
    let mut guest = device.guest()?;
    let stream = guest.connect(700)?;
    let start = Instant::now();
    let first = guest.read_exact(stream, LEN / 2)?;
    // The rest is held, and still the guest gets connections and their ends.
    let other = guest.connect(701)?;
    guest.close(other)?;
    let rest = guest.read_exact(stream, LEN / 2)?;
    assert!([first, rest].concat() == pattern(LEN));
    let took = start.elapsed();
    assert!(took > LEAST, "{took:?}");
    Ok(())
}

#[test]
fn nobody_else_is_held_up() -> Result<(), Error> {
    let device = limited();
    device.add(4).unwrap();
    let (sink, _echo) = (
        Service::sink(&device.uds(), 700)?,
        Service::echo(&device.uds_of(4), 700)?,
    );
    let mut limited = device.guest()?;
    let stream = limited.connect(700)?;
    let mut free = device.guest_of(4)?;
    let echo = free.connect(700)?;
    let sender = thread::spawn(move || limited.write_all(stream, &pattern(LEN)));
    let mut slowest = Duration::ZERO;
    while !sender.is_finished() {
        let start = Instant::now();
        assert_eq!(free.exchange(echo, b"hello", 5)?, b"hello");
        slowest = slowest.max(start.elapsed());
    }
    sender.join().unwrap()?;
    assert!(slowest < LEAST, "{slowest:?}");
    drop(sink);
    Ok(())
}

#[test]
fn a_guest_that_asks_too_often_is_refused_until_it_has_waited() -> Result<(), Error> {
    let device = Device::with(|config| config.max_requests_per_second = Some(8));
    let events = device.server.events();
    let _echo = Service::echo(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    let start = Instant::now();
    let made = (0..8).take_while(|_| guest.connect(700).is_ok()).count();
    let earned = start.elapsed().as_secs_f64() * 8.0;
    assert!((2.0..=4.0 + earned).contains(&(made as f64)), "{made}");
    let why = loop {
        if let Event::Refused { why, .. } = events.recv_timeout(LEAST).unwrap() {
            break why;
        }
    };
    assert_eq!(why, Refusal::TooOften);

    let change = Changes {
        max_requests_per_second: Some(None),
        ..Changes::default()
    };
    device
        .server
        .change(GuestCid::new(CID).unwrap(), &change)
        .unwrap();
    guest.connect(700).map(drop)
}

#[test]
fn buffers_that_are_promised_stay_within_the_guests_bound() -> Result<(), Error> {
    let device = Device::with(|config| {
        config.max_buffered = 8 << 20;
        config.tx_buffer_size = 128 << 10;
    });
    let host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    let (mut ends, mut promised) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        let stream = guest.connect(700)?;
        ends.push(host.accept()?);
        promised.push(guest.stream(stream).peer_buf_alloc());
    }
    assert_eq!((promised[0], promised[199]), (128 << 10, 16 << 10));
    let sum: u32 = promised.iter().sum();
    assert!(sum <= (8 << 20) + 200 * (16 << 10), "{sum}");
    Ok(())
}
