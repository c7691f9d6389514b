//! The whole life of a connection: half-close in each direction, full close that loses nothing,
//! credit both ways, and RST for whatever does not belong.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::io::ErrorKind;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use common::{AT_ONCE, Device, assert_at_once, header, host_port, pattern};
use vsock_packet::{Header, Op, RawHeader, ShutdownFlags, SocketType};
use vsock_testkit::host::{HostListener, HostStream};
use vsock_testkit::{Behaviour, Error, Guest, Layout, RxBuffers, Setup, State, StreamId};

/// A stream between a guest and a host, on a device of their own.
struct Pair {
    guest: Guest,
    stream: StreamId,
    end: HostStream,
    alive: Alive,
}

/// What a [`Pair`] needs to live.
struct Alive {
    host: HostListener,
    _device: Device,
}

impl Pair {
    fn new() -> Result<Self, Error> {
        Self::with(Behaviour::linux())
    }

    fn with(behaviour: Behaviour) -> Result<Self, Error> {
        Self::of(Setup {
            behaviour,
            ..Setup::default()
        })
    }

    fn of(setup: Setup) -> Result<Self, Error> {
        let device = Device::start();
        let host = HostListener::bind(&device.uds(), 700)?;
        let mut guest = device.guest_with(setup)?;
        let stream = guest.connect(700)?;
        let end = host.accept()?;
        let alive = Alive {
            host,
            _device: device,
        };
        Ok(Self {
            guest,
            stream,
            end,
            alive,
        })
    }
}

// ---- close ------------------------------------------------------------------------

#[test]
fn a_guest_that_sends_no_more_can_still_receive() -> Result<(), Error> {
    let Pair {
        alive: _alive,
        mut guest,
        stream,
        mut end,
    } = Pair::new()?;
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
    let Pair {
        alive: _alive,
        mut guest,
        stream,
        mut end,
    } = Pair::new()?;
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
    let Pair {
        alive: _alive,
        mut guest,
        stream,
        mut end,
    } = Pair::new()?;
    guest.shutdown(stream, ShutdownFlags::SEND)?;
    assert_eq!(end.read_to_end()?, b"");
    end.write_all(b"the last word")?;
    end.shutdown_write()?;
    assert_eq!(guest.read_to_end(stream)?, b"the last word");
    guest.close(stream)
}

#[test]
fn a_guest_that_receives_no_more_breaks_the_hosts_pipe() -> Result<(), Error> {
    let Pair {
        alive: _alive,
        mut guest,
        stream,
        end,
    } = Pair::new()?;
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
    let Pair {
        alive: _alive,
        mut guest,
        stream,
        end,
    } = Pair::new()?;
    end.shutdown_read()?;
    guest.write_all(stream, b"for nobody")?;
    guest.wait_until("the guest to learn that nobody reads", |guest| {
        let stream = guest.stream(stream);
        stream.was_reset() || stream.peer_shutdown().contains(ShutdownFlags::RECEIVE)
    })
}

