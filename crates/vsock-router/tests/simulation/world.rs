//! The house: guests, their devices, the switch, and chance.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use vsock_packet::{Features, GuestCid, Header, Op, Payload, VsockAddr};
use vsock_router::Switch;
use vsock_router::{Groups, Limits, Member, Packet, Refusal, Request, Route, Router, Siblings};
use vsock_testkit::Random;

use crate::character::{Character, Misbehaviour};
use crate::guest::{Guest, Outgoing};
use crate::ledger::{Ledger, Way};
use crate::port::SimPort;
use crate::socket::State;

/// How often nothing but time may pass before the house must be at rest.
const MAX_ROUNDS: usize = 3000;

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) now: Instant,
    pub(crate) ledger: Ledger,
    pub(crate) guests: Vec<Option<Guest>>,
    pub(crate) switch: Arc<Switch>,
    limits: Limits,
    /// The members of guests that have left.
    gone: Vec<Weak<Member>>,
    tells: bool,
    /// Everything that went through the switch, as one number.
    digest: u64,
}

impl World {
    pub(crate) fn new(seed: u64, tells: bool) -> Self {
        let mut random = Random::new(seed);
        let mut limits = Limits::default();
        if random.chance(10) {
            limits.connections = 1 + random.below(8);
            limits.backlog = 1000 + random.below(200_000);
        }
        let count = 2 + random.below(4);
        let mut world = Self {
            random,
            now: Instant::now(),
            ledger: Ledger::default(),
            guests: (0..count).map(|_| None).collect(),
            switch: Arc::new(Switch::new(limits)),
            limits,
            gone: Vec::new(),
            tells,
            digest: 0,
        };
        (0..count).for_each(|index| world.join(index));
        world
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        if self.tells {
            println!("{}", what());
        }
    }

