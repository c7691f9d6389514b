//! What a worker waits for beside its rings: host sockets, a timer, and itself.
//!
//! vhost-user-backend waits for the rings. All the rest is behind one epoll instance that
//! is itself one of the things it waits for. Sockets are edge-triggered: what is ready is
//! remembered by whoever owns the socket.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, Event, EventData};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use vsock_connection::ConnectionId;

pub(crate) use rustix::event::epoll::EventFlags;

use crate::mishaps::{self, Call};

/// Events taken by one system call.
const BATCH: usize = 128;

/// What an event is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Token {
    /// The guest's hybrid vsock socket has a client.
    Listener,
    /// A client that has not finished its CONNECT line.
    Handshake(u32),
    /// The host's end of a connection.
    Connection(ConnectionId),
    /// The timer fired.
    Timer,
    /// [`Waker::wake`] was called.
    Wake,
}

const HANDSHAKE: u64 = 1 << 63;
const LISTENER: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;
const WAKE: u64 = u64::MAX - 2;

impl Token {
    /// The token as epoll keeps it. The uppermost bit of a connection's id is zero.
    fn to_u64(self) -> u64 {
        match self {
            Self::Listener => LISTENER,
            Self::Timer => TIMER,
            Self::Wake => WAKE,
            Self::Handshake(key) => HANDSHAKE | u64::from(key),
            Self::Connection(id) => id.to_u64(),
        }
    }

    fn from_u64(value: u64) -> Self {
        match value {
            LISTENER => Self::Listener,
            TIMER => Self::Timer,
            WAKE => Self::Wake,
            _ if value & HANDSHAKE != 0 => Self::Handshake(value as u32),
            _ => Self::Connection(ConnectionId::from_u64(value)),
        }
    }
}

/// The epoll instance of a worker, its timer and its wake-up.
#[derive(Debug)]
pub(crate) struct Poller {
    registry: Registry,
    timer: OwnedFd,
    waker: Waker,
    armed: Option<Instant>,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        let poller = Self {
            registry: Registry(Arc::new(epoll::create(CreateFlags::CLOEXEC)?)),
            timer: timerfd_create(
                TimerfdClockId::Monotonic,
                TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
            )?,
            waker: Waker(Arc::new(eventfd(
                0,
                EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
            )?)),
            armed: None,
        };
        let registry = poller.registry();
        registry.add(poller.timer.as_fd(), Token::Timer, EventFlags::IN)?;
        registry.add(poller.waker.0.as_fd(), Token::Wake, EventFlags::IN)?;
        Ok(poller)
    }

    /// What this poller watches, for others to change.
    pub(crate) fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// The next events, up to a batch of them, without waiting. `true` in the end when
    /// there may be more.
    pub(crate) fn poll(&mut self, mut handle: impl FnMut(Token, EventFlags)) -> bool {
        let mut space = [const { MaybeUninit::<Event>::uninit() }; BATCH];
        if mishaps::instead_of(Call::Wait, self.registry.0.as_fd()).is_err() {
            return true;
        }
        let events = match epoll::wait(&self.registry.0, &mut space, Some(&Timespec::default())) {
            Ok((events, _)) => events,
            // Interrupted: the events are still there.
            Err(_) => return true,
        };
        for event in events.iter() {
            let token = Token::from_u64(event.data.u64());
            self.clear(token);
            handle(token, event.flags);
        }
        events.len() == BATCH
    }

    /// Whether there are events, now.
    pub(crate) fn is_ready(&self) -> bool {
        let mut fds = [PollFd::new(&self.registry.0, PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&Timespec::default())) == Ok(1)
    }

    fn clear(&mut self, token: Token) {
        let mut count = [0; 8];
        match token {
            Token::Timer => {
                self.armed = None;
                let _ = rustix::io::read(&self.timer, &mut count);
            }
            Token::Wake => {
                let _ = rustix::io::read(&self.waker.0, &mut count);
            }
            _ => (),
        }
    }

    /// What wakes this poller, for others to have.
    pub(crate) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Has [`Token::Timer`] come by `deadline`. An earlier one that was asked for before
    /// comes all the same: most deadlines move before they pass, and a turn for nothing is
    /// cheaper than a system call for each move.
    pub(crate) fn arm(&mut self, deadline: Option<Instant>, now: Instant) {
        let Some(deadline) = deadline else {
            return;
        };
        if self.armed.is_some_and(|armed| armed <= deadline) {
            return;
        }
        // A zero would disarm the timer.
        let wait = deadline
            .saturating_duration_since(now)
            .max(Duration::from_nanos(1));
        let spec = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: wait.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: wait.subsec_nanos().into(),
            },
        };
        if timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec).is_ok() {
            self.armed = Some(deadline);
        }
    }
}

