//! A guest: its driver, its applications, and what it makes of what arrives.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vsock_packet::{GuestCid, Header, Op, RwFlags, ShutdownFlags, SocketType, VsockAddr};
use vsock_router::{Groups, Member};
use vsock_testkit::Random;

use crate::character::{Character, Misbehaviour};
use crate::ledger::{Ledger, Way};
use crate::port::SimPort;
use crate::socket::{Socket, State};

/// The most a guest is ever told of another's buffer, in bytes.
const MAX_WINDOW: u32 = 4 << 20;
/// How long Linux waits for the RST that ends a close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(8);
/// Packets that a driver has in its TX ring before applications wait.
const TX_RING: usize = 64;

/// Ports from here on are a guest's own.
const FIRST_PORT: u32 = 1000;

/// What a message at least takes off what a socket has to send, in bytes.
const LEAST_COST: usize = 200;

/// A packet in the TX ring, whose payload belongs at this place of its way.
pub(crate) struct Outgoing {
    pub(crate) header: Header,
    pub(crate) at: u64,
}

pub(crate) struct Guest {
    pub(crate) cid: GuestCid,
    pub(crate) character: Character,
    pub(crate) groups: Groups,
    pub(crate) member: Arc<Member>,
    pub(crate) port: Arc<SimPort>,
    pub(crate) sockets: BTreeMap<Way, Socket>,
    pub(crate) tx: VecDeque<Outgoing>,
    pub(crate) paused: bool,
    /// What [`Member::next_timeout`] said when it was asked last.
    pub(crate) deadline: Option<Instant>,
    next_port: u32,
    /// The ways of connections that the guest has ended or lost.
    ended: BTreeSet<Way>,
}

