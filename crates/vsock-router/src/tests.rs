//! Scenarios of a switch with guests that are nothing but RX queues.

#![cfg(not(shuttle))]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vsock_packet::{Cid, Features, GuestCid, Header, Op, Payload, RawHeader, RwFlags};
use vsock_packet::{ShutdownFlags, SocketType, VsockAddr};

use crate::{
    ConnectionState, Groups, Limits, Member, Packet, Port, Receiver, Refusal, Request, Route,
    Router,
};
use crate::{Siblings, Switch};

const BUF_ALLOC: u32 = 64 * 1024;

/// An RX queue: so many buffers of one size, and what was put into them.
#[derive(Default)]
struct Queue {
    buffers: usize,
    room: usize,
    received: VecDeque<(Header, Vec<u8>)>,
}

struct TestPort {
    up: AtomicBool,
    queue: Mutex<Queue>,
    notified: AtomicUsize,
    woken: AtomicUsize,
}

impl Port for TestPort {
    fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    fn pass(&self, fill: &mut dyn FnMut(&mut dyn Receiver)) {
        if self.is_up() {
            fill(&mut *self.queue.lock().unwrap());
            self.notified.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn wake(&self) {
        self.woken.fetch_add(1, Ordering::Relaxed);
    }
}

impl Receiver for Queue {
    fn put(&mut self, packet: &mut Packet<'_>) -> bool {
        if self.buffers == 0 {
            return false;
        }
        self.buffers -= 1;
        let header = Header::parse(&packet.header_for(self.room)).unwrap();
        let mut bytes = vec![0; header.len as usize];
        packet.payload.copy_to_bytes(&mut bytes);
        self.received.push_back((header, bytes));
        true
    }

    fn put_control(&mut self, header: &RawHeader) -> bool {
        if self.buffers == 0 {
            return false;
        }
        self.buffers -= 1;
        self.received
            .push_back((Header::parse(header).unwrap(), vec![]));
        true
    }
}

/// A guest: what it sends is said by the test, what it receives waits in its queue.
struct Guest {
    cid: GuestCid,
    member: Arc<Member>,
    port: Arc<TestPort>,
    now: Instant,
}

impl Guest {
    fn addr(&self, port: u32) -> VsockAddr {
        VsockAddr::new(self.cid, port)
    }

    fn post(&self, buffers: usize) {
        self.port.queue.lock().unwrap().buffers += buffers;
        self.member.flush(self.now);
    }

    fn send(&self, header: Header, payload: &[u8]) {
        let header = Header {
            len: payload.len() as u32,
            ..header
        };
        self.member.send(
            &[Packet::new(header, Payload::from_bytes(payload))],
            self.now,
        );
    }

    fn received(&self) -> Vec<(Header, Vec<u8>)> {
        self.port.queue.lock().unwrap().received.drain(..).collect()
    }

    fn ops(&self) -> Vec<Op> {
        self.received()
            .iter()
            .map(|(header, _)| header.op)
            .collect()
    }

    fn bytes(&self) -> Vec<u8> {
        self.received()
            .into_iter()
            .filter(|(header, _)| header.op == Op::Rw)
            .flat_map(|(_, bytes)| bytes)
            .collect()
    }
}

struct House {
    switch: Arc<Switch>,
    now: Instant,
}

impl House {
    fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    fn with_limits(limits: Limits) -> Self {
        Self {
            switch: Arc::new(Switch::new(limits)),
            now: Instant::now(),
        }
    }

    /// A guest in these groups, with plenty of RX buffers of Linux's size.
    fn guest(&self, cid: u64, groups: &[&str]) -> Guest {
        let port = Arc::new(TestPort {
            up: AtomicBool::new(true),
            queue: Mutex::new(Queue {
                buffers: 1000,
                room: 3732,
                ..Queue::default()
            }),
            notified: AtomicUsize::new(0),
            woken: AtomicUsize::new(0),
        });
        let groups: Groups = groups.iter().map(ToString::to_string).collect();
        let cid = GuestCid::new(cid).unwrap();
        let member = self
            .switch
            .join(cid, groups, Arc::<TestPort>::clone(&port))
            .unwrap();
        Guest {
            cid,
            member,
            port,
            now: self.now,
        }
    }

    /// Has `from` ask for `to`, as a device does for a REQUEST packet.
    fn request(&self, from: &Guest, request: &Header) -> Result<(), Refusal> {
        match Siblings(Arc::clone(&self.switch)).route(&Request::new(from.cid, request)) {
            Route::Member(target) => from.member.open(request, &target, self.now),
            Route::Refuse(why) => Err(why),
            route => panic!("{route:?}"),
        }
    }

    /// A connection from port 1 of one guest to port 2 of the other, and its two headers.
    fn connect(&self, one: &Guest, other: &Guest) -> (Header, Header) {
        self.connect_type(one, other, SocketType::Stream)
    }

    fn connect_type(&self, one: &Guest, other: &Guest, kind: SocketType) -> (Header, Header) {
        self.connect_ends(one.addr(1), other.addr(2), (one, other), kind)
    }

    fn connect_ends(
        &self,
        from: VsockAddr,
        to: VsockAddr,
        (one, other): (&Guest, &Guest),
        kind: SocketType,
    ) -> (Header, Header) {
        let there = Header {
            socket_type: kind,
            buf_alloc: BUF_ALLOC,
            ..Header::new(Op::Rw, from, to)
        };
        let back = Header {
            src: there.dst,
            dst: there.src,
            ..there
        };
        self.request(
            one,
            &Header {
                op: Op::Request,
                ..there
            },
        )
        .unwrap();
        assert_eq!(other.ops(), [Op::Request]);
        other.send(
            Header {
                op: Op::Response,
                ..back
            },
            &[],
        );
        assert_eq!(one.ops(), [Op::Response]);
        (there, back)
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

#[test]
fn splits_a_packet_to_the_receivers_buffers_in_order() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, _) = house.connect(&one, &other);
    one.send(there, &pattern(10_000));
    let received = other.received();
    let lens: Vec<_> = received.iter().map(|(header, _)| header.len).collect();
    assert_eq!(lens, [3732, 3732, 2536]);
    assert_eq!(
        received
            .into_iter()
            .flat_map(|(_, bytes)| bytes)
            .collect::<Vec<_>>(),
        pattern(10_000)
    );
}

#[test]
fn notifies_the_receiver_once_for_a_batch() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, _) = house.connect(&one, &other);
    let before = other.port.notified.load(Ordering::Relaxed);
    let header = Header { len: 3, ..there };
    let packets = [Packet::new(header, Payload::from_bytes(b"abc")); 20];
    one.member.send(&packets, house.now);
    assert_eq!(other.port.notified.load(Ordering::Relaxed), before + 1);
    assert_eq!(other.bytes(), b"abc".repeat(20));
}

