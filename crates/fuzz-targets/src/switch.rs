//! Guests that send each other anything, through a switch of which guests come, go and
//! change groups.

mod port;

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use vsock_packet::{Cid, Features, GuestCid, Header, Op, Payload, SocketType, VsockAddr};
use vsock_router::{Limits, Member, Packet, Refusal, Request, Route, Router, Siblings, Switch};

use self::port::Queue;
use crate::packets::{AnyOp, Bytes};
use crate::steps::{Steps, trace};

const GUESTS: usize = 4;
const PORTS: u32 = 2;
/// The longest packet.
const MAX_LEN: u32 = 64 << 10;

#[derive(Arbitrary, Debug)]
struct Start {
    connections: u8,
    backlog: Bytes,
    /// The groups of each guest, a bit each.
    groups: [u8; GUESTS],
}

#[derive(Arbitrary, Debug)]
enum Step {
    Send(Who, Vec<Say>),
    /// The guest posts RX buffers with room for so many bytes of payload.
    Post {
        who: Who,
        buffers: u8,
        room: u16,
    },
    Up {
        who: Who,
        up: bool,
    },
    Groups {
        who: Who,
        groups: u8,
    },
    Leave(Who),
    Join {
        who: Who,
        groups: u8,
    },
    Reset(Who),
    Features {
        who: Who,
        features: u8,
    },
    Ruin {
        who: Who,
        own: u8,
        peer: To,
    },
    PassTime(u16),
    /// Time goes by up to the next deadline.
    Expire,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Who(u8);

/// A packet of a guest's.
#[derive(Arbitrary, Debug)]
struct Say {
    op: AnyOp,
    to: To,
    src_port: u8,
    is_seqpacket: bool,
    flags: u8,
    len: Bytes,
    buf_alloc: Bytes,
    fwd_cnt: Forwarded,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct To {
    guest: u8,
    port: u8,
}

#[derive(Arbitrary, Debug)]
enum Forwarded {
    /// All that came.
    All,
    Any(u32),
}

/// One direction of a connection: from, to.
type Way = (VsockAddr, VsockAddr);

struct Guest {
    member: Arc<Member>,
    queue: Arc<Queue>,
    groups: u8,
    /// Payload that came since the last REQUEST or RESPONSE, by whom it came from.
    received: HashMap<Way, u32>,
}

struct Scenario {
    switch: Arc<Switch>,
    limits: Limits,
    guests: [Option<Guest>; GUESTS],
    gone: Vec<Weak<Member>>,
    now: Instant,
    payload: Vec<u8>,
}

/// Runs an input.
pub(crate) fn run(data: &[u8]) {
    let mut steps = Steps::new(data);
    let Some(start) = steps.next::<Start>() else {
        return;
    };
    let mut scenario = Scenario::new(&start);
    while let Some(step) = steps.next::<Step>() {
        scenario.take(&step);
        scenario.check();
    }
    scenario.finish();
}

fn cid(index: usize) -> GuestCid {
    GuestCid::new(3 + index as u64).unwrap()
}

fn addr(to: To) -> VsockAddr {
    // One more than there are: a stranger.
    let index = usize::from(to.guest) % (GUESTS + 1);
    VsockAddr::new(cid(index), u32::from(to.port) % PORTS)
}

fn names(groups: u8) -> vsock_router::Groups {
    let bits = (0..3).filter(|bit| groups & (1 << bit) != 0);
    bits.map(|bit| format!("group {bit}")).collect()
}

/// The byte that all payload of a way is made of.
fn mark((from, to): Way) -> u8 {
    let number = |addr: VsockAddr| addr.cid.value() * PORTS + addr.port.value();
    (number(from) * 37 + number(to)) as u8
}

impl Scenario {
    fn new(start: &Start) -> Self {
        let limits = Limits {
            connections: usize::from(start.connections) % 8,
            backlog: (start.backlog.value() as usize) % (8 << 20),
        };
        let mut scenario = Self {
            switch: Arc::new(Switch::new(limits)),
            limits,
            guests: Default::default(),
            gone: Vec::new(),
            now: Instant::now(),
            payload: vec![0; MAX_LEN as usize],
        };
        for (index, groups) in start.groups.into_iter().enumerate() {
            scenario.join(index, groups);
        }
        scenario
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Send(who, ref packets) => self.send(who.index(), packets),
            Step::Post { who, buffers, room } => self.post(who.index(), buffers, room),
            Step::Up { who, up } => {
                if let Some(guest) = &self.guests[who.index()] {
                    guest.queue.set_up(up);
                    guest.member.flush(self.now);
                }
            }
            Step::Groups { who, groups } => self.set_groups(who.index(), groups),
            Step::Leave(who) => self.leave(who.index()),
            Step::Join { who, groups } => self.join(who.index(), groups),
            Step::Reset(who) => {
                if let Some(guest) = &mut self.guests[who.index()] {
                    guest.member.reset(self.now);
                    guest.received.clear();
                    assert_eq!(guest.member.connections(), 0);
                }
            }
            Step::Features { who, features } => {
                if let Some(guest) = &self.guests[who.index()] {
                    let features = Features::from_bits_truncate(features.into());
                    guest.member.set_features(features);
                }
            }
            Step::Ruin { who, own, peer } => self.ruin(who.index(), own, peer),
            Step::PassTime(millis) => self.pass_time(Duration::from_millis(millis.into())),
            Step::Expire => {
                let deadlines = self.guests.iter().flatten();
                let next = deadlines.filter_map(|guest| guest.member.next_timeout());
                if let Some(next) = next.min() {
                    self.pass_time(next.saturating_duration_since(self.now));
                }
            }
        }
    }

