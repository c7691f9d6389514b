//! The life of a guest: stop and cont keep its connections; a reset or a VM that is gone ends
//! them, and the next VM comes on the same socket.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{AT_ONCE, CID, Device, host_port, pattern};
use vsock_packet::GuestCid;
use vsock_router::{HostSockets, Request, Router};
use vsock_testkit::host::{Client, HostListener, HostStream, Service};
use vsock_testkit::{Error, Guest, Setup, StreamId, queue};

/// A guest connected to a host, and one a host has connected to.
struct Pair {
    device: Device,
    host: HostListener,
    guest: Guest,
    streams: [StreamId; 2],
    ends: [HostStream; 2],
}

impl Pair {
    fn new() -> Result<Self, Error> {
        let device = Device::start();
        let host = HostListener::bind(&device.uds(), 700)?;
        let guest = device.guest()?;
        Self::connect(device, host, guest)
    }

    fn connect(device: Device, host: HostListener, mut guest: Guest) -> Result<Self, Error> {
        let out = guest.connect(700)?;
        let out_end = host.accept()?;
        guest.listen(1234);
        let client = Client::dial(&device.uds(), 1234)?;
        let incoming = guest.accept(1234)?;
        let (in_end, _) = client.accepted()?;
        Ok(Self {
            device,
            host,
            guest,
            streams: [out, incoming],
            ends: [out_end, in_end],
        })
    }

    fn expect_ends_at_once(&mut self) -> Result<(), Error> {
        self.ends
            .iter_mut()
            .try_for_each(|end| end.expect_end_within(AT_ONCE))
    }

    fn expect_to_work(&mut self) -> Result<(), Error> {
        for (&stream, end) in self.streams.iter().zip(&mut self.ends) {
            self.guest.write_all(stream, &pattern(100_000))?;
            assert!(end.read_exact(100_000)? == pattern(100_000));
            end.write_all(&pattern(50_000))?;
            assert!(self.guest.read_exact(stream, 50_000)? == pattern(50_000));
        }
        Ok(())
    }
}

#[test]
fn connections_survive_stop_and_cont() -> Result<(), Error> {
    let mut pair = Pair::new()?;
    for _ in 0..5 {
        let bases = pair.guest.stop()?;
        for end in &mut pair.ends {
            end.write_all(b"written while the guest was stopped")?;
        }
        pair.guest.resume(&bases)?;
        for stream in pair.streams {
            let bytes = pair.guest.read_exact(stream, 35)?;
            assert_eq!(bytes, b"written while the guest was stopped");
        }
        pair.expect_to_work()?;
    }
    Ok(())
}

#[test]
fn nothing_is_put_into_a_stopped_ring() -> Result<(), Error> {
    let mut pair = Pair::new()?;
    pair.guest.step()?;
    let bases = pair.guest.stop()?;
    let used = |guest: &Guest| [queue::RX, queue::TX].map(|q| guest.rings().ring(q).used_index());
    let before = used(&pair.guest);
    for end in &mut pair.ends {
        end.write_all(&pattern(10_000))?;
    }
    Client::dial(&pair.device.uds(), 1234)?;
    pair.guest.pump(Duration::from_millis(50))?;
    assert_eq!(used(&pair.guest), before);
    pair.guest.resume(&bases)?;
    pair.guest.read_exact(pair.streams[0], 10_000).map(drop)
}

#[test]
fn data_in_flight_survives_stop_and_cont() -> Result<(), Error> {
    let device = Device::start();
    let _echo = Service::echo(&device.uds(), 700)?;
    let mut guest = device.guest()?;
    let stream = guest.connect(700)?;
    let bytes = pattern(4 << 20);
    let (mut written, mut echoed) = (0, Vec::new());
    while echoed.len() < bytes.len() {
        let end = bytes.len().min(written + 300_000);
        written += guest.write_some(stream, &bytes[written..end])?;
        let bases = guest.stop()?;
        guest.resume(&bases)?;
        guest.pump(Duration::from_millis(1))?;
        echoed.extend(guest.read_some(stream, usize::MAX)?);
    }
    assert!(echoed == bytes);
    Ok(())
}

#[test]
fn a_reset_ends_connections_and_the_guest_starts_afresh() -> Result<(), Error> {
    let mut pair = Pair::new()?;
    for _ in 0..3 {
        pair.guest.reset()?;
        pair.expect_ends_at_once()?;
        pair = Pair::connect(pair.device, pair.host, pair.guest)?;
        pair.expect_to_work()?;
    }
    Ok(())
}

#[test]
fn reset_device_ends_connections_and_the_guest_starts_afresh() -> Result<(), Error> {
    let mut pair = Pair::new()?;
    for _ in 0..3 {
        pair.guest.reset_device()?;
        pair.expect_ends_at_once()?;
        pair = Pair::connect(pair.device, pair.host, pair.guest)?;
        pair.expect_to_work()?;
    }
    Ok(())
}

#[test]
fn a_vm_that_is_gone_ends_connections_and_the_next_comes_on_the_same_socket() -> Result<(), Error> {
    let mut pair = Pair::new()?;
    for _ in 0..20 {
        drop(pair.guest);
        for end in &mut pair.ends {
            end.expect_end_within(AT_ONCE)?;
        }
        let guest = pair.device.guest()?;
        pair = Pair::connect(pair.device, pair.host, guest)?;
    }
    pair.expect_to_work()
}