#[test]
fn guests_reach_each_other_only_by_a_shared_group() {
    let house = House::new();
    let one = house.guest(3, &["a", "b"]);
    let (alike, other, alone) = (
        house.guest(4, &["b"]),
        house.guest(5, &["c"]),
        house.guest(6, &[]),
    );
    let request = |to: &Guest| Header::new(Op::Request, one.addr(1), to.addr(2));
    assert_eq!(house.request(&one, &request(&alike)), Ok(()));
    assert_eq!(
        house.request(&one, &request(&other)),
        Err(Refusal::NoSharedGroup)
    );
    assert_eq!(
        house.request(&one, &request(&alone)),
        Err(Refusal::NoSharedGroup)
    );
    let nobody = Header::new(Op::Request, one.addr(1), VsockAddr::new(Cid::new(99), 2));
    assert_eq!(house.request(&one, &nobody), Err(Refusal::NoRoute));
    assert_eq!(
        house.request(&one, &request(&one)),
        Err(Refusal::NoSharedGroup)
    );
}

#[test]
fn a_sibling_that_is_not_up_or_lacks_the_type_is_refused() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let request = Header::new(Op::Request, one.addr(1), other.addr(2));
    other.member.set_features(Features::STREAM);
    let seqpacket = Header {
        socket_type: SocketType::Seqpacket,
        ..request
    };
    assert_eq!(
        house.request(&one, &seqpacket),
        Err(Refusal::TypeNotSupported)
    );
    other.port.up.store(false, Ordering::Relaxed);
    assert_eq!(house.request(&one, &request), Err(Refusal::NotUp));
    assert_eq!(one.member.connections(), 0);
}