impl Guest {
    pub(crate) fn new(
        cid: GuestCid,
        character: Character,
        groups: Groups,
        member: Arc<Member>,
        port: Arc<SimPort>,
    ) -> Self {
        Self {
            cid,
            character,
            groups,
            member,
            port,
            sockets: BTreeMap::new(),
            tx: VecDeque::new(),
            paused: false,
            deadline: None,
            next_port: FIRST_PORT,
            ended: BTreeSet::new(),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.port.up.load(Ordering::Relaxed)
    }

    /// The driver starts anew.
    pub(crate) fn forget_all(&mut self) {
        self.port.with(|queue| {
            queue.buffers = 0;
            queue.received.clear();
        });
        self.tx.clear();
        self.ended.extend(self.sockets.keys());
        self.sockets.clear();
        self.next_port = FIRST_PORT;
    }

    /// Buffers that were used and could be posted again.
    pub(crate) fn refillable(&self) -> usize {
        let (posted, unseen) = self
            .port
            .with(|queue| (queue.buffers, queue.received.len()));
        self.character.ring.saturating_sub(posted + unseen)
    }

    /// Whether its driver has just started.
    pub(crate) fn is_fresh(&self) -> bool {
        self.sockets.is_empty() && self.tx.is_empty() && self.port.with(|queue| queue.buffers == 0)
    }

    /// Asks for a connection, seldom from a port that was in use.
    pub(crate) fn connect(&mut self, to: VsockAddr, ledger: &mut Ledger, random: &mut Random) {
        // What is on its way to the guest would look like the new connection's.
        let quiet = self.tx.is_empty() && self.port.with(|queue| queue.received.is_empty());
        let again = self.ended.first().filter(|_| quiet && random.chance(10));
        let out = again.copied().unwrap_or_else(|| {
            self.next_port += 1;
            Way {
                from: VsockAddr::new(self.cid, self.next_port),
                to,
            }
        });
        if self.ended.remove(&out) {
            ledger.reuse(out);
        }
        let seqpacket = self.character.seqpacket && random.chance(30);
        let mut socket = self.socket(out, seqpacket, random);
        let header = socket.header(Op::Request);
        self.sockets.insert(out, socket);
        self.tx.push_back(Outgoing { header, at: 0 });
    }

    fn socket(&self, out: Way, seqpacket: bool, random: &mut Random) -> Socket {
        let socket_type = match seqpacket {
            true => SocketType::Seqpacket,
            false => SocketType::Stream,
        };
        let mut socket = Socket::new(out.from, out.to, socket_type, self.character.buf_alloc);
        socket.left = if random.chance(20) {
            random.below(400_000)
        } else {
            random.size(60_000)
        };
        socket.patient = random.chance(80);
        socket
    }

    /// Takes up to `count` packets from the RX ring. `false` when there is none.
    pub(crate) fn receive(
        &mut self,
        count: usize,
        ledger: &mut Ledger,
        random: &mut Random,
    ) -> bool {
        let packets: Vec<_> = self.port.with(|queue| {
            let count = count.min(queue.received.len());
            queue.received.drain(..count).collect()
        });
        for (header, bytes) in &packets {
            self.handle(header, bytes, ledger, random);
        }
        !packets.is_empty()
    }

    fn handle(&mut self, header: &Header, bytes: &[u8], ledger: &mut Ledger, random: &mut Random) {
        assert_eq!(header.dst.cid, self.cid.cid(), "{header} is another's");
        assert!(
            header.buf_alloc <= MAX_WINDOW,
            "{header}: too large a window"
        );
        let out = Way {
            from: header.dst,
            to: header.src,
        };
        let back = out.back();
        let consistent = self.character.is_consistent();
        let Some(socket) = self.sockets.get_mut(&out) else {
            match header.op {
                Op::Request => self.requested(header, out, ledger, random),
                Op::Rst => (),
                _ => {
                    let known = self.ended.contains(&out) || !consistent;
                    assert!(known, "{header} is of no connection");
                    self.say_rst(header, ledger);
                }
            }
            return;
        };
        if header.op == Op::Rst {
            let both_closed = ledger.of(out).closed && ledger.of(back).closed;
            let sent = ledger.of(back);
            let asked = socket.state == State::Connecting;
            let known = sent.rst || sent.excused || asked || both_closed;
            assert!(known || sent.reused, "{header} without a reason");
            if sent.rst && sent.whole && !sent.excused && socket.state == State::Open {
                socket.expect_whole(sent, "RST");
            }
            self.end(out);
            return;
        }
        if socket.state != State::Connecting || header.op == Op::Response {
            socket.learn(header);
        }
        match (socket.state, header.op) {
            (State::Connecting, Op::Response) => socket.state = State::Open,
            (State::Closing(_), _) => (),
            (State::Open, Op::Rw) => {
                socket.arrived(header, bytes, ledger.of(back), consistent);
                let most = (self.character.buf_alloc / 1024).clamp(1, 4096) as usize;
                let told_more = self.character.resizes || !consistent;
                let unread = socket.unread_with_bytes();
                assert!(
                    unread <= most || told_more,
                    "{header}: {unread} packets unread"
                );
            }
            (State::Open, Op::CreditRequest) => {
                if !self.character.does(Misbehaviour::NeverAnswers) {
                    self.say(out, Op::CreditUpdate, 0);
                }
            }
            (State::Open, Op::CreditUpdate) => (),
            (State::Open, Op::Shutdown) => {
                socket.peer_shutdown |= header.shutdown_flags();
                if consistent && socket.peer_shutdown.contains(ShutdownFlags::SEND) {
                    socket.expect_whole(ledger.of(back), "SHUTDOWN");
                }
            }
            (state, _) => {
                let odd = !consistent || ledger.of(back).reused;
                assert!(odd, "{header} when {state:?}");
            }
        }
    }

    fn requested(&mut self, header: &Header, out: Way, ledger: &mut Ledger, random: &mut Random) {
        let seqpacket = header.socket_type == SocketType::Seqpacket;
        assert!(
            self.character.seqpacket || !seqpacket,
            "{header}: not negotiated"
        );
        if self.character.does(Misbehaviour::NeverAnswers) {
            return;
        }
        if random.chance(10) {
            return self.say_rst(header, ledger);
        }
        let mut socket = self.socket(out, seqpacket, random);
        socket.state = State::Open;
        socket.learn(header);
        self.ended.remove(&out);
        self.sockets.insert(out, socket);
        self.say(out, Op::Response, 0);
    }

    fn say_rst(&mut self, to: &Header, ledger: &mut Ledger) {
        let rst = to.to_raw().rst().map(|raw| Header::parse(&raw));
        if let Some(Ok(header)) = rst {
            let way = Way {
                from: header.src,
                to: header.dst,
            };
            ledger.of(way).rst = true;
            self.tx.push_back(Outgoing { header, at: 0 });
        }
    }

    fn say(&mut self, out: Way, op: Op, flags: u32) {
        if let Some(socket) = self.sockets.get_mut(&out) {
            let header = Header {
                flags,
                ..socket.header(op)
            };
            self.tx.push_back(Outgoing { header, at: 0 });
        }
    }

    fn end(&mut self, out: Way) {
        self.sockets.remove(&out);
        self.ended.insert(out);
    }

    /// Has an application do something with one of its sockets, and as much of it as it
    /// can if it is `eager`. `true` when something was done.
    pub(crate) fn work(
        &mut self,
        out: Way,
        eager: bool,
        ledger: &mut Ledger,
        random: &mut Random,
        now: Instant,
    ) -> bool {
        let mut done = false;
        if eager || random.chance(50) {
            let max = if eager {
                usize::MAX
            } else {
                random.size(100_000)
            };
            done |= self.read(out, max);
        }
        if eager || random.chance(50) {
            let max = if eager { 65_536 } else { random.size(65_536) };
            done |= self.write(out, max, ledger, random);
        }
        if self.character.resizes && random.chance(10) {
            let size = random.size(300_000) as u32;
            if let Some(socket) = self.sockets.get_mut(&out) {
                socket.buf_alloc = size.max(socket.buf_alloc / 4).max(512);
            }
        }
        done | self.conclude(out, ledger, random, now)
    }

    fn read(&mut self, out: Way, max: usize) -> bool {
        let Some(socket) = self.sockets.get_mut(&out) else {
            return false;
        };
        if self.character.does(Misbehaviour::NeverReads) || !socket.read(max, &self.character) {
            return false;
        }
        if socket.state == State::Open && socket.update_is_due(&self.character) {
            self.say(out, Op::CreditUpdate, 0);
        }
        true
    }

    /// Sends one packet of at most `max` bytes.
    fn write(&mut self, out: Way, max: usize, ledger: &mut Ledger, random: &mut Random) -> bool {
        let Some(socket) = self.sockets.get_mut(&out) else {
            return false;
        };
        if !socket.may_send() || socket.left == 0 || self.tx.len() >= TX_RING {
            return false;
        }
        let credit = match self.character.does(Misbehaviour::ExceedsCredit) {
            true if random.chance(10) => usize::MAX,
            _ => socket.credit(&self.character),
        };
        let mut flags = RwFlags::empty();
        let mut len = socket.left.min(max).min(credit);
        if socket.socket_type == SocketType::Seqpacket {
            if socket.message_left == 0 {
                let most = (socket.peer_buf_alloc as usize / 2).min(40_000);
                socket.message_left = random.size(most.min(socket.left));
            }
            len = len.min(socket.message_left);
            if len == socket.message_left {
                flags = random.pick(&[RwFlags::EOM, RwFlags::all()]);
            }
        }
        if len == 0 && flags.is_empty() {
            return false;
        }
        let header = Header {
            len: len as u32,
            flags: flags.bits(),
            ..socket.header(Op::Rw)
        };
        let at = socket.sent;
        self.tx.push_back(Outgoing { header, at });
        socket.sent += len as u64;
        socket.message_left = socket.message_left.saturating_sub(len);
        let ends_message = !flags.is_empty();
        let cost = if ends_message {
            len.max(LEAST_COST)
        } else {
            len
        };
        socket.left = socket.left.saturating_sub(cost);
        let sent = ledger.of(out);
        sent.bytes = socket.sent;
        if !flags.is_empty() {
            sent.ends.push((at + len as u64, flags.is_all()));
        }
        true
    }

    /// Ends what an application has done with.
    fn conclude(
        &mut self,
        out: Way,
        ledger: &mut Ledger,
        random: &mut Random,
        now: Instant,
    ) -> bool {
        let Some(socket) = self.sockets.get_mut(&out) else {
            return false;
        };
        if socket.state != State::Open || self.character.does(Misbehaviour::NeverAnswers) {
            return false;
        }
        let peer_ended = socket.peer_shutdown.contains(ShutdownFlags::SEND);
        let heard_all = peer_ended && socket.unread() == 0;
        let over = socket.peer_shutdown.is_all() && heard_all;
        let said_all = socket.left == 0;
        let may_close = said_all && (heard_all || !socket.patient);
        let half = said_all && !socket.own_shutdown.contains(ShutdownFlags::SEND);
        if said_all {
            ledger.of(out).whole = true;
        }
        if over || (may_close && self.character.closes_by_rst) {
            self.say(out, Op::Rst, 0);
            ledger.of(out).rst = true;
            self.end(out);
        } else if may_close {
            socket.state = State::Closing(now);
            ledger.of(out).closed = true;
            self.say(out, Op::Shutdown, ShutdownFlags::all().bits());
        } else if half && random.chance(50) {
            socket.own_shutdown |= ShutdownFlags::SEND;
            self.say(out, Op::Shutdown, ShutdownFlags::SEND.bits());
        } else {
            return half;
        }
        true
    }

    /// When the driver has waited long enough for the RST that ends a close.
    pub(crate) fn close_deadline(&self) -> Option<Instant> {
        let since = |socket: &Socket| match socket.state {
            State::Closing(since) => Some(since + CLOSE_TIMEOUT),
            _ => None,
        };
        self.sockets.values().filter_map(since).min()
    }

    pub(crate) fn expire(&mut self, ledger: &mut Ledger, now: Instant) {
        while self.close_deadline().is_some_and(|at| at <= now) {
            let due = |socket: &Socket| match socket.state {
                State::Closing(since) => since + CLOSE_TIMEOUT <= now,
                _ => false,
            };
            let out = self
                .sockets
                .values()
                .find(|socket| due(socket))
                .map(|s| s.out);
            if let Some(out) = out {
                self.say(out, Op::Rst, 0);
                ledger.of(out).rst = true;
                self.end(out);
            }
        }
    }
}
