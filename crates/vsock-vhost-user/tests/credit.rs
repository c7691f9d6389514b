//! Credit both ways: nobody is sent more than it can hold, and nobody waits for ever.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::thread;
use std::time::Duration;

use common::{Device, header, pair, pair_of, pair_with, pattern};
use vsock_packet::{Header, Op, ShutdownFlags};
use vsock_testkit::host::{HostListener, Service};
use vsock_testkit::{Behaviour, Error, Layout, RxBuffers, Setup};

#[test]
fn a_slow_host_slows_the_guest_and_loses_nothing() -> Result<(), Error> {
    let (_alive, mut guest, stream, mut end) = pair()?;
    let bytes = pattern(2 << 20);
    let expected = bytes.clone();
    let host = thread::spawn(move || -> Result<bool, Error> {
        let mut read = Vec::new();
        while read.len() < expected.len() {
            thread::yield_now();
            read.extend(end.read_exact((expected.len() - read.len()).min(3_000))?);
        }
        Ok(read == expected)
    });
    guest.write_all(stream, &bytes)?;
    assert!(host.join().unwrap()?);
    Ok(())
}

#[test]
fn a_slow_guest_slows_the_host_and_loses_nothing() -> Result<(), Error> {
    let (_alive, mut guest, stream, mut end) = pair()?;
    let bytes = pattern(4 << 20);
    let taken = end.write_until_blocked(&bytes, Duration::from_millis(50))?;
    assert!(
        taken < bytes.len(),
        "the device read on for a guest that does not read"
    );
    let expected = bytes.clone();
    let host = thread::spawn(move || end.write_all(&bytes[taken..]));
    assert!(guest.read_exact(stream, expected.len())? == expected);
    host.join().unwrap()
}

#[test]
fn windows_of_any_size_do_not_stall() -> Result<(), Error> {
    for buf_alloc in [1, 100, 1024, 16 << 10, 64 << 10, 1 << 20] {
        let behaviour = Behaviour {
            buf_alloc,
            cost_of_a_packet: 0,
            ..Behaviour::linux()
        };
        let (_alive, mut guest, stream, mut end) = pair_with(behaviour)?;
        let len = if buf_alloc < 1024 { 500 } else { 1 << 20 };
        let host = thread::spawn(move || -> Result<(), Error> {
            let bytes = end.read_exact(len)?;
            end.write_all(&bytes)
        });
        let echoed = guest.exchange(stream, &pattern(len), len)?;
        assert!(echoed == pattern(len), "buf_alloc {buf_alloc}");
        host.join().unwrap()?;
    }
    Ok(())
}

#[test]
fn a_small_device_buffer_does_not_stall() -> Result<(), Error> {
    for tx_buffer_size in [4096, 65536, 1 << 20] {
        let device = Device::with(|config| config.tx_buffer_size = tx_buffer_size);
        let host = HostListener::bind(&device.uds(), 700)?;
        let mut guest = device.guest()?;
        let stream = guest.connect(700)?;
        let mut end = host.accept()?;
        let reader = thread::spawn(move || end.read_exact(2 << 20));
        guest.write_all(stream, &pattern(2 << 20))?;
        assert!(
            reader.join().unwrap()? == pattern(2 << 20),
            "tx_buffer_size {tx_buffer_size}"
        );
    }
    Ok(())
}

#[test]
fn a_credit_request_is_answered() -> Result<(), Error> {
    let (_alive, mut guest, stream, _end) = pair()?;
    for count in 1..=10 {
        let before = guest.stream(stream).came(Op::CreditUpdate);
        guest.send_op(stream, Op::CreditRequest)?;
        guest.wait_until(&format!("CREDIT_UPDATE {count}"), |guest| {
            guest.stream(stream).came(Op::CreditUpdate) > before
        })?;
    }
    Ok(())
}

#[test]
fn a_guest_that_updates_only_when_asked_is_asked() -> Result<(), Error> {
    let behaviour = Behaviour {
        updates_unasked: false,
        ..Behaviour::linux()
    };
    let (_alive, mut guest, stream, mut end) = pair_with(behaviour)?;
    let bytes = pattern(3 << 20);
    let expected = bytes.clone();
    let host = thread::spawn(move || end.write_all(&bytes));
    guest.patience = Duration::from_secs(30);
    assert!(guest.read_exact(stream, expected.len())? == expected);
    host.join().unwrap()
}

#[test]
fn a_lost_credit_request_is_repeated() -> Result<(), Error> {
    let behaviour = Behaviour {
        updates_unasked: false,
        answers_credit_requests: false,
        ..Behaviour::linux()
    };
    let (_alive, mut guest, stream, mut end) = pair_with(behaviour)?;
    let bytes = pattern(1 << 20);
    let taken = end.write_until_blocked(&bytes, Duration::from_millis(50))?;
    guest.wait_until("a second and a third CREDIT_REQUEST", |guest| {
        guest.stream(stream).came(Op::CreditRequest) >= 3
    })?;
    // It is a question, not a flood.
    assert!(guest.stream(stream).came(Op::CreditRequest) < 100);
    guest.behaviour = Behaviour::linux();
    let read = guest.read_exact(stream, taken)?;
    assert!(read == bytes[..taken]);
    Ok(())
}