#[test]
fn a_refusal_of_the_sibling_ends_both_halves() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let request = Header::new(Op::Request, one.addr(1), other.addr(2));
    house.request(&one, &request).unwrap();
    other.send(Header::new(Op::Rst, other.addr(2), one.addr(1)), &[]);
    assert_eq!(one.ops(), [Op::Rst]);
    assert_eq!(
        (one.member.connections(), other.member.connections()),
        (0, 0)
    );
}

#[test]
fn packets_of_no_connection_are_answered_with_an_rst_and_an_rst_is_not() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    one.send(Header::new(Op::Rw, one.addr(1), other.addr(2)), b"x");
    one.send(Header::new(Op::Rst, one.addr(1), other.addr(2)), &[]);
    let received = one.received();
    assert_eq!(received.len(), 1);
    assert_eq!(
        (received[0].0.op, received[0].0.src),
        (Op::Rst, other.addr(2))
    );
    assert_eq!(other.ops(), []);
}

#[test]
fn whoever_sends_beyond_the_credit_is_reset_and_counted() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, _) = house.connect(&one, &other);
    one.send(there, &pattern(BUF_ALLOC as usize));
    one.send(there, b"x");
    assert_eq!(one.ops().last(), Some(&Op::Rst));
    assert_eq!(other.ops().last(), Some(&Op::Rst));
    assert_eq!(one.member.counters().violations, 1);
    assert_eq!(
        (one.member.connections(), other.member.connections()),
        (0, 0)
    );
}

#[test]
fn what_does_not_fit_waits_and_comes_in_order() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, _) = house.connect(&one, &other);
    other.port.queue.lock().unwrap().buffers = 2;
    let sent = pattern(40_000);
    for part in sent.chunks(9_000) {
        one.send(there, part);
    }
    assert!(one.member.charged() > 30_000);
    let mut received = other.bytes();
    while one.member.charged() > 0 {
        other.post(3);
        received.extend(other.bytes());
    }
    assert_eq!(received, sent);
}

#[test]
fn small_packets_that_wait_are_joined() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, _) = house.connect(&one, &other);
    other.port.queue.lock().unwrap().buffers = 0;
    for byte in pattern(1000) {
        one.send(there, &[byte]);
    }
    other.post(10);
    let received = other.received();
    assert_eq!(
        received
            .iter()
            .filter(|(header, _)| header.op == Op::Rw)
            .count(),
        1
    );
}

#[test]
fn a_receiver_gets_no_more_packets_than_it_can_hold_until_it_has_read_some() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, back) = house.connect(&one, &other);
    for byte in pattern(1000) {
        one.send(there, &[byte]);
    }
    let first = other.received();
    let count = first
        .iter()
        .filter(|(header, _)| header.op == Op::Rw)
        .count();
    assert_eq!(count, BUF_ALLOC as usize / 1024);
    assert!(
        first
            .iter()
            .any(|(header, _)| header.op == Op::CreditRequest)
    );
    other.send(
        Header {
            op: Op::CreditUpdate,
            fwd_cnt: count as u32,
            ..back
        },
        &[],
    );
    assert_eq!(other.bytes().len(), 1000 - count, "the rest in one packet");
}

#[test]
fn a_receiver_that_tells_only_when_asked_is_asked_again_by_the_timer() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, _) = house.connect(&one, &other);
    one.send(there, &pattern(BUF_ALLOC as usize));
    assert_eq!(other.ops().last(), Some(&Op::CreditRequest));
    assert_eq!(other.port.woken.load(Ordering::Relaxed), 1);
    let due = other.member.next_timeout().unwrap();
    other.member.handle_timeouts(due);
    assert_eq!(other.ops(), [Op::CreditRequest]);
    assert!(other.member.next_timeout().unwrap() > due);
}

