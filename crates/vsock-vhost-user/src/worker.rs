//! The worker of one guest: all that happens to the guest happens in its turns.
//!
//! ```text
//!             TX kick ──▶ drain_tx ──▶ host sockets, refusals
//!   host sockets ready ──▶ Connections, Door           │
//!       RX kick, timer ──────────────┐                 │
//!                                    ▼                 ▼
//!                                 fill_rx: what connections and refusals have for the guest
//! ```
//!
//! A turn never waits and is bounded: when there is more to do, the worker takes a bounded
//! number of them in a row, or wakes itself and lets others (the end of the session above all)
//! in between.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Instant;

use rustix::process::{Pid, getpid};
use tracing::{debug, info, warn};
use vhost_user_backend::VringT;
use virtio_queue::QueueT;
use vsock_connection::Timeouts;
use vsock_packet::{Features, GuestCid, Header};
use vsock_router::{Groups, JoinError, Member, Port, Refusal, Router, Switch};

use crate::config::GuestConfig;
use crate::connections::Connections;
use crate::cores::Cores;
use crate::counters::Counters;
use crate::door::{Caller, Door};
use crate::events::{ClientRefusal, Event, Hub};
use crate::fault::Fault;
use crate::gathered::{Gathered, Taken};
use crate::handle::Settings;
use crate::inbox::Inbox;
use crate::memory::SharedMemory;
use crate::patience::Patience;
use crate::poller::{Poller, Token};
use crate::rate::Bucket;
use crate::rx::RxPort;
use crate::seldom::Seldom;
use crate::status::{Gauges, GuestState};
use crate::stop::Stop;
use crate::tx::Drained;
use crate::vring::Vring;

/// Connections that may put something into the RX ring in one turn.
const FILLS_PER_TURN: usize = 256;

/// Index of each ring among the device's (virtio 1.4, §5.10.2).
pub(crate) const RX: usize = 0;
pub(crate) const TX: usize = 1;

/// The worker's state.
pub(crate) struct Worker {
    pub(crate) guest: GuestCid,
    pub(crate) router: Arc<dyn Router>,
    pub(crate) connections: Connections,
    /// The guest among its siblings.
    pub(crate) member: Arc<Member>,
    pub(crate) port: Arc<RxPort>,
    pub(crate) poller: Poller,
    /// The process whose sockets are no host applications' to this guest: this one, unless
    /// it may reach it.
    pub(crate) shuns: Option<Pid>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) gauges: Arc<Gauges>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) hub: Arc<Hub>,
    /// The time of this turn.
    pub(crate) now: Instant,
    /// Tells the time.
    pub(crate) clock: fn() -> Instant,
    door: Door,
    pub(crate) session: Option<Session>,
    callers: Vec<Caller>,
    /// Somebody has woken the worker, perhaps to ask something.
    woken: bool,
    /// Payload that the guest may send.
    pub(crate) sends: Bucket,
    /// Connections that it may ask for.
    pub(crate) requests: Bucket,
    refusals: Seldom,
    pub(crate) patience: Patience,
    pub(crate) cores: Cores,
    /// The guest was not asked to kick: the worker is going to look for itself.
    pub(crate) looks_for_tx: bool,
    /// Empty between passes over the TX ring, and kept for the next.
    pub(crate) taken: Vec<Taken>,
    pub(crate) gathered: Gathered,
}

/// Why a worker could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Join(#[from] JoinError),
}

/// A frontend is connected.
pub(crate) struct Session {
    memory: SharedMemory,
    rings: Option<[Vring; 2]>,
    /// Where a ring stood when it was stopped.
    stopped: [Option<Position>; 2],
    pub(crate) tx_is_pending: bool,
    stop: Arc<Stop>,
    /// Ended from this side; the frontend has yet to learn it.
    is_condemned: bool,
}

/// How far a ring was served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Position {
    next_avail: u16,
    next_used: u16,
}

impl Position {
    fn of(ring: &Vring) -> Self {
        let ring = ring.get_ref();
        let queue = ring.get_queue();
        Self {
            next_avail: queue.next_avail(),
            next_used: queue.next_used(),
        }
    }
}