    /// What has happened, as one number.
    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    fn note(&mut self, header: &Header) {
        for word in header.to_raw().as_bytes().chunks(4) {
            let word = word
                .iter()
                .fold(0, |word, byte| word << 8 | u64::from(*byte));
            self.digest = (self.digest ^ word).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn cid(index: usize) -> GuestCid {
        GuestCid::new(3 + index as u64).expect("not a reserved one")
    }

    fn groups(&mut self) -> Groups {
        let names: &[&str] = match self.random.below(10) {
            0 => &[],
            1 => &["b"],
            2 | 3 => &["a", "b"],
            _ => &["a"],
        };
        names.iter().map(ToString::to_string).collect()
    }

    fn join(&mut self, index: usize) {
        let (cid, groups) = (Self::cid(index), self.groups());
        let character = Character::random(&mut self.random);
        let port = Arc::new(SimPort::new(character.room));
        let member = self
            .switch
            .join(cid, groups.clone(), Arc::<SimPort>::clone(&port))
            .expect("the CID is free");
        if !character.seqpacket {
            member.set_features(Features::STREAM);
        }
        self.tell(|| format!("{cid} joins {groups:?}: {character:?}"));
        self.guests[index] = Some(Guest::new(cid, character, groups, member, port));
        self.refill(index, usize::MAX);
    }

    fn leave(&mut self, index: usize) {
        let cid = Self::cid(index);
        self.excuse(cid);
        if let Some(guest) = self.guests[index].take() {
            self.tell(|| format!("{cid} leaves"));
            self.gone.push(Arc::downgrade(&guest.member));
            self.switch.leave(cid, self.now);
        }
    }

    fn excuse(&mut self, cid: GuestCid) {
        let cid = cid.cid();
        self.ledger
            .excuse(|way| way.from.cid == cid || way.to.cid == cid);
    }

    /// The guest's driver starts anew.
    fn reset(&mut self, index: usize) {
        self.excuse(Self::cid(index));
        let now = self.now;
        if let Some(guest) = &mut self.guests[index] {
            guest.member.reset(now);
            guest.forget_all();
        }
        self.tell(|| format!("{} is reset", Self::cid(index)));
        self.refill(index, usize::MAX);
    }

    fn regroup(&mut self, index: usize) {
        let (cid, groups) = (Self::cid(index), self.groups());
        self.excuse(cid);
        if let Some(guest) = &mut self.guests[index] {
            guest.groups = groups.clone();
            self.tell(|| format!("{cid} moves to {groups:?}"));
            assert!(self.switch.set_groups(cid, groups, self.now));
        }
    }

    /// The guest's rings are stopped, or started where they were.
    fn set_paused(&mut self, index: usize, paused: bool) {
        if let Some(guest) = &mut self.guests[index]
            && guest.paused != paused
        {
            guest.paused = paused;
            let stopped = paused && self.random.chance(50);
            guest.port.up.store(!stopped, Ordering::Relaxed);
            self.tell(|| format!("{} paused: {paused}, stopped: {stopped}", Self::cid(index)));
            self.flush(index);
        }
    }

    /// The guest posts RX buffers.
    fn refill(&mut self, index: usize, count: usize) -> bool {
        let Some(guest) = &self.guests[index] else {
            return false;
        };
        let count = match guest.character.does(Misbehaviour::NeverRefills) {
            true if !guest.is_fresh() => 0,
            _ => guest.refillable().min(count),
        };
        guest.port.with(|queue| queue.buffers += count);
        self.flush(index);
        count > 0
    }

    /// What a device does after whatever else it does.
    fn flush(&mut self, index: usize) {
        if let Some(guest) = &mut self.guests[index] {
            guest.member.flush(self.now);
            guest.deadline = guest.member.next_timeout();
        }
    }

    /// The guest's device takes up to `count` packets from its TX ring.
    fn drain(&mut self, index: usize, count: usize) -> bool {
        let Some(guest) = &mut self.guests[index] else {
            return false;
        };
        let count = count.min(guest.tx.len());
        let taken: Vec<Outgoing> = guest.tx.drain(..count).collect();
        let member = Arc::clone(&guest.member);
        let mut batch = Vec::new();
        for Outgoing { header, at } in &taken {
            self.note(header);
            self.tell(|| format!("  {header} at {at}"));
            if header.op == Op::Request {
                member.send(&batch, self.now);
                batch.clear();
                self.open(index, &member, header);
            } else {
                let way = Way {
                    from: header.src,
                    to: header.dst,
                };
                let len = if header.op == Op::Rw {
                    header.len as usize
                } else {
                    0
                };
                let payload = Payload::from_bytes(way.bytes(*at, len));
                batch.push(Packet::new(*header, payload));
            }
        }
        member.send(&batch, self.now);
        self.flush(index);
        count > 0
    }

    fn open(&mut self, index: usize, member: &Arc<Member>, request: &Header) {
        let way = Way {
            from: request.src,
            to: request.dst,
        };
        let expected = self.expected(index, request);
        let fine = |guest: Option<&Guest>| guest.is_some_and(|guest| guest.character.is_honest());
        let honest = fine(self.guests[index].as_ref()) && fine(self.guest_at(request.dst));
        let small = self.limits != Limits::default();
        self.ledger.open(way, !honest || small);
        let asked = Request::new(Self::cid(index), request);
        let answer = match Siblings(Arc::clone(&self.switch)).route(&asked) {
            Route::Member(target) => member.open(request, &target, self.now),
            Route::Refuse(why) => Err(why),
            route => panic!("{route:?}"),
        };
        match (answer, expected) {
            (Ok(()), Ok(())) => (),
            (Err(Refusal::InUse), Ok(())) => assert!(self.ledger.of(way).reused, "{request}"),
            (Err(Refusal::TooManyConnections), Ok(())) => assert!(small, "{request}"),
            (answer, expected) => assert_eq!(answer, expected, "{request}"),
        }
        if let Err(why) = answer {
            self.tell(|| format!("    {why}"));
            self.refuse(index, member, request);
        }
    }

    /// A refusal is answered at once, if there is a buffer for it.
    fn refuse(&self, index: usize, member: &Member, request: &Header) {
        member.refuse(&request.to_raw());
        member.flush(self.now);
        if let Some(guest) = &self.guests[index]
            && guest.is_up()
            && !member.is_waiting()
        {
            let last = guest
                .port
                .with(|queue| queue.received.back().map(|(h, _)| *h));
            let last = last.expect("there was a buffer");
            assert_eq!((last.op, last.src), (Op::Rst, request.dst), "{request}");
        }
    }

    fn guest_at(&self, addr: VsockAddr) -> Option<&Guest> {
        self.guests
            .iter()
            .flatten()
            .find(|guest| guest.cid.cid() == addr.cid)
    }

    /// What the router is to say.
    fn expected(&self, index: usize, request: &Header) -> Result<(), Refusal> {
        let (Some(from), Some(to)) = (&self.guests[index], self.guest_at(request.dst)) else {
            return Err(Refusal::NoRoute);
        };
        if from.cid == to.cid || from.groups.is_disjoint(&to.groups) {
            return Err(Refusal::NoSharedGroup);
        }
        if !to.is_up() {
            return Err(Refusal::NotUp);
        }
        if !to.member.takes(request.socket_type) {
            return Err(Refusal::TypeNotSupported);
        }
        Ok(())
    }

    /// Time goes by.
    fn pass_time(&mut self, time: Duration) {
        self.now += time;
        let now = self.now;
        for index in 0..self.guests.len() {
            let Some(guest) = &mut self.guests[index] else {
                continue;
            };
            if guest.deadline.is_some_and(|at| at <= now) {
                guest.member.handle_timeouts(now);
                guest.deadline = guest.member.next_timeout();
            }
            if !guest.paused {
                guest.expire(&mut self.ledger, now);
            }
        }
    }

    /// Somebody to ask for a connection, seldom nobody.
    fn somewhere(&mut self) -> VsockAddr {
        let index = match self.random.chance(3) {
            true => 50,
            false => self.random.below(self.guests.len()),
        };
        VsockAddr::new(Self::cid(index), 1 + self.random.below(3) as u32)
    }

    /// Something happens.
    pub(crate) fn step(&mut self) {
        let index = self.random.below(self.guests.len());
        let chance = self.random.below(1000);
        match chance {
            0..4 => self.leave(index),
            4..8 => self.reset(index),
            8..12 => self.regroup(index),
            12..24 => self.set_paused(index, true),
            24..80 => self.set_paused(index, false),
            80..180 => {
                let time = Duration::from_micros(self.random.size(20_000) as u64);
                self.pass_time(time);
            }
            180..220 if self.guests[index].is_none() => self.join(index),
            _ => self.guest_step(index, chance),
        }
        self.check();
    }

    fn guest_step(&mut self, index: usize, chance: usize) {
        let to = self.somewhere();
        let Some(guest) = self.guests[index].as_mut().filter(|guest| !guest.paused) else {
            return;
        };
        let (ledger, random) = (&mut self.ledger, &mut self.random);
        match chance {
            180..280 if to.cid != guest.cid.cid() => guest.connect(to, ledger, random),
            180..280 => guest.misbehave(to, ledger, random),
            280..460 => {
                let count = random.size(64);
                guest.receive(count, ledger, random);
            }
            460..700 => {
                let ways: Vec<Way> = guest.sockets.keys().copied().collect();
                for way in ways {
                    guest.work(way, false, ledger, random, self.now);
                }
            }
            700..850 => {
                let count = random.size(64);
                self.drain(index, count);
            }
            _ => {
                let count = random.size(128);
                self.refill(index, count);
            }
        }
    }

    /// Whoever can do something does it, until nobody can; with `patience`, also after
    /// the time-outs that come within it.
    fn settle(&mut self, patience: Duration) {
        let end = self.now + patience;
        for _ in 0..MAX_ROUNDS {
            let mut busy = false;
            for index in 0..self.guests.len() {
                busy |= self.work(index);
                self.check();
            }
            if busy {
                continue;
            }
            match self.next_deadline() {
                Some(at) if at <= end => self.pass_time(at.saturating_duration_since(self.now)),
                _ => return,
            }
        }
        panic!("no rest in {MAX_ROUNDS} rounds");
    }

    fn next_deadline(&self) -> Option<Instant> {
        let guests = self.guests.iter().flatten();
        guests
            .flat_map(|guest| [guest.deadline, guest.close_deadline()])
            .flatten()
            .min()
    }

    /// A guest does all it can.
    fn work(&mut self, index: usize) -> bool {
        let Some(guest) = &mut self.guests[index] else {
            return false;
        };
        let (ledger, random) = (&mut self.ledger, &mut self.random);
        let mut busy = guest.receive(usize::MAX, ledger, random);
        let ways: Vec<Way> = guest.sockets.keys().copied().collect();
        for way in ways {
            busy |= guest.work(way, true, ledger, random, self.now);
        }
        busy |= self.drain(index, usize::MAX);
        busy | self.refill(index, usize::MAX)
    }

    /// What holds at any time.
    fn check(&mut self) {
        let most = self.limits.connections * self.guests.len();
        for guest in self.guests.iter_mut().flatten() {
            let (cid, member) = (guest.cid, &guest.member);
            if guest.port.woken.swap(false, Ordering::Relaxed) {
                guest.deadline = member.next_timeout();
            }
            assert!(member.charged() <= self.limits.backlog, "{cid}: backlog");
            // Each pays for those it has opened itself.
            assert!(member.connections() <= most, "{cid}: connections");
            let served = !member.is_waiting() || !guest.is_up();
            let buffers = guest.port.with(|queue| queue.buffers);
            assert!(
                served || buffers == 0,
                "{cid} waits beside {buffers} buffers"
            );
            let fair = guest.character.is_honest() && self.limits == Limits::default();
            let violations = member.counters().violations;
            let blamed = fair && violations > 0 && !self.ledger.has_reuse(cid.cid());
            assert!(!blamed, "{cid} is blamed");
        }
    }

    /// Everybody finishes what they have begun.
    pub(crate) fn finish(&mut self) {
        for index in 0..self.guests.len() {
            self.set_paused(index, false);
        }
        // No further than the time that all is well without: an empty message may take 20 ms,
        // where the receiver's buffer is for one packet.
        let patience = self.random.pick(&[3, 30]);
        self.tell(|| format!("all finish, within {patience} s"));
        self.settle(Duration::from_secs(patience));
        self.check_finished();
        for index in 0..self.guests.len() {
            if self.guests[index]
                .as_ref()
                .is_some_and(|guest| !guest.character.is_honest())
            {
                self.leave(index);
            }
        }
        self.settle(Duration::from_secs(30));
        self.check_empty();
    }

    /// Connections of honest guests have ended, whoever else misbehaves.
    fn check_finished(&mut self) {
        for guest in self.guests.iter().flatten() {
            for (way, socket) in &guest.sockets {
                // Two ends that close at once wait for each other's RST until Linux's timer.
                let closing = matches!(socket.state, State::Closing(_));
                let sent = self.ledger.of(*way);
                let excused = closing || sent.excused || sent.reused;
                let (state, left, unread) = (socket.state, socket.left, socket.unread());
                assert!(
                    excused,
                    "{way:?} stands still: {state:?}, {left} to send, {unread} packets unread"
                );
            }
        }
    }

    /// Nothing is left.
    fn check_empty(&self) {
        for guest in self.guests.iter().flatten() {
            let (cid, member) = (guest.cid, &guest.member);
            let open: Vec<_> = guest.sockets.keys().collect();
            assert!(open.is_empty(), "{cid} still has {open:?}");
            assert_eq!(member.connections(), 0, "{cid}");
            assert_eq!(member.charged(), 0, "{cid}");
            assert!(!member.is_waiting(), "{cid}");
            // What its device was last told to come for may be gone.
            if let Some(last) = member.next_timeout() {
                member.handle_timeouts(last);
            }
            assert_eq!(member.next_timeout(), None, "{cid}");
        }
        let kept = self
            .gone
            .iter()
            .filter(|gone| gone.strong_count() > 0)
            .count();
        assert_eq!(kept, 0, "members that have left");
    }
}
