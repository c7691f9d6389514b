//! TX never waits: every chain comes back in the pass that took it, whatever the host, the
//! RX ring and the other connections do.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::time::{Duration, Instant};

use common::{AT_ONCE, Device, header, host_port, pattern};
use vsock_packet::Op;
use vsock_testkit::host::{HostListener, Service, raise_file_limit};
use vsock_testkit::{
    Behaviour, Error, Guest, Layout, Refill, RxBuffers, Setup, State, StreamId, queue,
};

/// Waits until every TX chain is back, which must be at once.
#[track_caller]
fn assert_tx_returned(guest: &mut Guest) {
    let start = Instant::now();
    guest.expect_tx_returned().unwrap();
    let elapsed = start.elapsed();
    assert!(
        elapsed < AT_ONCE,
        "the last chain came back after {elapsed:?}"
    );
}

/// Writes until the stream's credit is used up; tells how many bytes that took.
fn use_up_credit(guest: &mut Guest, stream: StreamId) -> Result<usize, Error> {
    let bytes = pattern(1 << 20);
    let mut written = 0;
    loop {
        let start = Instant::now();
        let count = guest.write_some(stream, &bytes[written..])?;
        written += count;
        assert_tx_returned(guest);
        if count == 0 && start.elapsed() > Duration::ZERO {
            guest.pump(Duration::from_millis(20))?;
            if guest.stream(stream).credit() == 0 {
                return Ok(written);
            }
        }
    }
}

#[test]
fn while_a_host_does_not_read() -> Result<(), Error> {
    let device = Device::start();
    let deaf = HostListener::bind(&device.uds(), 700)?;
    let _echo = Service::echo(&device.uds(), 701)?;
    let mut guest = device.guest()?;
    let stream = guest.connect(700)?;
    let mut end = deaf.accept()?;
    let written = use_up_credit(&mut guest, stream)?;
    assert!(written >= 256 << 10, "{written} bytes were taken");
    assert!(
        written < 1 << 20,
        "{written} bytes were taken: is there a bound?"
    );
    let other = guest.connect(701)?;
    assert!(guest.exchange(other, &pattern(1 << 20), 1 << 20)? == pattern(1 << 20));
    assert!(end.read_exact(written)? == pattern(1 << 20)[..written]);
    guest.write_all(stream, b"and goes on")?;
    assert_eq!(end.read_exact(11)?, b"and goes on");
    Ok(())
}

#[test]
fn when_a_guest_exceeds_its_credit_it_is_reset() -> Result<(), Error> {
    let device = Device::start();
    let deaf = HostListener::bind(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    guest.behaviour.obeys_credit = false;
    let stream = guest.connect(700)?;
    let _end = deaf.accept()?;
    let bytes = pattern(64 << 10);
    for _ in 0..64 {
        let written = guest.write_all(stream, &bytes);
        assert_tx_returned(&mut guest);
        if written.is_err() || guest.stream(stream).was_reset() {
            break;
        }
    }
    guest.expect_reset(stream)
}

#[test]
fn while_the_rx_ring_is_empty() -> Result<(), Error> {
    let device = Device::start();
    let _echo = Service::echo(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    let stream = guest.connect(700)?;
    // From here on, each RX buffer that comes back is kept.
    let rx = RxBuffers {
        refill: Refill::ByHand,
        ..RxBuffers::default()
    };
    guest.rings_mut().set_rx_buffers(rx);
    let mut echoed = Vec::new();
    let (bytes, mut written) = (pattern(2 << 20), 0);
    guest.wait_until("the RX ring to be used up", |guest| {
        written += guest.write_some(stream, &bytes[written..]).unwrap();
        echoed.extend(guest.read_some(stream, usize::MAX).unwrap());
        guest.rings().ring(queue::RX).in_flight() == 0
    })?;
    assert_tx_returned(&mut guest);
    // Everything that asks for an answer, and none can be given.
    for port in 0..300 {
        for op in [Op::Request, Op::CreditRequest, Op::Rw, Op::Shutdown] {
            let packet = header(&guest, op, 1000 + port, 9).to_raw();
            guest.send_packet(&packet, &[], &Layout::linux())?;
        }
        guest.send_op(stream, Op::CreditRequest)?;
    }
    assert_tx_returned(&mut guest);
    // With buffers again, the stream goes on.
    guest.rings_mut().set_rx_buffers(RxBuffers::default());
    guest.refill_rx(usize::MAX)?;
    let rest = guest.exchange(stream, &bytes[written..], bytes.len() - echoed.len())?;
    echoed.extend(rest);
    assert!(echoed == bytes);
    Ok(())
}

#[test]
fn with_a_thousand_open_connections() -> Result<(), Error> {
    raise_file_limit()?;
    let device = Device::start();
    let host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    let mut open = Vec::new();
    for _ in 0..1000 {
        let stream = guest.connect(700)?;
        open.push((stream, host.accept()?));
    }
    for &(stream, _) in &open {
        guest.write_all(stream, &pattern(5_000))?;
    }
    assert_tx_returned(&mut guest);
    for (stream, end) in &mut open {
        assert!(end.read_exact(5_000)? == pattern(5_000));
        end.write_all(&pattern(3_000))?;
        assert!(guest.read_exact(*stream, 3_000)? == pattern(3_000));
    }
    for (stream, _) in &open {
        guest.start_close(*stream)?;
    }
    guest.wait_until("a thousand RSTs", |guest| {
        open.iter()
            .all(|(stream, _)| guest.stream(*stream).state() == State::Closed)
    })?;
    for (_, end) in &mut open {
        assert_eq!(end.read_to_end()?, b"");
    }
    Ok(())
}

#[test]
fn while_connections_come_faster_than_answers_are_taken() -> Result<(), Error> {
    let device = Device::start();
    let _host = HostListener::bind(&device.uds(), 700)?;
    let rx = RxBuffers {
        count: 1,
        ..RxBuffers::of([3776])
    };
    let behaviour = Behaviour {
        resets_strangers: false,
        ..Behaviour::linux()
    };
    let mut guest = device.guest_with(Setup {
        rx,
        behaviour,
        ..Setup::default()
    })?;
    let mut streams = Vec::new();
    for round in 0..500 {
        streams.push(guest.start_connect(host_port(if round % 4 == 0 { 700 } else { 9 }))?);
    }
    assert_tx_returned(&mut guest);
    guest.pump(Duration::from_millis(200))?;
    // The refusals may be dropped beyond a bound; no answer to an accepted one is.
    let open = streams
        .iter()
        .filter(|&&id| guest.stream(id).state() == State::Established);
    assert_eq!(open.count(), 125);
    Ok(())
}