/// Why a turn is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cause {
    /// The guest posted RX buffers, or RX was enabled.
    Rx,
    /// The guest sent something, or TX was enabled.
    Tx,
    /// Something behind the poller is ready.
    Host,
}

impl Worker {
    pub(crate) fn new(
        config: &GuestConfig,
        listener: UnixListener,
        router: Arc<dyn Router>,
        switch: &Switch,
        hub: &Arc<Hub>,
        cores: &Cores,
    ) -> Result<Self, SetupError> {
        let poller = Poller::new()?;
        let counters = Arc::new(Counters::default());
        let door = Door::new(
            config.cid,
            listener,
            poller.registry(),
            Arc::clone(&counters),
            Arc::clone(hub),
        )?;
        let connections = Connections::new(
            config.cid,
            Timeouts::default(),
            Arc::clone(&counters),
            Arc::clone(switch.recorder()),
            &poller,
        );
        let port = Arc::new(RxPort::new(poller.waker(), Arc::clone(&counters)));
        let groups = Groups::from_iter(config.groups.iter().cloned());
        let receiving: Arc<dyn Port> = Arc::<RxPort>::clone(&port);
        let member = switch.join(config.cid, groups, receiving)?;
        let inbox = Arc::new(Inbox::new(poller.waker()));
        let mut worker = Self {
            guest: config.cid,
            router,
            connections,
            member,
            port,
            door,
            poller,
            shuns: (!config.reaches_own_process).then(getpid),
            counters,
            gauges: Arc::default(),
            inbox,
            hub: Arc::clone(hub),
            now: Instant::now(),
            clock: Instant::now,
            session: None,
            callers: Vec::new(),
            woken: false,
            sends: Bucket::default(),
            requests: Bucket::default(),
            refusals: Seldom::default(),
            patience: Patience::new(config.busy_poll),
            looks_for_tx: false,
            taken: Vec::new(),
            gathered: Gathered::default(),
            cores: cores.clone(),
        };
        worker.set_limits(&Settings::of(config));
        Ok(worker)
    }

    /// What there is already stays as it is.
    pub(crate) fn set_limits(&mut self, settings: &Settings) {
        self.connections.set_limits(settings);
        self.door.set_max_handshakes(settings.max_handshakes);
        self.member.set_limits(settings.limits());
        self.sends = Bucket::new(settings.max_bytes_per_second, self.now);
        self.requests = Bucket::new(settings.max_requests_per_second, self.now);
    }