#[test]
fn packets_to_a_guest_that_does_not_read_are_bounded_in_number() -> Result<(), Error> {
    // A guest that resets a stream of more than about 455 unread packets.
    let (_alive, mut guest, stream, mut end) = pair()?;
    let bytes = pattern(2_000);
    let mut written = 0;
    while end.write_until_blocked(&bytes[written..=written], Duration::from_millis(20))? == 1 {
        written += 1;
        guest.pump(Duration::from_micros(200))?;
    }
    guest.pump(Duration::from_millis(50))?;
    let unread = guest.stream(stream).unread_packets();
    assert!(
        !guest.stream(stream).was_reset(),
        "the guest could take no more packets"
    );
    assert!((100..455).contains(&unread), "{unread} packets");
    assert!(guest.read_exact(stream, written)? == bytes[..written]);
    Ok(())
}

#[test]
fn tiny_writes_to_a_guest_that_reads_keep_flowing() -> Result<(), Error> {
    let (_alive, mut guest, stream, mut end) = pair()?;
    for (count, byte) in pattern(3_000).into_iter().enumerate() {
        end.write_all(&[byte])?;
        let read = guest.read_exact(stream, 1);
        assert_eq!(
            read.map_err(|error| panic!("byte {count}: {error}"))
                .unwrap(),
            [byte]
        );
    }
    Ok(())
}

#[test]
fn a_guest_that_shrinks_its_buffer_has_no_credit_rather_than_4_gib() -> Result<(), Error> {
    // In few packets, so that their number is no bound.
    let setup = Setup {
        rx: RxBuffers::of([65580]),
        ..Setup::default()
    };
    let (_alive, mut guest, stream, mut end) = pair_of(setup)?;
    end.write_all(&pattern(100_000))?;
    guest.wait_until("100 kB", |guest| guest.stream(stream).rx_cnt() == 100_000)?;
    guest.set_buf_alloc(stream, 10_000);
    guest.send_op(stream, Op::CreditUpdate)?;
    guest.expect_tx_returned()?;
    end.write_all(&pattern(50_000))?;
    guest.pump(Duration::from_millis(100))?;
    assert_eq!(
        guest.stream(stream).rx_cnt(),
        100_000,
        "sent without credit"
    );
    assert!(guest.read_exact(stream, 100_000)? == pattern(100_000));
    assert!(guest.read_exact(stream, 50_000)? == pattern(50_000));
    Ok(())
}

#[test]
fn a_guest_without_any_buffer_is_sent_nothing() -> Result<(), Error> {
    let behaviour = Behaviour {
        buf_alloc: 0,
        ..Behaviour::linux()
    };
    let (_alive, mut guest, stream, mut end) = pair_with(behaviour)?;
    end.write_all(b"waits")?;
    guest.pump(Duration::from_millis(100))?;
    assert_eq!(guest.stream(stream).rx_cnt(), 0);
    guest.set_buf_alloc(stream, 1000);
    guest.send_op(stream, Op::CreditUpdate)?;
    assert_eq!(guest.read_exact(stream, 5)?, b"waits");
    Ok(())
}

#[test]
fn a_fwd_cnt_that_was_never_sent_harms_nobody() -> Result<(), Error> {
    let device = Device::start();
    let host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    let good = guest.connect(700)?;
    let mut good_end = host.accept()?;
    let request = header(&guest, Op::Request, 50, 700);
    guest.send_packet(&request.to_raw(), &[], &Layout::linux())?;
    guest.expect_packet(Op::Response)?;
    let mut end = host.accept()?;
    for fwd_cnt in [1, 1 << 31, u32::MAX] {
        let update = Header {
            op: Op::CreditUpdate,
            fwd_cnt,
            ..request
        };
        guest.send_packet(&update.to_raw(), &[], &Layout::linux())?;
        // The stream may be reset for it.
        let _ = end.write_until_blocked(&pattern(1_000), Duration::from_millis(20));
        guest.pump(Duration::from_millis(5))?;
    }
    good_end.write_all(b"hello")?;
    assert_eq!(guest.read_exact(good, 5)?, b"hello");
    Ok(())
}

#[test]
fn an_end_reaches_a_guest_that_has_no_credit_left() -> Result<(), Error> {
    let device = Device::start();
    let window = 256 << 10;
    let _source = Service::source(&device.uds(), 700, pattern(window))?;
    let mut guest = device.guest()?;
    let stream = guest.connect(700)?;
    guest.wait_until("the end", |guest| {
        guest
            .stream(stream)
            .peer_shutdown()
            .contains(ShutdownFlags::SEND)
    })?;
    assert_eq!(guest.stream(stream).unread(), window);
    assert!(guest.read_to_end(stream)? == pattern(window));
    Ok(())
}