#[cfg(test)]
impl Poller {
    /// When [`Token::Timer`] is to come.
    pub(crate) fn armed(&self) -> Option<Instant> {
        self.armed
    }

    /// Keeps the timer from coming by itself, for those with a time of their own.
    pub(crate) fn hold_timer(&self) {
        let never = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::default(),
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &never).unwrap();
    }

    /// Has the timer be over, as if it had come.
    pub(crate) fn disarm(&mut self) {
        self.armed = None;
    }
}

/// What a poller watches.
#[derive(Clone, Debug)]
pub(crate) struct Registry(Arc<OwnedFd>);

impl Registry {
    /// Watches a descriptor.
    pub(crate) fn add(
        &self,
        fd: BorrowedFd<'_>,
        token: Token,
        flags: EventFlags,
    ) -> io::Result<()> {
        if matches!(token, Token::Handshake(_) | Token::Connection(_)) {
            mishaps::instead_of(Call::Watch, fd)?;
        }
        let data = EventData::new_u64(token.to_u64());
        mishaps::note_watched(&self.0, fd, token.to_u64(), flags);
        Ok(epoll::add(&self.0, fd, data, flags)?)
    }

    /// Watches a descriptor under another token. What is ready is told again.
    pub(crate) fn modify(
        &self,
        fd: BorrowedFd<'_>,
        token: Token,
        flags: EventFlags,
    ) -> io::Result<()> {
        let data = EventData::new_u64(token.to_u64());
        mishaps::note_watched(&self.0, fd, token.to_u64(), flags);
        Ok(epoll::modify(&self.0, fd, data, flags)?)
    }

    /// Watches a descriptor no longer.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::delete(&self.0, fd)?)
    }
}

/// Wakes a poller, from any thread.
#[derive(Clone, Debug)]
pub(crate) struct Waker(Arc<OwnedFd>);

impl Waker {
    /// Has [`Token::Wake`] come with the next events.
    pub(crate) fn wake(&self) {
        // It fails only when it was called 2^64 - 2 times without being heard.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.registry.0.as_fd()
    }
}

impl AsRawFd for Poller {
    fn as_raw_fd(&self) -> RawFd {
        self.registry.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(poller: &mut Poller) -> Vec<Token> {
        let mut tokens = Vec::new();
        poller.poll(|token, _| tokens.push(token));
        tokens
    }

    #[test]
    fn tokens_survive_as_numbers() {
        let connection = Token::Connection(ConnectionId::from_u64(0x7fff_ffff_ffff_ffff));
        for token in [
            Token::Listener,
            Token::Timer,
            Token::Wake,
            Token::Handshake(77),
            connection,
        ] {
            assert_eq!(Token::from_u64(token.to_u64()), token);
        }
    }

    #[test]
    fn wakes_once_however_often_it_is_asked_to() {
        let mut poller = Poller::new().unwrap();
        poller.waker().wake();
        poller.waker().wake();
        assert_eq!(tokens(&mut poller), [Token::Wake]);
        assert_eq!(tokens(&mut poller), []);
    }

    /// What comes within a second.
    fn awaited(poller: &mut Poller) -> Vec<Token> {
        rustix::event::poll(
            &mut [PollFd::new(&poller.registry.0, PollFlags::IN)],
            Some(&Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            }),
        )
        .unwrap();
        tokens(poller)
    }

    #[test]
    fn a_deadline_that_has_passed_fires_once() {
        let mut poller = Poller::new().unwrap();
        let now = Instant::now();
        poller.arm(Some(now), now);
        assert_eq!(awaited(&mut poller), [Token::Timer]);
        assert_eq!(tokens(&mut poller), []);
    }

    #[test]
    fn an_earlier_deadline_is_kept_and_a_later_one_is_not() {
        let mut poller = Poller::new().unwrap();
        let now = Instant::now();
        let later = now + Duration::from_secs(3600);
        poller.arm(Some(later), now);
        poller.arm(Some(now), now);
        poller.arm(Some(later), now);
        poller.arm(None, now);
        assert_eq!(awaited(&mut poller), [Token::Timer]);
        poller.arm(Some(later), now);
        assert_eq!(tokens(&mut poller), []);
    }
}
