//! The life of a connection: half-close in each direction, and a full close that loses nothing.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::io::{ErrorKind, Write};
use std::thread;
use std::time::{Duration, Instant};

use common::{assert_at_once, pair, pair_with, pattern};
use vsock_packet::{Op, ShutdownFlags};
use vsock_testkit::{Behaviour, Error, State};

#[test]
fn a_guest_that_sends_no_more_can_still_receive() -> Result<(), Error> {
    let (_alive, mut guest, stream, mut end) = pair()?;
    guest.write_all(stream, &pattern(256 << 10))?;
    guest.shutdown(stream, ShutdownFlags::SEND)?;
    assert!(end.read_to_end()? == pattern(256 << 10));
    end.write_all(&pattern(50_000))?;
    assert!(guest.read_exact(stream, 50_000)? == pattern(50_000));
    drop(end);
    assert_eq!(guest.read_to_end(stream)?, b"");
    guest.close(stream)
}

#[test]
fn a_host_that_sends_no_more_can_still_receive() -> Result<(), Error> {
    let (_alive, mut guest, stream, mut end) = pair()?;
    end.write_all(&pattern(100_000))?;
    end.shutdown_write()?;
    assert!(guest.read_to_end(stream)? == pattern(100_000));
    assert_eq!(guest.stream(stream).peer_shutdown(), ShutdownFlags::SEND);
    assert_eq!(guest.stream(stream).state(), State::Established);
    guest.write_all(stream, &pattern(50_000))?;
    assert!(end.read_exact(50_000)? == pattern(50_000));
    guest.close(stream)?;
    assert_eq!(end.read_to_end()?, b"");
    Ok(())
}

#[test]
fn both_may_shut_one_after_the_other() -> Result<(), Error> {
    let (_alive, mut guest, stream, mut end) = pair()?;
    guest.shutdown(stream, ShutdownFlags::SEND)?;
    assert_eq!(end.read_to_end()?, b"");
    end.write_all(b"the last word")?;
    end.shutdown_write()?;
    assert_eq!(guest.read_to_end(stream)?, b"the last word");
    guest.close(stream)
}

#[test]
fn a_guest_that_receives_no_more_breaks_the_hosts_pipe() -> Result<(), Error> {
    let (_alive, mut guest, stream, end) = pair()?;
    guest.shutdown(stream, ShutdownFlags::RECEIVE)?;
    guest.expect_tx_returned()?;
    let error = end.socket().write_all(b"for nobody").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    guest.write_all(stream, b"still sent")?;
    let mut end = end;
    assert_eq!(end.read_exact(10)?, b"still sent");
    Ok(())
}

#[test]
fn a_host_that_receives_no_more_tells_the_guest() -> Result<(), Error> {
    let (_alive, mut guest, stream, end) = pair()?;
    end.shutdown_read()?;
    guest.write_all(stream, b"for nobody")?;
    guest.wait_until("the guest to learn that nobody reads", |guest| {
        let stream = guest.stream(stream);
        stream.was_reset() || stream.peer_shutdown().contains(ShutdownFlags::RECEIVE)
    })
}

#[test]
fn flags_of_shutdowns_accumulate() -> Result<(), Error> {
    let (_alive, mut guest, stream, mut end) = pair()?;
    guest.write_all(stream, &pattern(1_000))?;
    guest.shutdown(stream, ShutdownFlags::RECEIVE)?;
    guest.shutdown(stream, ShutdownFlags::SEND)?;
    guest.wait_until(
        "the RST that ends a stream which is shut both ways",
        |guest| guest.stream(stream).state() == State::Closed,
    )?;
    assert!(end.read_to_end()? == pattern(1_000));
    Ok(())
}

#[test]
fn a_full_close_of_the_guest_loses_nothing() -> Result<(), Error> {
    let (_alive, mut guest, stream, mut end) = pair()?;
    let bytes = pattern(256 << 10);
    guest.write_all(stream, &bytes)?;
    guest.start_close(stream)?;
    // A host that reads slowly: the device has to keep the rest.
    let mut read = Vec::new();
    while read.len() < bytes.len() {
        guest.pump(Duration::from_millis(5))?;
        read.extend(end.read_exact((bytes.len() - read.len()).min(10_000))?);
    }
    assert!(read == bytes);
    assert_eq!(end.read_to_end()?, b"");
    guest.wait_until("the RST", |guest| {
        guest.stream(stream).state() == State::Closed
    })
}

