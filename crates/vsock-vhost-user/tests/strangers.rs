//! RST for whatever does not belong: strangers, wrong types, unknown operations; and never an
//! RST for an RST.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::time::{Duration, Instant};

use common::{AT_ONCE, Device, assert_at_once, header, pair};
use vsock_packet::{Header, Op, RawHeader, SocketType};
use vsock_testkit::host::HostListener;
use vsock_testkit::{Error, Guest, Layout};

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
    let (_alive, mut guest, stream, mut end) = pair()?;
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

#[test]
fn a_second_request_for_a_stream_harms_no_other() -> Result<(), Error> {
    let (alive, mut guest, stream, mut end) = pair()?;
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
    Ok(())
}

#[test]
fn a_forged_request_reaches_no_host() -> Result<(), Error> {
    let (alive, mut guest, stream, mut end) = pair()?;
    for cid in [0, 1, 2, 4, u32::MAX] {
        let request = header(&guest, Op::Request, 50, 700);
        let forged = spoiled(request, 0, &u64::from(cid).to_le_bytes());
        guest.send_packet(&forged, &[], &Layout::linux())?;
    }
    guest.expect_tx_returned()?;
    assert!(!alive.host.has_connection(Duration::from_millis(20))?);
    guest.write_all(stream, b"still here")?;
    assert_eq!(end.read_exact(10)?, b"still here");
    Ok(())
}