#[test]
fn what_is_sent_before_a_close_comes_before_it() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, _) = house.connect(&one, &other);
    other.port.queue.lock().unwrap().buffers = 1;
    one.send(there, &pattern(10_000));
    let all = ShutdownFlags::all().bits();
    one.send(
        Header {
            op: Op::Shutdown,
            flags: all,
            ..there
        },
        &[],
    );
    one.send(
        Header {
            op: Op::Rst,
            ..there
        },
        &[],
    );
    other.post(10);
    assert_eq!(other.ops(), [Op::Rw, Op::Rw, Op::Rw, Op::Shutdown, Op::Rst]);
    assert_eq!(
        (one.member.connections(), other.member.connections()),
        (0, 0)
    );
}

#[test]
fn halves_end_on_their_own() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, back) = house.connect(&one, &other);
    let send = ShutdownFlags::SEND.bits();
    one.send(
        Header {
            op: Op::Shutdown,
            flags: send,
            ..there
        },
        &[],
    );
    other.send(back, b"still");
    let shutdown = other.received().pop().unwrap().0;
    assert_eq!((shutdown.op, shutdown.flags), (Op::Shutdown, send));
    assert_eq!(one.bytes(), b"still");
    one.send(there, b"x");
    assert_eq!(one.ops(), [Op::Rst], "it had said it would send no more");
}

#[test]
fn a_guest_that_leaves_ends_its_connections_at_the_other_ends() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, _) = house.connect(&one, &other);
    other.port.queue.lock().unwrap().buffers = 1;
    one.send(there, &pattern(30_000));
    other.member.reset(house.now);
    assert_eq!(one.ops(), [Op::Rst]);
    assert_eq!(
        (one.member.connections(), other.member.connections()),
        (0, 0)
    );
    assert_eq!(one.member.charged(), 0);
}

#[test]
fn what_a_guest_finished_before_it_left_is_still_delivered() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, _) = house.connect(&one, &other);
    other.port.queue.lock().unwrap().buffers = 0;
    one.send(there, b"goodbye");
    let all = ShutdownFlags::all().bits();
    one.send(
        Header {
            op: Op::Shutdown,
            flags: all,
            ..there
        },
        &[],
    );
    house.switch.leave(one.cid, house.now);
    other.post(10);
    let received = other.received();
    let ops: Vec<_> = received.iter().map(|(header, _)| header.op).collect();
    assert_eq!(ops, [Op::Rw, Op::Shutdown, Op::Rst]);
}

#[test]
fn a_sender_with_too_much_waiting_loses_that_connection_only() {
    let house = House::with_limits(Limits {
        backlog: 80_000,
        ..Limits::default()
    });
    let (one, two) = (house.guest(3, &["a"]), house.guest(5, &["a"]));
    let other = house.guest(4, &["a"]);
    let (there, _) = house.connect(&one, &other);
    let (also, _) = house.connect(&two, &other);
    other.port.queue.lock().unwrap().buffers = 0;
    two.send(also, &pattern(30_000));
    one.send(there, &pattern(39_000));
    one.send(there, &pattern(2_000));
    assert_eq!(one.ops(), [Op::Rst]);
    assert_eq!(one.member.charged(), 0);
    other.post(100);
    let ops = other.received();
    assert!(
        ops.iter()
            .any(|(header, _)| header.op == Op::Rst && header.src == one.addr(1))
    );
    let bytes: Vec<u8> = ops.into_iter().flat_map(|(_, bytes)| bytes).collect();
    assert_eq!(bytes, pattern(30_000));
}

/// Each has sent a full SHUTDOWN, and waits for an RST that the other will not send.
#[test]
fn ends_that_both_shut_down_get_their_rst_at_once() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, back) = house.connect(&one, &other);
    for (guest, header) in [(&one, there), (&other, back)] {
        let shutdown = Header {
            op: Op::Shutdown,
            flags: ShutdownFlags::all().bits(),
            ..header
        };
        guest.send(shutdown, &[]);
    }
    assert_eq!(other.ops(), [Op::Shutdown, Op::Rst]);
    assert_eq!(one.ops(), [Op::Rst]);
    assert_eq!(
        [one.member.connections(), other.member.connections()],
        [0; 2]
    );
}