    fn join(&mut self, index: usize, groups: u8) {
        let queue = Arc::new(Queue::new(cid(index).cid()));
        let port = Arc::<Queue>::clone(&queue);
        let joined = self.switch.join(cid(index), names(groups), port);
        assert_eq!(joined.is_err(), self.guests[index].is_some());
        if let Ok(member) = joined {
            self.guests[index] = Some(Guest {
                member,
                queue,
                groups,
                received: HashMap::new(),
            });
        }
    }

    fn leave(&mut self, index: usize) {
        if let Some(guest) = self.guests[index].take() {
            self.gone.push(Arc::downgrade(&guest.member));
            self.switch.leave(cid(index), self.now);
            assert_eq!(guest.member.connections(), 0);
        }
    }

    fn set_groups(&mut self, index: usize, groups: u8) {
        self.collect();
        let changed = self.switch.set_groups(cid(index), names(groups), self.now);
        assert_eq!(changed, self.guests[index].is_some());
        if let Some(guest) = &mut self.guests[index] {
            guest.groups = groups;
        }
    }

    fn post(&mut self, index: usize, buffers: u8, room: u16) {
        if let Some(guest) = &self.guests[index] {
            guest.queue.post(buffers.into(), room.into());
            guest.member.flush(self.now);
        }
    }

    fn ruin(&mut self, index: usize, own: u8, peer: To) {
        if let Some(guest) = &self.guests[index] {
            let own = VsockAddr::new(cid(index), u32::from(own) % PORTS);
            guest.member.ruin(own, addr(peer), self.now);
        }
    }

    fn pass_time(&mut self, time: Duration) {
        self.now += time;
        for guest in self.guests.iter().flatten() {
            guest.member.handle_timeouts(self.now);
            let next = guest.member.next_timeout();
            assert!(next.is_none_or(|at| at > self.now), "it would spin");
        }
    }

    /// A guest's device takes packets from its TX ring.
    fn send(&mut self, index: usize, packets: &[Say]) {
        let Some(guest) = &self.guests[index] else {
            return;
        };
        let headers: Vec<Header> = packets
            .iter()
            .map(|packet| guest.header(index, packet))
            .collect();
        let member = Arc::clone(&guest.member);
        for run in headers.chunk_by(|one, other| one.op != Op::Request && other.op != Op::Request) {
            match run {
                [request] if request.op == Op::Request => self.open(index, &member, request),
                others => self.send_run(&member, others),
            }
        }
        member.flush(self.now);
    }

    fn send_run(&mut self, member: &Member, headers: &[Header]) {
        // One byte for all, so that they can share memory.
        let same = |one: &Header, other: &Header| mark(way(one)) == mark(way(other));
        for run in headers.chunk_by(same) {
            self.payload.fill(mark(way(&run[0])));
            let packet = |header: &Header| {
                let len = match header.op {
                    Op::Rw => header.len as usize,
                    _ => 0,
                };
                Packet::new(*header, Payload::from_bytes(&self.payload[..len]))
            };
            let packets: Vec<_> = run.iter().map(packet).collect();
            member.send(&packets, self.now);
        }
    }