    /// What tells that there is something to do for [`Cause::Host`].
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }

    /// A frontend has connected; `stop` ends its session.
    pub(crate) fn begin_session(&mut self, memory: SharedMemory, stop: Arc<Stop>) {
        self.session = Some(Session {
            memory,
            rings: None,
            stopped: [None; 2],
            tx_is_pending: false,
            stop,
            is_condemned: false,
        });
    }

    /// The frontend is gone, and the guest with it.
    pub(crate) fn end_session(&mut self) {
        self.session = None;
        self.port.detach();
        self.set_state(GuestState::Waiting);
        self.end_connections();
    }

    /// Ends the session for what the VMM did, unless it is ending.
    pub(crate) fn condemn(&mut self, fault: Fault) {
        if let Some(session) = &mut self.session
            && !std::mem::replace(&mut session.is_condemned, true)
        {
            warn!(guest = %self.guest, %fault, "ending the session with the frontend");
            self.counters.faults.add(1);
            session.stop.end_session();
            self.port.close();
        }
    }

    /// Ends the session when a ring of it is at fault. `true` when it is ending.
    fn is_condemned(&mut self, rings: &[Vring]) -> bool {
        if let Some(fault) = rings.iter().find_map(|ring| ring.fault().get()) {
            self.condemn(fault);
        }
        self.session
            .as_ref()
            .is_none_or(|session| session.is_condemned)
    }

    /// The guest's driver starts anew.
    pub(crate) fn reset(&mut self) {
        info!(guest = %self.guest, connections = self.connections.len(), "the guest was reset");
        self.set_state(GuestState::Waiting);
        self.end_connections();
    }

    fn set_state(&self, state: GuestState) {
        let cid = self.guest;
        if self.gauges.set_state(state) != state {
            self.hub.publish(|| match state {
                GuestState::Waiting => Event::GuestDown { cid },
                GuestState::Running => Event::GuestUp { cid },
                GuestState::Paused => Event::GuestPaused { cid },
            });
        }
    }

    /// The guest has forgotten them all.
    fn end_connections(&mut self) {
        self.set_now();
        self.connections.abandon();
        self.connections.part();
        self.member.reset(self.now);
    }

    fn set_now(&mut self) {
        self.now = (self.clock)();
        self.connections.set_now(self.now);
    }

    /// The driver has chosen these features.
    pub(crate) fn set_features(&mut self, features: u64) {
        let mut features = Features::from_bits_truncate(features);
        if !features.contains(Features::NO_IMPLIED_STREAM) {
            features |= Features::STREAM;
        }
        self.member.set_features(features);
    }

    /// The ring was stopped. It may go on where it was, or from the start.
    pub(crate) fn stop_ring(&mut self, index: usize) {
        let Some(session) = &mut self.session else {
            return;
        };
        if let (Some(rings), Some(stopped)) = (&session.rings, session.stopped.get_mut(index)) {
            *stopped = rings.get(index).map(Position::of);
        }
        if index == RX {
            self.port.close();
            if self.gauges.state() == GuestState::Running {
                self.set_state(GuestState::Paused);
            }
        }
    }

    /// The TX ring and the memory it lies in, unless the session is ending: then what has it
    /// ended may have left them in any state.
    pub(crate) fn tx_ring(&self) -> Option<(Vring, SharedMemory)> {
        let session = self.session.as_ref().filter(|it| !it.is_condemned)?;
        Some((session.rings.as_ref()?[TX].clone(), session.memory.clone()))
    }

    /// A [turn](Self::turn) with the rings of the connected frontend.
    pub(crate) fn turn_with(&mut self, cause: Cause, rings: &[Vring]) -> bool {
        if self.is_condemned(rings) {
            // What is left is its guest thread's to do.
            return false;
        }
        self.attach(rings);
        if self.has_restarted() {
            self.reset();
        }
        // A stopped ring that has not started again is looked at when it has.
        let is_seen = |session: &Session| session.stopped[RX].is_none();
        if self.session.as_ref().is_some_and(is_seen) {
            self.port.open(cause == Cause::Rx);
            if self.gauges.state() != GuestState::Running && self.port.is_up() {
                self.set_state(GuestState::Running);
            }
        }
        if cause == Cause::Tx
            && let Some(session) = &mut self.session
        {
            session.tx_is_pending = true;
        }
        let fills_on = self.turn(cause);
        !self.is_condemned(rings) && fills_on
    }

    fn attach(&mut self, rings: &[Vring]) {
        if let Some(session) = &mut self.session
            && session.rings.is_none()
            && let [rx, tx, ..] = rings
        {
            session.rings = Some([rx.clone(), tx.clone()]);
            self.port.attach(rx.clone(), session.memory.clone());
        }
    }

    /// Whether a ring was started elsewhere than where it was stopped: the driver is a
    /// new one.
    fn has_restarted(&mut self) -> bool {
        let Some(Session {
            rings: Some(rings),
            stopped,
            ..
        }) = &mut self.session
        else {
            return false;
        };
        let mut restarted = false;
        for (ring, stopped) in rings.iter().zip(stopped.iter_mut()) {
            // Seldom: the ring is locked for it.
            if let Some(position) = *stopped
                && ring.get_ref().get_queue().ready()
            {
                *stopped = None;
                restarted |= Position::of(ring) != position;
            }
        }
        if restarted {
            // Once is enough, whenever the other ring is started.
            *stopped = [None; 2];
        }
        restarted
    }

    /// A turn: everything that is ready, within bounds. `true` when there is more to put into
    /// the RX ring: another turn is to follow.
    pub(crate) fn turn(&mut self, cause: Cause) -> bool {
        self.set_now();
        let now = self.now;
        self.patience.wakes(now);
        let mut more = cause == Cause::Host && self.take_events();
        self.answer_questions();
        let drained = self.drain_pending_tx();
        more |= drained.more;
        self.connections.handle_timeouts();
        self.door.handle_timeouts(now);
        self.member.handle_timeouts(now);
        more |= self.admit_callers(now);
        self.connections.watch_lone_newcomer();
        let fills_on = self.fill_rx();
        if drained.notify
            && let Some((tx, _)) = self.tx_ring()
        {
            tx.notify();
        }
        self.connections.end_turn();
        let timeouts = [
            self.connections.next_timeout(),
            self.door.next_timeout(),
            self.member.next_timeout(),
            self.may_send_at(),
        ];
        self.poller.arm(timeouts.into_iter().flatten().min(), now);
        self.gauges.set_connections(self.connections.len());
        if more {
            self.poller.waker().wake();
        }
        fills_on
    }

    /// Takes what is ready behind the poller. `true` when there may be more.
    fn take_events(&mut self) -> bool {
        let Self {
            poller,
            connections,
            door,
            callers,
            woken,
            ..
        } = self;
        poller.poll(|token, events| match token {
            Token::Connection(id) => connections.handle_event(id, events),
            Token::Handshake(key) => door.handle_event(key, callers),
            Token::Listener => door.ring(),
            Token::Wake => *woken = true,
            Token::Timer => (),
        })
    }

    /// Does what other threads want done.
    fn answer_questions(&mut self) {
        if std::mem::take(&mut self.woken) {
            let inbox = Arc::clone(&self.inbox);
            for question in inbox.take() {
                question(self);
            }
        }
    }

    /// Takes what the guest sent, if it did.
    fn drain_pending_tx(&mut self) -> Drained {
        if !self.tx_is_pending() || !self.sends.has_some(self.now) {
            return Drained::default();
        }
        let mut drained = self.drain_tx();
        if let Some(session) = &mut self.session {
            session.tx_is_pending = drained.more;
        }
        drained.more &= self.sends.has_some(self.now);
        drained
    }

    pub(crate) fn tx_is_pending(&self) -> bool {
        let session = self.session.as_ref();
        session.is_some_and(|session| session.tx_is_pending)
    }

    /// When a guest that has sent too much may send again, if it wants to.
    fn may_send_at(&mut self) -> Option<Instant> {
        let waits = self.tx_is_pending();
        waits.then(|| self.sends.refilled_at(self.now)).flatten()
    }

    /// Lets host applications in, and asks the guest for what they want. `true` when
    /// more of them are waiting.
    fn admit_callers(&mut self, now: Instant) -> bool {
        let more = self.door.accept(now, &mut self.callers);
        let mut callers = std::mem::take(&mut self.callers);
        for Caller { port, socket } in callers.drain(..) {
            let why = if !self.port.is_up() {
                ClientRefusal::NotUp
            } else if !self.connections.request(port, socket) {
                ClientRefusal::TooManyConnections
            } else {
                continue;
            };
            debug!(guest = %self.guest, %port, %why, "a host application is refused");
            self.counters.refused_clients.add(1);
            self.hub.publish(|| Event::ClientRefused {
                cid: self.guest,
                port: Some(port),
                why,
            });
        }
        self.callers = callers;
        more
    }

    /// Puts into the RX ring what there is for the guest. `true` when there may be more, and
    /// room for it.
    fn fill_rx(&mut self) -> bool {
        if !self.connections.has_ready() {
            return false;
        }
        let connections = &mut self.connections;
        let more = self.port.with(|rx| connections.fill(rx, FILLS_PER_TURN));
        self.port.notify();
        more.unwrap_or(false)
    }

    /// Tells of a refusal; in the log, one stands for all that follow it closely.
    pub(crate) fn tell_refusal(&mut self, request: &Header, why: Refusal) {
        if let Some(others) = self.refusals.pass(self.now) {
            info!(guest = %self.guest, %request, %why, others, "refused");
        }
        self.hub.publish(|| Event::Refused {
            from: request.src,
            to: request.dst,
            why,
        });
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.inbox.close();
    }
}