/// They take no credit, yet each costs the receiver something until it is read.
#[test]
fn empty_messages_are_bounded_in_number() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, back) = house.connect_type(&one, &other, SocketType::Seqpacket);
    other.post(10_000);
    one.post(10_000);
    let says = |op, header| Header { op, ..header };
    // Answers every question, and tells how many messages came.
    let answer = || {
        let ops = other.ops();
        let count = |wanted| ops.iter().filter(|op| **op == wanted).count();
        for _ in 0..count(Op::CreditRequest) {
            other.send(says(Op::CreditUpdate, back), &[]);
        }
        count(Op::Rw)
    };
    let mut came = 0;
    for _ in 0..500 {
        let flags = RwFlags::EOM.bits();
        one.send(Header { flags, ..there }, b"");
        one.send(says(Op::CreditRequest, there), &[]);
        came += answer();
    }
    assert_eq!(came, 64, "one for each KiB of the receiver's buffer");
    // Linux tells of each message that is read.
    for _ in 0..10 {
        other.send(says(Op::CreditUpdate, back), &[]);
        came += answer();
    }
    assert_eq!(came, 74);
}

#[test]
fn a_close_does_not_wait_behind_what_nobody_reads() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, back) = house.connect(&one, &other);
    let small = |op, flags| Header {
        op,
        flags,
        buf_alloc: 1024,
        ..back
    };
    other.send(small(Op::CreditUpdate, 0), &[]);
    one.send(there, &pattern(10_000));
    assert_eq!(other.ops(), [Op::Rw, Op::CreditRequest]);
    other.send(small(Op::Shutdown, ShutdownFlags::all().bits()), &[]);
    assert_eq!(one.member.charged(), 0);
    one.send(there, b"not known yet");
    one.send(
        Header {
            op: Op::Rst,
            ..there
        },
        &[],
    );
    assert_eq!(other.ops(), [Op::Rst]);
}

#[test]
fn an_answer_comes_before_what_follows_it_however_short_the_connection() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let there = Header {
        buf_alloc: BUF_ALLOC,
        ..Header::new(Op::Request, one.addr(1), other.addr(2))
    };
    house.request(&one, &there).unwrap();
    one.port.queue.lock().unwrap().buffers = 0;
    let back = |op| Header::new(op, other.addr(2), one.addr(1));
    other.send(back(Op::Response), &[]);
    other.send(back(Op::Rw), b"too late");
    other.send(back(Op::Rst), &[]);
    one.post(10);
    assert_eq!(one.ops(), [Op::Response, Op::Rw, Op::Rst]);
}

#[test]
fn a_guest_that_has_left_takes_no_connection_that_was_routed_before() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let request = Header::new(Op::Request, one.addr(1), other.addr(2));
    let route = Siblings(Arc::clone(&house.switch)).route(&Request::new(one.cid, &request));
    let Route::Member(target) = route else {
        panic!("{route:?}")
    };
    house.switch.leave(other.cid, house.now);
    let answer = one.member.open(&request, &target, house.now);
    assert_eq!(answer, Err(Refusal::NotUp));
    assert_eq!((one.member.connections(), target.connections()), (0, 0));
}

#[test]
fn what_is_taken_back_waits_no_longer() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    other.port.queue.lock().unwrap().buffers = 0;
    let to = other.addr(2);
    house
        .request(&one, &Header::new(Op::Request, one.addr(1), to))
        .unwrap();
    assert!(other.member.is_waiting());
    one.send(Header::new(Op::Rst, one.addr(1), to), &[]);
    assert!(!other.member.is_waiting());
}

#[test]
fn a_connection_with_much_to_deliver_leaves_buffers_to_others() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let two = house.guest(5, &["a"]);
    let (much, _) = house.connect(&one, &other);
    let (little, _) = house.connect(&two, &other);
    other.port.queue.lock().unwrap().buffers = 0;
    one.send(much, &pattern(20_000));
    two.send(little, b"me too");
    other.post(1);
    other.post(1);
    let sources: Vec<_> = other
        .received()
        .iter()
        .map(|(header, _)| header.src)
        .collect();
    assert_eq!(sources, [much.src, little.src]);
}