    fn open(&self, index: usize, member: &Arc<Member>, request: &Header) {
        let router = Siblings(Arc::clone(&self.switch));
        let answer = match router.route(&Request::new(cid(index), request)) {
            Route::Member(target) => member.open(request, &target, self.now),
            Route::Refuse(why) => Err(why),
            route => panic!("{route:?}"),
        };
        trace(|| format!("  {request}: {answer:?}"));
        let expected = self.expected(index, request);
        match (answer, expected) {
            (Err(Refusal::InUse | Refusal::TooManyConnections), Ok(())) => (),
            (answer, expected) => assert_eq!(answer, expected, "{request}"),
        }
        if answer.is_err() {
            member.refuse(&request.to_raw());
        }
    }

    /// What the router is to say.
    fn expected(&self, index: usize, request: &Header) -> Result<(), Refusal> {
        let (from, to) = (&self.guests[index], self.guest_at(request.dst.cid));
        let (Some(from), Some(to)) = (from, to) else {
            return Err(Refusal::NoRoute);
        };
        if from.groups & to.groups & 7 == 0 || request.src.cid == request.dst.cid {
            return Err(Refusal::NoSharedGroup);
        }
        if !to.queue.is_receiving() {
            return Err(Refusal::NotUp);
        }
        match to.member.takes(request.socket_type) {
            true => Ok(()),
            false => Err(Refusal::TypeNotSupported),
        }
    }

    fn guest_at(&self, cid: Cid) -> Option<&Guest> {
        let index = (cid.value() as usize).checked_sub(3)?;
        self.guests.get(index)?.as_ref()
    }

    /// Looks at what has come.
    fn collect(&mut self) {
        for index in 0..GUESTS {
            let Some(guest) = &mut self.guests[index] else {
                continue;
            };
            let came = guest.queue.take();
            for (header, byte) in &came {
                let way = way(header);
                match header.op {
                    Op::Request | Op::Response => drop(guest.received.insert(way, 0)),
                    Op::Rw => *guest.received.entry(way).or_default() += header.len,
                    _ => (),
                }
                assert!(byte.is_none_or(|byte| byte == mark(way)), "{header}");
            }
            let groups = guest.groups;
            came.iter()
                .for_each(|(header, _)| self.check_allowed(groups, header));
        }
    }

    /// Nobody asks from beyond the groups.
    fn check_allowed(&self, groups: u8, header: &Header) {
        if header.op == Op::Request {
            let from = self.guest_at(header.src.cid);
            assert!(
                from.is_some_and(|from| from.groups & groups & 7 != 0),
                "{header}"
            );
        }
    }

    /// What holds at any time.
    fn check(&mut self) {
        self.collect();
        let most = self.limits.connections * GUESTS;
        for guest in self.guests.iter().flatten() {
            let member = &guest.member;
            let (charged, connections) = (member.charged(), member.connections());
            assert!(charged <= self.limits.backlog, "{charged} bytes wait");
            assert!(connections <= most, "{connections} connections");
            let served = !member.is_waiting() || !guest.queue.is_receiving();
            assert!(served || guest.queue.is_exhausted(), "it waits for nothing");
        }
    }

    /// Everybody leaves, and nothing is left of them.
    fn finish(&mut self) {
        for index in 0..GUESTS {
            self.leave(index);
        }
        let kept = self.gone.iter().filter(|gone| gone.strong_count() > 0);
        assert_eq!(kept.count(), 0, "members that have left");
    }
}

fn way(header: &Header) -> Way {
    (header.src, header.dst)
}

impl Guest {
    fn header(&self, index: usize, packet: &Say) -> Header {
        let own = VsockAddr::new(cid(index), u32::from(packet.src_port) % PORTS);
        let to = addr(packet.to);
        let fwd_cnt = match packet.fwd_cnt {
            Forwarded::All => self.received.get(&(to, own)).copied().unwrap_or(0),
            Forwarded::Any(count) => count,
        };
        Header {
            len: packet.len.value().min(MAX_LEN),
            socket_type: match packet.is_seqpacket {
                true => SocketType::Seqpacket,
                false => SocketType::Stream,
            },
            flags: packet.flags.into(),
            buf_alloc: packet.buf_alloc.value(),
            fwd_cnt,
            ..Header::new(packet.op.into(), own, to)
        }
    }
}

impl Who {
    fn index(self) -> usize {
        usize::from(self.0) % GUESTS
    }
}
