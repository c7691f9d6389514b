//! One guest of a server: its thread, which waits for frontends and serves one after the
//! other.
//!
//! While no frontend is connected the thread itself gives the worker its turns: host
//! applications that come are refused, and what the last VM sent is still delivered.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::{info, warn};
use vhost::vhost_user::Listener;
use vhost_user_backend::VhostUserDaemon;
use vm_memory::GuestMemoryAtomic;
use vmm_sys_util::epoll::EventSet;
use vsock_packet::Config;

use crate::backend::{Backend, POLLER_TOKEN, lock};
use crate::handle::Handle;
use crate::memory::Memory;
use crate::seldom::Seldom;
use crate::server::Seat;
use crate::socket_io;
use crate::stop::Stop;
use crate::unix_socket::SocketPath;
use crate::worker::{Cause, Worker};

/// A guest that is being served. Dropped, it is no more: its connections have ended, its
/// thread is joined and its sockets are gone.
pub(crate) struct Guest {
    pub(crate) handle: Arc<Handle>,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
    /// Freed when the thread is joined.
    _seat: Seat,
    /// Freed last.
    _paths: Vec<SocketPath>,
}

impl Guest {
    pub(crate) fn start(
        handle: Arc<Handle>,
        worker: Worker,
        queue_size: u16,
        listener: UnixListener,
        paths: Vec<SocketPath>,
        seat: Seat,
    ) -> io::Result<Self> {
        let stop = Arc::new(Stop::new()?);
        // Accepting waits, but only for a frontend that is known to be there.
        listener.set_nonblocking(false)?;
        let cid = handle.cid;
        let service = Service {
            config: Config { guest_cid: cid },
            queue_size,
            poller: worker.as_fd().try_clone_to_owned()?,
            worker: Arc::new(Mutex::new(worker)),
            listener: listener.as_fd().try_clone_to_owned()?,
            frontends: Listener::from(listener),
            stop: Arc::clone(&stop),
            warnings: Seldom::default(),
        };
        let thread = Builder::new()
            .name(format!("guest-{cid}"))
            .spawn(move || service.run())?;
        Ok(Self {
            handle,
            stop,
            thread: Some(thread),
            _seat: seat,
            _paths: paths,
        })
    }

    /// Has the guest begin to end. It has ended when this is dropped.
    pub(crate) fn ask_to_end(&self) {
        self.stop.ask();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.ask();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("a guest's thread has panicked");
        }
    }
}

/// What a guest's thread has.
struct Service {
    config: Config,
    queue_size: u16,
    worker: Arc<Mutex<Worker>>,
    poller: rustix::fd::OwnedFd,
    frontends: Listener,
    /// The same socket as `frontends`, to wait for it.
    listener: rustix::fd::OwnedFd,
    stop: Arc<Stop>,
    warnings: Seldom,
}

/// How long to wait after a frontend that could not be served: the process is out of
/// descriptors or threads.
const BACK_OFF: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// What a guest's thread was waiting for.
enum Wake {
    Stop,
    Frontend,
    Host,
    BackedOff,
}

impl Service {
    fn run(mut self) {
        let mut back_off = false;
        loop {
            match self.wait(back_off) {
                Wake::Stop => return,
                Wake::Host => {
                    lock(&self.worker).turn(Cause::Host);
                }
                Wake::BackedOff => back_off = false,
                Wake::Frontend => {
                    if let Err(error) = self.serve() {
                        self.warn(&error);
                        back_off = true;
                    }
                }
            }
        }
    }

    /// Says, once for all attempts that follow closely, that a frontend has to wait.
    fn warn(&mut self, error: &ServeError) {
        if let Some(others) = self.warnings.pass(Instant::now()) {
            let guest = self.config.guest_cid;
            warn!(%guest, %error, others, "cannot serve the frontend; trying again");
        }
    }

    /// Waits for something to do; not for frontends, but for a while, when `backing_off`.
    fn wait(&self, backing_off: bool) -> Wake {
        let mut fds = [
            PollFd::from_borrowed_fd(self.stop.event(), PollFlags::IN),
            PollFd::new(&self.poller, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        let (fds, time) = if backing_off {
            (&mut fds[..2], Some(&BACK_OFF))
        } else {
            (&mut fds[..], None)
        };
        // An interrupted wait is one that ended early.
        if poll(fds, time) == Ok(0) {
            return Wake::BackedOff;
        }
        let ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        match [ready(0), ready(2)] {
            [true, _] => Wake::Stop,
            [_, true] => Wake::Frontend,
            _ => Wake::Host,
        }
    }

    /// Serves one frontend, until it leaves or the guest is to end.
    fn serve(&mut self) -> Result<(), ServeError> {
        let worker = Arc::clone(&self.worker);
        let backend = Arc::new(Backend::new(worker, self.config, self.queue_size));
        let result = self.serve_as(&backend);
        if let Some(fd) = backend.take_exit_fd() {
            // SAFETY: the exit event went into the daemon as a bare number; the daemon
            // is gone, and its worker joined.
            #[allow(unsafe_code)]
            unsafe {
                socket_io::close(fd);
            }
        }
        result
    }

    fn serve_as(&mut self, backend: &Arc<Backend>) -> Result<(), ServeError> {
        let memory = GuestMemoryAtomic::new(Memory::new());
        let name = format!("vhost-user-{}", self.config.guest_cid);
        let mut daemon = VhostUserDaemon::new(name, Arc::clone(backend), memory.clone())?;
        lock(&self.worker).begin_session(memory, Arc::clone(&self.stop));
        let result = self.serve_with(&mut daemon);
        // In this order: until its end the worker may condemn the session, not the next one.
        lock(&self.worker).end_session();
        self.stop.forget_session();
        result
    }

    fn serve_with(&mut self, daemon: &mut VhostUserDaemon<Arc<Backend>>) -> Result<(), ServeError> {
        for handler in daemon.get_epoll_handlers() {
            use std::os::fd::AsRawFd;
            handler
                .register_listener(self.poller.as_raw_fd(), EventSet::IN, POLLER_TOKEN)
                .map_err(ServeError::Register)?;
        }
        daemon.start(&mut self.frontends)?;
        let guest = self.config.guest_cid;
        info!(%guest, "the frontend has connected");
        if let Some(session) = daemon.shutdown_handle() {
            self.stop.set_session(session);
        }
        match daemon.wait() {
            Ok(()) => info!(%guest, "the frontend is gone"),
            Err(error) if has_left(&error) => info!(%guest, %error, "the frontend is gone"),
            Err(error) => self.dismissed(&error),
        }
        Ok(())
    }

    /// A frontend said what none may say.
    fn dismissed(&mut self, error: &vhost_user_backend::Error) {
        lock(&self.worker).counters.faults.add(1);
        if let Some(others) = self.warnings.pass(Instant::now()) {
            let guest = self.config.guest_cid;
            warn!(%guest, %error, others, "the frontend was dismissed");
        }
    }
}

/// Whether a session ended because its frontend did: how it leaves is its own affair.
fn has_left(error: &vhost_user_backend::Error) -> bool {
    use vhost::vhost_user::Error::{Disconnected, SocketBroken, SocketError};
    matches!(
        error,
        vhost_user_backend::Error::HandleRequest(Disconnected | SocketBroken(_) | SocketError(_))
    )
}

#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("{0}")]
    Daemon(vhost_user_backend::Error),
    #[error("cannot watch host sockets: {0}")]
    Register(io::Error),
}

impl From<vhost_user_backend::Error> for ServeError {
    fn from(error: vhost_user_backend::Error) -> Self {
        Self::Daemon(error)
    }
}