#[test]
fn whatever_comes_on_a_connection_that_is_ending_is_dropped() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, back) = house.connect(&one, &other);
    one.port.queue.lock().unwrap().buffers = 0;
    other.send(
        Header {
            op: Op::Rst,
            ..back
        },
        &[],
    );
    let socket_type = SocketType::Seqpacket;
    one.send(
        Header {
            socket_type,
            ..there
        },
        b"of another type",
    );
    one.send(there, b"of the right one");
    one.post(10);
    assert_eq!(one.ops(), [Op::Rst]);
    assert_eq!(other.ops(), []);
}

#[test]
fn a_request_without_answer_ends_for_both() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    house
        .request(&one, &Header::new(Op::Request, one.addr(1), other.addr(2)))
        .unwrap();
    let due = one.member.next_timeout().unwrap();
    assert_eq!(due - house.now, Duration::from_secs(10));
    one.member.handle_timeouts(due);
    assert_eq!(one.ops(), [Op::Rst]);
    assert_eq!(other.ops(), [Op::Request, Op::Rst]);
    assert_eq!(
        (one.member.connections(), other.member.connections()),
        (0, 0)
    );
}

#[test]
fn messages_keep_their_bounds_across_buffers_and_waiting() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, _) = house.connect_type(&one, &other, SocketType::Seqpacket);
    other.port.queue.lock().unwrap().buffers = 1;
    let (eom, both) = (RwFlags::EOM.bits(), RwFlags::all().bits());
    one.send(
        Header {
            flags: eom,
            ..there
        },
        &pattern(5000),
    );
    one.send(Header { flags: 0, ..there }, b"two ");
    one.send(
        Header {
            flags: both,
            ..there
        },
        b"halves",
    );
    other.post(10);
    let received: Vec<_> = other
        .received()
        .into_iter()
        .map(|(header, bytes)| (bytes.len(), header.flags))
        .collect();
    assert_eq!(received, [(3732, 0), (1268, eom), (10, both)]);
}

/// Its sender waits for credit for the whole of the next message, however much there is.
#[test]
fn a_receiver_of_messages_that_tells_only_when_asked_is_asked() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, back) = house.connect_type(&one, &other, SocketType::Seqpacket);
    other.post(1000);
    one.post(1000);
    let message = |len: usize| {
        let flags = RwFlags::EOM.bits();
        one.send(Header { flags, ..there }, &pattern(len));
    };
    let requests = || {
        let ops = other.ops();
        ops.iter().filter(|op| **op == Op::CreditRequest).count()
    };
    message(20_000);
    assert_eq!(requests(), 0, "it may tell by itself");
    let mut now = house.now + Duration::from_millis(20);
    other.member.handle_timeouts(now);
    assert_eq!(requests(), 1);
    let answer = |fwd_cnt| {
        let op = Op::CreditUpdate;
        other.send(
            Header {
                op,
                fwd_cnt,
                ..back
            },
            &[],
        );
    };
    answer(0);
    assert_eq!(requests(), 0, "it has read nothing");
    for _ in 0..20 {
        now += Duration::from_secs(2);
        other.member.handle_timeouts(now);
        assert_eq!(requests(), 1);
    }
    answer(20_000);
    other.member.handle_timeouts(now + Duration::from_secs(10));
    assert_eq!(requests(), 0, "nothing is unread");
    message(40_000);
    assert_eq!(requests(), 1, "more than half is unread");
}

/// Also when the question has not gone out yet for want of a buffer.
#[test]
fn what_a_guest_has_sent_before_it_leaves_is_asked_room_for() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, back) = house.connect_type(&one, &other, SocketType::Seqpacket);
    let packets = BUF_ALLOC / 1024;
    // One for the question when half of the packets are unread.
    other.port.queue.lock().unwrap().buffers = packets as usize + 1;
    let flags = RwFlags::EOM.bits();
    for _ in 0..packets + 10 {
        one.send(Header { flags, ..there }, &pattern(15));
    }
    let (op, flags) = (Op::Shutdown, ShutdownFlags::SEND.bits());
    one.send(Header { op, flags, ..there }, &[]);
    one.member.reset(house.now);
    assert_eq!(other.bytes().len() as u32, 15 * packets);
    other.post(1000);
    assert_eq!(other.ops(), [Op::CreditRequest]);
    let (op, fwd_cnt) = (Op::CreditUpdate, 15 * packets);
    other.send(
        Header {
            op,
            fwd_cnt,
            ..back
        },
        &[],
    );
    assert_eq!(other.bytes().len(), 150);
}