#[test]
fn flags_of_shutdowns_accumulate() -> Result<(), Error> {
    let Pair {
        alive: _alive,
        mut guest,
        stream,
        mut end,
    } = Pair::new()?;
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
    let Pair {
        alive: _alive,
        mut guest,
        stream,
        mut end,
    } = Pair::new()?;
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
    let Pair {
        alive: _alive,
        mut guest,
        stream,
        mut end,
    } = Pair::new()?;
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
    let Pair {
        alive: _alive,
        mut guest,
        stream,
        mut end,
    } = Pair::new()?;
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
    let Pair {
        alive: _alive,
        mut guest,
        stream,
        mut end,
    } = Pair::new()?;
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
        let Pair {
            alive: _alive,
            mut guest,
            stream,
            mut end,
        } = Pair::with(behaviour)?;
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
    let Pair {
        alive: _alive,
        mut guest,
        stream,
        end: _end,
    } = Pair::new()?;
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
    let Pair {
        alive: _alive,
        mut guest,
        stream,
        end,
    } = Pair::with(behaviour)?;
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

// ---- RST --------------------------------------------------------------------------

/// Sends a packet; the next one from the device must be the RST for it.
#[track_caller]
fn assert_reset(guest: &mut Guest, packet: &RawHeader) {
    let start = Instant::now();
    guest.send_packet(packet, &[], &Layout::linux()).unwrap();
    let answer = guest.expect_packet(Op::Rst).unwrap();
    assert_at_once(start, "the RST");
    assert_eq!(
        Some(answer.header),
        packet.rst(),
        "the answer to {packet:?}"
    );
}

#[test]
fn strangers_are_reset() -> Result<(), Error> {
    let device = Device::start();
    let mut guest = device.guest()?;
    for op in [
        Op::Response,
        Op::Shutdown,
        Op::Rw,
        Op::CreditUpdate,
        Op::CreditRequest,
    ] {
        let packet = header(&guest, op, 50, 700).to_raw();
        assert_reset(&mut guest, &packet);
    }
    Ok(())
}

/// A header with `bytes` at `offset`, which no valid header has.
fn spoiled(header: Header, offset: usize, bytes: &[u8]) -> RawHeader {
    let mut raw = *header.to_raw().as_bytes();
    raw[offset..offset + bytes.len()].copy_from_slice(bytes);
    RawHeader::from_bytes(raw)
}

#[test]
fn unknown_types_are_reset() -> Result<(), Error> {
    let device = Device::start();
    let _host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    for socket_type in [0, 3, 0xffff_u16] {
        let request = header(&guest, Op::Request, 50, 700);
        assert_reset(
            &mut guest,
            &spoiled(request, 28, &socket_type.to_le_bytes()),
        );
    }
    Ok(())
}

#[test]
fn a_type_that_was_not_negotiated_is_reset() -> Result<(), Error> {
    let device = Device::start();
    let _host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    let request = header(&guest, Op::Request, 50, 700);
    let request = Header {
        socket_type: SocketType::Seqpacket,
        ..request
    };
    assert_reset(&mut guest, &request.to_raw());
    Ok(())
}

#[test]
fn unknown_operations_of_strangers_are_reset() -> Result<(), Error> {
    let device = Device::start();
    let mut guest = device.guest()?;
    for op in [0, 8, 0xffff_u16] {
        let packet = header(&guest, Op::Request, 50, 700);
        assert_reset(&mut guest, &spoiled(packet, 30, &op.to_le_bytes()));
    }
    Ok(())
}

#[test]
fn an_rst_is_never_answered() -> Result<(), Error> {
    let device = Device::start();
    let mut guest = device.guest()?;
    for port in 50..100 {
        let rst = header(&guest, Op::Rst, port, 700);
        guest.send_packet(&rst.to_raw(), &[], &Layout::linux())?;
        let untyped = spoiled(rst, 28, &[9, 0]);
        guest.send_packet(&untyped, &[], &Layout::linux())?;
    }
    // The answer to the last packet is the first that comes.
    let request = header(&guest, Op::Request, 100, 700).to_raw();
    assert_reset(&mut guest, &request);
    assert!(guest.inbox().is_empty());
    Ok(())
}

#[test]
fn a_spoofed_source_reaches_no_stream() -> Result<(), Error> {
    let Pair {
        alive: _alive,
        mut guest,
        stream,
        mut end,
    } = Pair::new()?;
    let (local, peer) = (guest.stream(stream).local(), guest.stream(stream).peer());
    for cid in [0, 1, 2, 4, u32::MAX] {
        let spoofed = header(&guest, Op::Rst, local.port.value(), peer.port.value());
        guest.send_packet(
            &spoiled(spoofed, 0, &u64::from(cid).to_le_bytes()),
            &[],
            &Layout::linux(),
        )?;
    }
    let wide = header(&guest, Op::Rst, local.port.value(), peer.port.value());
    guest.send_packet(&spoiled(wide, 4, &[1]), &[], &Layout::linux())?;
    guest.send_packet(&spoiled(wide, 12, &[1]), &[], &Layout::linux())?;
    guest.expect_tx_returned()?;
    guest.write_all(stream, b"still here")?;
    assert_eq!(end.read_exact(10)?, b"still here");
    Ok(())
}

// ---- credit -----------------------------------------------------------------------

#[test]
fn a_slow_host_slows_the_guest_and_loses_nothing() -> Result<(), Error> {
    let Pair {
        alive: _alive,
        mut guest,
        stream,
        mut end,
    } = Pair::new()?;
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
    let Pair {
        alive: _alive,
        mut guest,
        stream,
        mut end,
    } = Pair::new()?;
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
        let Pair {
            alive: _alive,
            mut guest,
            stream,
            mut end,
        } = Pair::with(behaviour)?;
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
    let Pair {
        alive: _alive,
        mut guest,
        stream,
        end: _end,
    } = Pair::new()?;
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
    let Pair {
        alive: _alive,
        mut guest,
        stream,
        mut end,
    } = Pair::with(behaviour)?;
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
    let Pair {
        alive: _alive,
        mut guest,
        stream,
        mut end,
    } = Pair::with(behaviour)?;
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
    let Pair {
        alive: _alive,
        mut guest,
        stream,
        mut end,
    } = Pair::new()?;
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
    let Pair {
        alive: _alive,
        mut guest,
        stream,
        mut end,
    } = Pair::new()?;
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
    let Pair {
        alive: _alive,
        mut guest,
        stream,
        mut end,
    } = Pair::of(setup)?;
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
    let Pair {
        alive: _alive,
        mut guest,
        stream,
        mut end,
    } = Pair::with(behaviour)?;
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
fn a_second_request_for_a_stream_harms_no_other() -> Result<(), Error> {
    let Pair {
        alive,
        mut guest,
        stream,
        mut end,
    } = Pair::new()?;
    let request = header(&guest, Op::Request, 50, 700).to_raw();
    guest.send_packet(&request, &[], &Layout::linux())?;
    guest.expect_packet(Op::Response)?;
    let mut second = alive.host.accept()?;
    guest.send_packet(&request, &[], &Layout::linux())?;
    guest.expect_tx_returned()?;
    // Whether the old one goes on or ends: it is not left in between.
    guest.pump(Duration::from_millis(20))?;
    let was_reset = guest
        .inbox()
        .iter()
        .any(|packet| packet.op() == Some(Op::Rst));
    if was_reset {
        second.expect_end_within(AT_ONCE)?;
    }
    guest.write_all(stream, b"still here")?;
    assert_eq!(end.read_exact(10)?, b"still here");
    assert_eq!(
        guest.connect(701).map(drop).unwrap_err().to_string(),
        refusal(701)
    );
    Ok(())
}

fn refusal(port: u32) -> String {
    Error::Refused {
        port: host_port(port).port.value(),
    }
    .to_string()
}