#[test]
fn a_bare_rst_after_data_loses_nothing() -> Result<(), Error> {
    let (_alive, mut guest, stream, mut end) = pair()?;
    let bytes = pattern(256 << 10);
    guest.write_all(stream, &bytes)?;
    guest.send_op(stream, Op::Rst)?;
    guest.expect_tx_returned()?;
    guest.pump(Duration::from_millis(50))?;
    assert!(end.read_to_end()? == bytes);
    Ok(())
}

#[test]
fn what_a_guest_sent_before_it_closed_waits_for_a_host_that_reads_late() -> Result<(), Error> {
    let (_alive, mut guest, stream, mut end) = pair()?;
    let bytes = pattern(256 << 10);
    guest.write_all(stream, &bytes)?;
    guest.start_close(stream)?;
    // Linux gives up after eight seconds, and sends an RST.
    guest.pump(Duration::from_secs(9))?;
    if guest.stream(stream).state() != State::Closed {
        guest.send_op(stream, Op::Rst)?;
    }
    assert!(end.read_to_end()? == bytes);
    Ok(())
}

#[test]
fn a_full_close_of_the_host_loses_nothing() -> Result<(), Error> {
    let (_alive, mut guest, stream, mut end) = pair()?;
    let bytes = pattern(1 << 20);
    let sent = bytes.clone();
    let host = thread::spawn(move || end.write_all(&sent));
    let mut read = Vec::new();
    while !guest.stream(stream).at_end() || guest.stream(stream).unread() > 0 {
        guest.pump(Duration::from_millis(2))?;
        read.extend(guest.read_some(stream, 20_000)?);
    }
    host.join().unwrap()?;
    assert!(
        read == bytes,
        "{} bytes of {} arrived",
        read.len(),
        bytes.len()
    );
    guest.close(stream)
}

#[test]
fn a_close_behind_a_full_window_is_seen_once_the_guest_reads() -> Result<(), Error> {
    for updates_unasked in [true, false] {
        let behaviour = Behaviour {
            updates_unasked,
            ..Behaviour::linux()
        };
        let (_alive, mut guest, stream, mut end) = pair_with(behaviour)?;
        let bytes = pattern(256 << 10);
        let rest = end.write_until_blocked(&bytes, Duration::from_millis(20))?;
        guest.wait_until("the window to be full", |guest| {
            guest.stream(stream).unread() == 256 << 10 || rest < bytes.len()
        })?;
        end.write_all(&bytes[rest..])?;
        drop(end);
        guest.pump(Duration::from_millis(20))?;
        assert!(guest.read_to_end(stream)? == bytes);
        guest.close(stream)?;
    }
    Ok(())
}

#[test]
fn a_close_is_answered_with_an_rst_at_once() -> Result<(), Error> {
    let (_alive, mut guest, stream, _end) = pair()?;
    let start = Instant::now();
    guest.close(stream)?;
    assert_at_once(start, "the RST");
    Ok(())
}

#[test]
fn a_guest_that_does_not_answer_a_close_is_reset_after_eight_seconds() -> Result<(), Error> {
    let behaviour = Behaviour {
        answers_shutdown: false,
        ..Behaviour::linux()
    };
    let (_alive, mut guest, stream, end) = pair_with(behaviour)?;
    let start = Instant::now();
    drop(end);
    assert_eq!(guest.read_to_end(stream)?, b"");
    // Nobody is left to send to: data finds that out.
    guest.patience = Duration::from_secs(12);
    guest.expect_reset(stream)?;
    let elapsed = start.elapsed().as_millis();
    assert!(
        (7_500..10_000).contains(&elapsed),
        "reset after {elapsed} ms"
    );
    Ok(())
}