/// A receiver can't read a part of a message.
#[test]
fn a_message_arrives_in_however_many_packets_it_takes() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, _) = house.connect_type(&one, &other, SocketType::Seqpacket);
    other.port.queue.lock().unwrap().room = 100;
    other.post(10_000);
    let content = pattern(60_000);
    let (some, rest) = content.split_at(30_000);
    let flags = RwFlags::EOM.bits();
    one.send(there, some);
    one.send(Header { flags, ..there }, rest);
    one.send(Header { flags, ..there }, b"the next");
    let mut packets = other.received();
    packets.retain(|(header, _)| header.op == Op::Rw);
    assert_eq!(packets.len(), 600);
    assert_eq!(packets.last().unwrap().0.flags, flags);
    let bytes: Vec<u8> = packets.into_iter().flat_map(|(_, bytes)| bytes).collect();
    assert!(bytes == content);
}

#[test]
fn a_message_in_tiny_pieces_arrives_in_few_packets() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, _) = house.connect_type(&one, &other, SocketType::Seqpacket);
    other.post(100_000);
    let content = pattern(60_000);
    for byte in &content {
        one.send(there, &[*byte]);
    }
    assert!(other.ops().len() <= 2 * 64);
    let flags = RwFlags::EOM.bits();
    one.send(Header { flags, ..there }, b"!");
    let (last, _) = other.received().pop().unwrap();
    assert_eq!(last.flags, flags);
}

#[test]
fn a_change_of_groups_ends_what_they_no_longer_allow() {
    let house = House::new();
    let one = house.guest(3, &["a", "b"]);
    let (in_a, in_b) = (house.guest(4, &["a"]), house.guest(5, &["b"]));
    house.connect(&one, &in_a);
    let (there, _) = house.connect(&one, &in_b);
    assert!(
        house
            .switch
            .set_groups(one.cid, Groups::from(["b".to_owned()]), house.now)
    );
    assert_eq!(in_a.ops(), [Op::Rst]);
    assert_eq!(one.ops(), [Op::Rst]);
    one.send(there, b"x");
    assert_eq!(in_b.bytes(), b"x");
}

#[test]
fn a_request_for_what_the_guest_has_resets_the_old_and_opens_the_new() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, _) = house.connect(&one, &other);
    house
        .request(
            &one,
            &Header {
                op: Op::Request,
                ..there
            },
        )
        .unwrap();
    assert_eq!(other.ops(), [Op::Rst, Op::Request]);
    assert_eq!(one.ops(), []);
}

#[test]
fn one_that_does_not_refill_slows_nobody_else() {
    let house = House::new();
    let one = house.guest(3, &["a"]);
    let (stalled, lively) = (house.guest(4, &["a"]), house.guest(5, &["a"]));
    let (to_stalled, _) = house.connect(&one, &stalled);
    let (to_lively, _) = house.connect(&one, &lively);
    stalled.port.queue.lock().unwrap().buffers = 0;
    for _ in 0..6 {
        one.send(to_stalled, &pattern(10_000));
        one.send(to_lively, &pattern(10_000));
    }
    assert_eq!(lively.bytes().len(), 60_000);
}

#[test]
fn a_cid_is_one_guests() {
    let house = House::new();
    let one = house.guest(3, &["a"]);
    assert_eq!(one.member.cid(), one.cid.cid());
    let again = house
        .switch
        .join(one.cid, Groups::new(), Arc::<TestPort>::clone(&one.port));
    assert_eq!(again.unwrap_err().0, one.cid);
}

