//! The guest's hybrid vsock socket and the clients that are about to say which of the
//! guest's ports they want.

use std::collections::VecDeque;
use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use slab::Slab;
use tracing::{debug, warn};
use vsock_packet::{GuestCid, PortNumber};

use crate::config::GuestConfig;
use crate::counters::Counters;
use crate::events::{ClientRefusal, Event, Hub};
use crate::handshake::Handshake;
use crate::mishaps::{self, Call};
use crate::poller::{EventFlags, Registry, Token};
use crate::seldom::Seldom;

/// How long a client may take over its line.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait before accepting again when the process is out of descriptors.
const BACK_OFF: Duration = Duration::from_millis(100);
/// Clients accepted in one turn of the worker.
const ACCEPTS_PER_TURN: usize = 64;

const EVENTS: EventFlags = EventFlags::IN
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

/// A client that has said its port.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) port: PortNumber,
    pub(crate) socket: OwnedFd,
}

/// Where host applications come in.
#[derive(Debug)]
pub(crate) struct Door {
    listener: UnixListener,
    handshakes: Slab<Handshake>,
    /// The handshakes by age; those that are over leave when they are met.
    by_age: VecDeque<(Instant, usize)>,
    /// A client may be waiting to be let in.
    rung: bool,
    retry_at: Option<Instant>,
    /// Clients that may be about to say their port. One more, and the oldest has to go:
    /// who means it says so at once.
    max_handshakes: usize,
    guest: GuestCid,
    counters: Arc<Counters>,
    hub: Arc<Hub>,
    /// Where the clients are watched.
    registry: Registry,
    warnings: Seldom,
}

impl Door {
    /// Opens the door: `listener` is watched from now on.
    pub(crate) fn new(
        guest: GuestCid,
        listener: UnixListener,
        registry: Registry,
        counters: Arc<Counters>,
        hub: Arc<Hub>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        registry.add(
            listener.as_fd(),
            Token::Listener,
            EventFlags::IN | EventFlags::ET,
        )?;
        Ok(Self {
            listener,
            handshakes: Slab::new(),
            by_age: VecDeque::new(),
            rung: false,
            retry_at: None,
            max_handshakes: GuestConfig::DEFAULT_MAX_HANDSHAKES,
            guest,
            counters,
            hub,
            registry,
            warnings: Seldom::default(),
        })
    }

    /// From the next client on.
    pub(crate) fn set_max_handshakes(&mut self, max_handshakes: usize) {
        self.max_handshakes = max_handshakes;
    }

    /// The listener is ready.
    pub(crate) fn ring(&mut self) {
        self.rung = true;
    }

    /// Lets waiting clients in. Those that have said their port already come out at once.
    /// `true` when more may be waiting.
    pub(crate) fn accept(&mut self, now: Instant, callers: &mut Vec<Caller>) -> bool {
        for _ in 0..ACCEPTS_PER_TURN {
            if !self.rung {
                return false;
            }
            match accept(&self.listener) {
                Ok(socket) => self.admit(socket, now, callers),
                Err(Errno::INTR | Errno::CONNABORTED) => (),
                Err(Errno::AGAIN) => self.rung = false,
                Err(error) => {
                    if self.warnings.pass(now).is_some() {
                        warn!(%error, "cannot accept host applications; trying again");
                    }
                    self.rung = false;
                    self.retry_at = Some(now + BACK_OFF);
                }
            }
        }
        self.rung
    }

    fn admit(&mut self, socket: OwnedFd, now: Instant, callers: &mut Vec<Caller>) {
        while self.handshakes.len() >= self.max_handshakes.max(1) {
            self.dismiss_oldest();
        }
        let deadline = now + HANDSHAKE_TIMEOUT;
        let key = self.handshakes.insert(Handshake::new(socket, deadline));
        self.by_age.push_back((deadline, key));
        let token = Token::Handshake(key as u32);
        if self
            .registry
            .add(self.handshakes[key].socket.as_fd(), token, EVENTS)
            .is_err()
        {
            self.handshakes.remove(key);
            return;
        }
        self.listen(key, callers);
    }

    fn dismiss_oldest(&mut self) {
        while let Some((deadline, key)) = self.by_age.pop_front() {
            if self.is_current(deadline, key) {
                self.dismiss(key, "one too many, and the oldest");
                return;
            }
        }
    }

    fn dismiss(&mut self, key: usize, why: impl Display) {
        debug!(%why, "a host application without a CONNECT is dismissed");
        self.counters.refused_clients.add(1);
        self.hub.publish(|| Event::ClientRefused {
            cid: self.guest,
            port: None,
            why: ClientRefusal::NoConnect,
        });
        self.handshakes.remove(key);
    }

    /// Whether the place `key` still has the handshake with this deadline.
    fn is_current(&self, deadline: Instant, key: usize) -> bool {
        self.handshakes
            .get(key)
            .is_some_and(|handshake| handshake.deadline == deadline)
    }

    /// Something came from a client.
    pub(crate) fn handle_event(&mut self, key: u32, callers: &mut Vec<Caller>) {
        self.listen(key as usize, callers);
    }

    fn listen(&mut self, key: usize, callers: &mut Vec<Caller>) {
        let Some(handshake) = self.handshakes.get_mut(key) else {
            return;
        };
        match handshake.read() {
            Ok(None) => (),
            Ok(Some(port)) => {
                let socket = self.handshakes.remove(key).socket;
                callers.push(Caller { port, socket });
            }
            Err(error) => {
                self.dismiss(key, error);
            }
        }
    }

    /// When [`Self::handle_timeouts`] is due.
    pub(crate) fn next_timeout(&mut self) -> Option<Instant> {
        while let Some(&(deadline, key)) = self.by_age.front()
            && !self.is_current(deadline, key)
        {
            self.by_age.pop_front();
        }
        let oldest = self.by_age.front().map(|(deadline, _)| *deadline);
        [oldest, self.retry_at].into_iter().flatten().min()
    }

    /// Dismisses clients that took too long, and accepts again when it is time.
    pub(crate) fn handle_timeouts(&mut self, now: Instant) {
        while self
            .by_age
            .front()
            .is_some_and(|(deadline, _)| *deadline <= now)
        {
            if let Some((deadline, key)) = self.by_age.pop_front()
                && self.is_current(deadline, key)
            {
                self.dismiss(key, "it took too long");
            }
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.rung = true;
        }
    }
}

/// Accepts without waiting.
fn accept(listener: &UnixListener) -> Result<OwnedFd, Errno> {
    mishaps::instead_of(Call::Accept, listener.as_fd())?;
    accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)
}
