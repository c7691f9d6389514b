//! Malformed chains: each is returned, and breaks at most its own stream.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use common::{Device, header, host_port, pattern};
use vm_memory::GuestAddress;
use vsock_packet::Op;
use vsock_testkit::host::Service;
use vsock_testkit::{Error, Layout, Piece, RawDescriptor, RxBuffers, Setup, queue};

#[test]
fn returns_malformed_chains_and_goes_on() -> Result<(), Error> {
    let device = Device::start();
    let _echo = Service::echo(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    let stream = guest.connect(700)?;
    let piece = |address: u64, len, writable| Piece {
        address: GuestAddress(address),
        len,
        writable,
    };
    for pieces in [
        vec![piece(0x100, 43, false)],
        vec![piece(0x100, 0, false)],
        vec![piece(0x100, 3776, true)],
        vec![piece(1 << 40, 44, false)],
        vec![piece((256 << 20) - 10, 44, false)],
        vec![piece(u64::MAX - 10, 44, false)],
        vec![piece(0x100, 44, false), piece(1 << 40, 100, false)],
        vec![piece(0x100, 20, false), piece(0x200, 100, true)],
    ] {
        let ring = guest.rings_mut().ring_mut(queue::TX);
        ring.add(&pieces, false).unwrap();
        guest.step()?;
        guest.expect_tx_returned()?;
        assert_eq!(
            guest.exchange(stream, b"still here", 10)?,
            b"still here",
            "{pieces:?}"
        );
    }
    Ok(())
}

#[test]
fn a_len_beyond_the_chain_breaks_its_stream_and_no_other() -> Result<(), Error> {
    let device = Device::start();
    let _echo = Service::echo(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    let good = guest.connect(700)?;
    guest.send_packet(
        &header(&guest, Op::Request, 50, 700).to_raw(),
        &[],
        &Layout::linux(),
    )?;
    guest.expect_packet(Op::Response)?;
    let mut long = header(&guest, Op::Rw, 50, 700).to_raw();
    for len in [7, 65536, u32::MAX] {
        long.set_len(len);
        guest.send_packet(&long, b"abcdef", &Layout::linux())?;
        guest.expect_tx_returned()?;
    }
    assert_eq!(guest.exchange(good, b"still here", 10)?, b"still here");
    Ok(())
}

#[test]
fn returns_a_chain_that_loops() -> Result<(), Error> {
    const NEXT: u16 = 1;
    let device = Device::start();
    let mut guest = device.guest()?;
    let loops = RawDescriptor {
        address: 0x100,
        len: 1,
        flags: NEXT,
        next: 0,
    };
    guest.rings_mut().ring_mut(queue::TX).add_raw(&[loops], 0);
    guest.step()?;
    guest.expect_tx_returned()?;
    guest.send_packet(
        &header(&guest, Op::Request, 50, 9).to_raw(),
        &[],
        &Layout::linux(),
    )?;
    guest.expect_packet(Op::Rst).map(drop)
}

#[test]
fn passes_over_rx_buffers_that_hold_no_packet() -> Result<(), Error> {
    for size in [1, 43, 44] {
        let device = Device::start();
        let _source = Service::source(&device.uds(), 700, pattern(50_000))?;
        let mut rx = RxBuffers {
            count: 8,
            ..RxBuffers::of([size])
        };
        let mut guest = device.guest_with(Setup {
            rx: rx.clone(),
            ..Setup::default()
        })?;
        // The next buffers are of use; those in the ring come back, or wait for a header.
        rx.pieces = vec![3776];
        rx.count = usize::MAX;
        guest.rings_mut().set_rx_buffers(rx);
        let stream = guest.start_connect(host_port(700))?;
        let outcome = guest.wait_until("the stream to end", |guest| guest.stream(stream).at_end());
        match outcome {
            Ok(()) => assert_eq!(guest.read_to_end(stream)?, pattern(50_000)),
            // A buffer used with no header in it is what a driver takes for a fault.
            Err(Error::Device(why)) => assert!(why.contains("with 0 bytes"), "{why}"),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
