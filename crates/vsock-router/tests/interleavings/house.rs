//! Guests that are nothing but RX queues, and a switch.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use shuttle::sync::Mutex;
use vsock_packet::{GuestCid, Header, Op, Payload, RawHeader, ShutdownFlags, VsockAddr};
use vsock_router::{Groups, Limits, Member, Packet, Port, Receiver, Request, Route, Router};
use vsock_router::{Siblings, Switch};

/// Orders that are tried of each scenario, by each scheduler.
const ORDERS: usize = 3000;
/// Switches between threads at which the second scheduler aims.
const DEPTH: usize = 3;

/// Runs a scenario in many orders.
pub(crate) fn explore(scenario: impl Fn() + Send + Sync + Copy + 'static) {
    shuttle::check_random(scenario, ORDERS);
    shuttle::check_pct(scenario, ORDERS, DEPTH);
}

/// An RX queue.
#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) buffers: usize,
    received: Vec<(Header, Vec<u8>)>,
}

#[derive(Default)]
pub(crate) struct TestPort(Mutex<Queue>);

impl TestPort {
    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut Queue) -> R) -> R {
        act(&mut self.0.lock().unwrap())
    }
}

impl Port for TestPort {
    fn is_up(&self) -> bool {
        true
    }

    fn pass(&self, fill: &mut dyn FnMut(&mut dyn Receiver)) {
        fill(&mut *self.0.lock().unwrap());
    }

    fn wake(&self) {}
}

impl Receiver for Queue {
    fn put(&mut self, packet: &mut Packet<'_>) -> bool {
        let header = Header::parse(&packet.header_for(4)).unwrap();
        let mut bytes = vec![0; header.len as usize];
        if self.buffers == 0 {
            return false;
        }
        self.buffers -= 1;
        packet.payload.copy_to_bytes(&mut bytes);
        self.received.push((header, bytes));
        true
    }

    fn put_control(&mut self, header: &RawHeader) -> bool {
        if self.buffers == 0 {
            return false;
        }
        self.buffers -= 1;
        self.received
            .push((Header::parse(header).unwrap(), Vec::new()));
        true
    }
}

#[derive(Clone)]
pub(crate) struct Guest {
    cid: GuestCid,
    pub(crate) member: Arc<Member>,
    pub(crate) port: Arc<TestPort>,
    now: Instant,
    /// It has asked, and was refused.
    refused: Arc<AtomicBool>,
}

impl Guest {
    /// The port a guest uses, whatever it does.
    fn addr(&self) -> VsockAddr {
        VsockAddr::new(self.cid, 1)
    }

    pub(crate) fn header(&self, to: &Self, op: Op) -> Header {
        Header {
            buf_alloc: 65536,
            ..Header::new(op, self.addr(), to.addr())
        }
    }

    pub(crate) fn take(&self, header: Header, payload: &[u8]) {
        let len = payload.len() as u32;
        let packet = Packet::new(Header { len, ..header }, Payload::from_bytes(payload));
        self.member.send(&[packet], self.now);
    }

    pub(crate) fn say(&self, to: &Self, op: Op) {
        let flags = match op {
            Op::Shutdown => ShutdownFlags::all().bits(),
            _ => 0,
        };
        self.take(
            Header {
                flags,
                ..self.header(to, op)
            },
            b"",
        );
    }

    pub(crate) fn send(&self, to: &Self, payload: &[u8]) {
        self.take(self.header(to, Op::Rw), payload);
    }

    pub(crate) fn post(&self, buffers: usize) {
        self.port.with(|queue| queue.buffers += buffers);
        self.member.flush(self.now);
    }

    pub(crate) fn ops(&self) -> Vec<Op> {
        let ops = |queue: &mut Queue| queue.received.iter().map(|(header, _)| header.op).collect();
        self.port.with(ops)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let bytes = |queue: &mut Queue| {
            let payload = queue
                .received
                .iter()
                .filter(|(header, _)| header.op == Op::Rw);
            payload.flat_map(|(_, bytes)| bytes.clone()).collect()
        };
        self.port.with(bytes)
    }

    /// Whether a guest that has asked knows that it has no connection.
    pub(crate) fn knows_of_the_end(&self) -> bool {
        self.refused.load(Ordering::Relaxed) || self.ops().contains(&Op::Rst)
    }
}

#[derive(Clone)]
pub(crate) struct House {
    switch: Arc<Switch>,
    pub(crate) now: Instant,
}

impl House {
    pub(crate) fn new() -> Self {
        Self {
            switch: Arc::new(Switch::new(Limits::default())),
            now: Instant::now(),
        }
    }

    /// After every time-out.
    pub(crate) fn later(&self) -> Instant {
        self.now + Duration::from_secs(11)
    }

    /// Two guests of a group, with plenty of RX buffers.
    pub(crate) fn pair(&self) -> [Guest; 2] {
        [3, 4].map(|cid| {
            let port = Arc::new(TestPort::default());
            port.with(|queue| queue.buffers = 1000);
            let cid = GuestCid::new(cid).unwrap();
            let groups = Groups::from(["friends".to_owned()]);
            let member = self.switch.join(cid, groups, Arc::<TestPort>::clone(&port));
            Guest {
                cid,
                member: member.unwrap(),
                port,
                now: self.now,
                refused: Arc::default(),
            }
        })
    }

    /// Has a guest ask for another, as a device does for a REQUEST.
    pub(crate) fn request(&self, from: &Guest, to: &Guest) -> bool {
        let request = from.header(to, Op::Request);
        let router = Siblings(Arc::clone(&self.switch));
        match router.route(&Request::new(from.cid, &request)) {
            Route::Member(target) => from.member.open(&request, &target, self.now).is_ok(),
            _ => false,
        }
    }

    /// The same; the guest is told.
    pub(crate) fn ask(&self, from: &Guest, to: &Guest) {
        if !self.request(from, to) {
            from.refused.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn leave(&self, guest: &Guest) {
        self.switch.leave(guest.cid, self.now);
    }

    pub(crate) fn set_groups(&self, guest: &Guest, group: &str) {
        let groups = Groups::from([group.to_owned()]);
        assert!(self.switch.set_groups(guest.cid, groups, self.now));
    }

    /// What holds when nobody does anything any more.
    pub(crate) fn check_rest(&self, guests: &[&Guest; 2]) {
        for guest in guests {
            assert!(!guest.member.is_waiting(), "it waits beside free buffers");
            assert_eq!(guest.member.charged(), 0);
        }
        let [one, other] = guests.map(|guest| guest.member.connections());
        assert_eq!(one, other, "halves without their others");
    }
}
