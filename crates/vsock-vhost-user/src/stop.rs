//! How a guest's thread is told to end, and a session before its time.

use std::io;
use std::sync::Mutex;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use vhost_user_backend::ShutdownHandle;

use crate::backend::lock;

/// What ends a guest's thread, and the session that it may be serving.
pub(crate) struct Stop {
    event: OwnedFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The thread is to end.
    asked: bool,
    /// The session is to end, perhaps before its handle was set.
    condemned: bool,
    session: Option<ShutdownHandle>,
}

impl Stop {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            state: Mutex::default(),
        })
    }

    /// Readable when the thread is to end.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Has the thread end, and its session.
    pub(crate) fn ask(&self) {
        self.change(|state| state.asked = true);
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// Has the session end; the thread waits for the next one.
    pub(crate) fn end_session(&self) {
        self.change(|state| state.condemned = true);
    }

    /// A session has begun.
    pub(crate) fn set_session(&self, session: ShutdownHandle) {
        self.change(|state| state.session = Some(session));
    }

    /// The session has ended.
    pub(crate) fn forget_session(&self) {
        self.change(|state| (state.condemned, state.session) = (false, None));
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        change(&mut state);
        if let (true, Some(session)) = (state.asked || state.condemned, &state.session) {
            session.shutdown();
        }
    }
}