#[test]
fn payload_before_a_close_outlives_the_wait_for_its_answer() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, _) = house.connect(&one, &other);
    other.port.queue.lock().unwrap().buffers = 0;
    one.send(there, b"goodbye");
    let flags = ShutdownFlags::all().bits();
    one.send(
        Header {
            op: Op::Shutdown,
            flags,
            ..there
        },
        &[],
    );
    let due = one.member.next_timeout().unwrap();
    one.member.handle_timeouts(due);
    assert_eq!(one.ops(), [Op::Rst]);
    other.post(10);
    assert_eq!(other.bytes(), b"goodbye");
}

#[test]
fn a_closed_connection_that_nobody_reads_is_given_up_in_the_end() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, _) = house.connect(&one, &other);
    other.port.queue.lock().unwrap().buffers = 0;
    one.send(there, b"goodbye");
    one.send(
        Header {
            op: Op::Rst,
            ..there
        },
        &[],
    );
    assert!(one.member.charged() > 0);
    let due = other.member.next_timeout().unwrap();
    other.member.handle_timeouts(due);
    assert_eq!(one.member.charged(), 0);
    assert_eq!(other.member.next_timeout(), None);
    other.post(10);
    assert_eq!(other.ops(), [Op::Rst]);
}

#[test]
fn a_guest_pays_for_the_connections_it_opens_and_not_for_those_it_is_asked_for() {
    let house = House::with_limits(Limits {
        connections: 2,
        ..Limits::default()
    });
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let request =
        |from: &Guest, to: &Guest, port| Header::new(Op::Request, from.addr(port), to.addr(2));
    for port in 10..12 {
        assert_eq!(house.request(&one, &request(&one, &other, port)), Ok(()));
    }
    let third = house.request(&one, &request(&one, &other, 12));
    assert_eq!(third, Err(Refusal::TooManyConnections));
    assert_eq!(house.request(&other, &request(&other, &one, 10)), Ok(()));
}

#[test]
fn a_packet_left_over_from_before_reaches_no_guest_that_asks_anew() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    house
        .request(&one, &Header::new(Op::Request, one.addr(1), other.addr(2)))
        .unwrap();
    let late = Header {
        len: 1,
        ..Header::new(Op::Rw, other.addr(2), one.addr(1))
    };
    one.member
        .take_late(&Packet::new(late, Payload::from_bytes(b"x")), house.now);
    assert_eq!(one.ops(), []);
}

#[test]
fn no_router_connects_guests_that_share_no_group() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["b"]));
    let request = Header::new(Op::Request, one.addr(1), other.addr(2));
    assert_eq!(
        one.member.open(&request, &other.member, house.now),
        Err(Refusal::NoSharedGroup)
    );
    assert_eq!(other.ops(), []);
    assert_eq!(
        (one.member.connections(), other.member.connections()),
        (0, 0)
    );
}

#[test]
fn both_ends_list_a_connection_with_what_went_each_way() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    let (there, back) = house.connect(&one, &other);
    one.send(there, &[1; 100]);
    other.send(back, &[2; 30]);
    let list = one.member.list();
    assert_eq!(list, other.member.list());
    let [connection] = list.as_slice() else {
        panic!("{list:?}")
    };
    assert_eq!((connection.from, connection.to), (there.src, there.dst));
    assert_eq!((connection.sent, connection.received), (100, 30));
    assert_eq!(connection.state, ConnectionState::Established);
}

#[test]
fn a_killed_connection_ends_for_both_and_no_other_does() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    house.connect(&one, &other);
    let id = one.member.list()[0].id;
    let ends = (one.addr(7), other.addr(8));
    let (stays, _) = house.connect_ends(ends.0, ends.1, (&one, &other), SocketType::Stream);
    assert!(other.member.kill(id, house.now));
    assert_eq!((one.ops(), other.ops()), (vec![Op::Rst], vec![Op::Rst]));
    assert!(!one.member.kill(id, house.now), "it is over");
    one.send(stays, b"x");
    assert_eq!(other.bytes(), b"x");
}

#[test]
fn a_switch_that_is_dropped_leaves_no_member_behind() {
    let house = House::new();
    let (one, other) = (house.guest(3, &["a"]), house.guest(4, &["a"]));
    house.connect(&one, &other);
    let members = [&one, &other].map(|guest| Arc::downgrade(&guest.member));
    drop((house, one, other));
    for member in members {
        assert_eq!(member.strong_count(), 0);
    }
}