#[test]
fn what_a_vm_sent_before_it_went_is_delivered() -> Result<(), Error> {
    for resets in [false, true] {
        let mut pair = Pair::new()?;
        for stream in pair.streams {
            pair.guest.write_all(stream, &pattern(256 << 10))?;
        }
        pair.guest.expect_tx_returned()?;
        if resets {
            pair.guest.reset()?;
        } else {
            drop(pair.guest);
        }
        for end in &mut pair.ends {
            assert!(end.read_to_end()? == pattern(256 << 10));
        }
    }
    Ok(())
}

#[test]
fn a_vm_may_go_in_the_middle_of_anything() -> Result<(), Error> {
    let device = Device::start();
    let _echo = Service::echo(&device.uds(), 700)?;
    for round in 0..20 {
        let mut guest = device.guest()?;
        let stream = guest.connect(700)?;
        guest.write_some(stream, &pattern(200_000))?;
        if round % 2 == 0 {
            guest.stop()?;
        }
    }
    // A frontend that hangs up before its first request.
    drop(std::os::unix::net::UnixStream::connect(device.socket(CID)).unwrap());
    let mut guest = device.guest()?;
    let stream = guest.connect(700)?;
    assert_eq!(guest.exchange(stream, b"hello", 5)?, b"hello");
    Ok(())
}

const SOCKET_OF_CHILD: &str = "VSOCK_TEST_SOCKET";

/// Not a test of its own: the VM that the next test kills.
#[test]
#[ignore = "runs as a child process of a_killed_vm_ends_its_connections"]
fn be_a_vm() {
    let Some(socket) = std::env::var_os(SOCKET_OF_CHILD) else {
        return;
    };
    let mut guest = Guest::start(PathBuf::from(socket), Setup::default()).unwrap();
    guest.connect(700).unwrap();
    println!("connected");
    guest.pump(Duration::from_secs(60)).unwrap();
}

/// A VM in a process of its own.
struct Vm(Child);

impl Vm {
    /// Starts a VM, and waits until its guest is connected.
    fn start(device: &Device) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "be_a_vm", "--ignored", "--nocapture"])
            .env(SOCKET_OF_CHILD, device.socket(CID))
            .stdout(Stdio::piped())
            .spawn();
        let mut vm = Self(child.unwrap());
        let mut lines = BufReader::new(vm.0.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        assert!(
            lines.any(|line| line.ends_with("connected")),
            "the VM ended early"
        );
        vm
    }

    /// `kill -9`.
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.kill();
    }
}

#[test]
fn a_killed_vm_ends_its_connections() -> Result<(), Error> {
    let device = Device::start();
    let host = HostListener::bind(&device.uds(), 700)?;
    for _ in 0..2 {
        let mut vm = Vm::start(&device);
        let mut end = host.accept()?;
        vm.kill();
        end.expect_end_within(AT_ONCE)?;
    }
    let mut guest = device.guest()?;
    guest.connect(700).map(drop)
}

#[test]
fn a_panic_ends_its_session_and_the_next_vm_is_served() -> Result<(), Error> {
    let device = Device::start();
    let config = device.config(4);
    let host = HostSockets::new(&config.uds_path);
    let router = move |request: &Request| match request.dst.port.value() {
        666 => panic!("as expected"),
        _ => host.route(request),
    };
    device.server.add_with(config, Arc::new(router)).unwrap();
    let _echo = Service::echo(&device.uds_of(4), 700)?;
    let faults = || {
        let counters = device.server.counters(GuestCid::new(4).unwrap());
        counters.unwrap().faults
    };
    for round in 0..2 {
        let mut guest = device.guest_of(4)?;
        let stream = guest.connect(700)?;
        assert_eq!(guest.exchange(stream, b"hello", 5)?, b"hello");
        guest.start_connect(host_port(666))?;
        let deadline = Instant::now() + guest.patience;
        while faults() == round {
            assert!(Instant::now() < deadline, "the session was not ended");
            guest.pump(Duration::from_millis(1))?;
        }
        guest.stop().expect_err("the session goes on, unserved");
    }
    Ok(())
}

#[test]
fn a_guest_that_is_removed_leaves_nothing_behind() -> Result<(), Error> {
    let mut pair = Pair::new()?;
    assert!(pair.device.remove(CID));
    pair.expect_ends_at_once()?;
    assert!(!pair.device.socket(CID).exists() && !pair.device.uds().exists());
    assert!(!pair.device.remove(CID), "it is removed already");
    pair.device.add(CID).unwrap();
    let guest = pair.device.guest()?;
    Pair::connect(pair.device, pair.host, guest)?.expect_to_work()
}

#[test]
fn a_shutdown_ends_all_guests() -> Result<(), Error> {
    let mut pair = Pair::new()?;
    pair.device.add(4).unwrap();
    let paths = [
        pair.device.socket(CID),
        pair.device.uds(),
        pair.device.socket(4),
    ];
    assert!(paths.iter().all(|path| path.exists()));
    std::mem::take(&mut pair.device.server).shutdown();
    pair.expect_ends_at_once()?;
    assert!(!paths.iter().any(|path| path.exists()));
    Ok(())
}
