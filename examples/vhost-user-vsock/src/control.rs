//! The control socket: HTTP/1.1 with JSON, off the data path, on a thread of its own.
//!
//! ```text
//!   client ─▶ door ─▶ route ─▶ Call ─▶ perform ─▶ Manager      (control, control-job)
//!                                         │
//!          ◀──────────────── Answer ◀─────┘
//!          ◀── stream ◀── Events
//! ```
//!
//! The thread `control` reads requests and writes answers, and never waits for a guest:
//! what may is done on threads named `control-job`. Everything is bounded: clients,
//! streams, a request's size, and the time for each thing that a client may do slowly.

mod answer;
mod door;
mod patience;
mod perform;
mod route;
mod socket;
mod stream;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tracing::warn;

pub(crate) use socket::ControlSocket;

use self::perform::Performer;
use crate::manager::Manager;
use crate::spec::Settings;

/// Jobs that are done at once: each stream of events is one, the others are short.
const MAX_JOBS: usize = stream::MAX_STREAMS + 8;

/// The control socket's thread. Dropped, it has ended, and the socket is gone.
pub(crate) struct ControlServer {
    runtime: Handle,
    stopping: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Answers requests at `socket`.
    ///
    /// # Errors
    ///
    /// What the system said when it had no thread or descriptor to spare.
    pub(crate) fn start(socket: ControlSocket, manager: Arc<Manager>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(MAX_JOBS)
            .thread_name("control-job")
            .build()?;
        let handle = runtime.handle().clone();
        let (stopping, is_stopping) = watch::channel(false);
        let listener = {
            let _context = runtime.enter();
            socket.listener()?
        };
        let is_given = socket.is_given();
        let serve = move |runtime: Runtime| {
            runtime.block_on(door::serve(listener, is_given, manager, is_stopping));
            // Waits for the jobs.
            drop(runtime);
            drop(socket);
        };
        let thread = Builder::new()
            .name("control".to_owned())
            .spawn(move || serve(runtime))?;
        Ok(Self {
            runtime: handle,
            stopping,
            thread: Some(thread),
        })
    }

    /// Whether the thread does what it is asked to in this time.
    pub(crate) fn is_alive(&self, patience: Duration) -> bool {
        let (sender, answer) = channel();
        self.runtime.spawn(async move { sender.send(()) });
        answer.recv_timeout(patience).is_ok()
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // It fails only if the thread is gone.
        let _ = self.stopping.send(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the control socket's thread has panicked");
        }
    }
}

/// Answers clients that are there already, without a thread or a socket of its own.
pub(crate) struct Attendant {
    performer: Performer,
    stopping: watch::Sender<bool>,
}

impl Attendant {
    pub(crate) fn new(manager: Arc<Manager>) -> Self {
        let (stopping, is_stopping) = watch::channel(false);
        Self {
            performer: Performer::new(manager, is_stopping),
            stopping,
        }
    }

    /// Serves one client until it leaves, within a Tokio runtime.
    pub(crate) async fn attend(&self, client: UnixStream) {
        door::attend(client, true, self.performer.clone()).await;
    }
}

impl Drop for Attendant {
    fn drop(&mut self) {
        // It fails when no stream is left to end.
        let _ = self.stopping.send(true);
    }
}

/// Reads settings as requests have them.
///
/// # Errors
///
/// What the client is told.
pub(crate) fn read_settings(body: &[u8]) -> Result<Settings, String> {
    route::parse(body).map_err(|refusal| refusal.message().to_owned())
}
