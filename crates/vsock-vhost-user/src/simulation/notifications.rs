//! Notifications of returned TX chains, while they are put off: late, but certain.

use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use tempfile::TempDir;
use vsock_packet::{Cid, GuestCid, Header, Op, VsockAddr};
use vsock_router::{Routers, Switch};
use vsock_testkit::{Guest, Layout, Setup, Transport, feature, queue};

use super::device::{Device, Kicks, pass};
use crate::config::GuestConfig;
use crate::cores::Cores;
use crate::events::Hub;
use crate::owed::Owed;
use crate::unix_socket::{SocketAccess, listen};
use crate::worker::Worker;

/// A guest that sends packets nobody answers.
struct Sender {
    device: Device,
    guest: Guest<Kicks>,
    call: OwnedFd,
    _dir: TempDir,
}

impl Sender {
    fn new(features: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (listener, _) = listen(&path, SocketAccess::default()).unwrap();
        let cid = GuestCid::new(3).unwrap();
        let config = GuestConfig::new(cid, "", &path);
        let (router, switch) = (Arc::new(Routers::default()), Switch::default());
        let (hub, cores) = (Arc::new(Hub::default()), Cores::default());
        let worker = Worker::new(&config, listener, router, &switch, &hub, &cores);
        let setup = Setup {
            features,
            ..Setup::default()
        };
        let (mut device, guest) = Device::start(worker.unwrap(), cid, setup);
        device.worker.owed = Owed::eager();
        let call = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        device.set_call(queue::TX, call.try_clone().unwrap().into());
        let mut sender = Self {
            device,
            guest,
            call,
            _dir: dir,
        };
        sender.take_back();
        sender
    }

    /// Sends so many packets; the worker takes them.
    fn send(&mut self, packets: usize) {
        let host = VsockAddr::new(Cid::HOST, 700);
        let header = Header::new(Op::Rst, self.guest.at(1000), host).to_raw();
        for _ in 0..packets {
            let rings = self.guest.rings_mut();
            assert!(rings.send(&header, &[], &Layout::linux()));
        }
        self.guest.transport().kick(queue::TX).unwrap();
        self.run();
    }

    fn run(&mut self) {
        while self.device.run() {}
    }

    /// Takes back what was returned, and asks to be notified of more.
    fn take_back(&mut self) -> usize {
        self.guest.rings_mut().reclaim_tx().unwrap()
    }

    fn is_called(&self) -> bool {
        rustix::io::read(&self.call, &mut [0; 8]).is_ok()
    }

    /// The time comes at which the worker wants to be woken.
    fn wait_for_timer(&mut self) {
        let due = self.device.deadline().expect("a timer");
        let wait = due.saturating_duration_since(super::device::now());
        assert!(wait <= Duration::from_millis(1), "{wait:?}");
        pass(wait);
        self.run();
    }
}

#[test]
fn come_by_the_timer_to_a_guest_that_waits() {
    let mut sender = Sender::new(feature::LINUX);
    sender.send(1);
    assert!(!sender.is_called());
    sender.wait_for_timer();
    assert!(sender.is_called());
    assert_eq!(sender.take_back(), 1);
    // It has waited: for some time it need not again.
    sender.send(1);
    assert!(sender.is_called());
}

#[test]
fn come_by_the_way_to_a_guest_that_goes_on() {
    let mut sender = Sender::new(feature::LINUX);
    let mut called = 0;
    for _ in 0..100 {
        sender.send(1);
        pass(Duration::from_micros(20));
        if sender.is_called() {
            called += 1;
            sender.take_back();
        }
    }
    assert!((5..10).contains(&called), "{called}");
}

#[test]
fn do_not_come_to_a_guest_that_has_looked() {
    let mut sender = Sender::new(feature::LINUX);
    sender.send(1);
    assert_eq!(sender.take_back(), 1);
    sender.wait_for_timer();
    assert!(!sender.is_called());
}

#[test]
fn come_at_once_to_a_guest_that_has_sent_much() {
    let mut sender = Sender::new(feature::LINUX);
    sender.send(31);
    assert!(!sender.is_called());
    sender.send(1);
    assert!(sender.is_called());
    sender.take_back();
    sender.send(128);
    assert!(sender.is_called());
}

#[test]
fn come_at_once_to_a_guest_without_event_idx() {
    let mut sender = Sender::new(feature::LINUX & !feature::EVENT_IDX);
    sender.send(1);
    assert!(sender.is_called());
}

#[test]
fn come_before_the_ring_stops() {
    let mut sender = Sender::new(feature::LINUX);
    sender.send(1);
    assert!(!sender.is_called());
    sender.device.stop();
    assert!(sender.is_called());
    sender.device.resume(false);
    sender.take_back();
    sender.send(1);
    sender.wait_for_timer();
    assert!(sender.is_called());
}
