//! The host's applications, each in a thread that ends with the daemon or the listener.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::count::Count;
use crate::placement::{Placement, Side};

/// A guest answers within this time.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a server does with its connections.
#[derive(Clone, Debug)]
pub(crate) enum Service {
    /// Counts the bytes that come, one connection after the other.
    Count(Count),
    /// Sends back what comes, on all connections.
    Echo,
    /// Reads to the end and closes, one connection after the other.
    Close,
    /// Accepts, and reads nothing.
    Stall,
}

/// A server in a thread of its own.
#[derive(Debug)]
pub(crate) struct Server {
    path: PathBuf,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Server {
    /// Serves `port` of a VM.
    pub(crate) fn start(
        uds: &Path,
        port: u32,
        service: Service,
        placement: Placement,
    ) -> Result<Self> {
        let path = PathBuf::from(format!("{}_{port}", uds.display()));
        let listener = UnixListener::bind(&path).context("listen for the guest")?;
        let stopped = Arc::<AtomicBool>::default();
        let seen = Arc::clone(&stopped);
        let thread = thread::spawn(move || {
            placement.enter(Side::Applications)?;
            serve(&listener, &service, &seen)
        });
        Ok(Self {
            path,
            stopped,
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes it; a server that is gone needs no waking.
        let _ = UnixStream::connect(&self.path);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(listener: &UnixListener, service: &Service, stopped: &AtomicBool) -> Result<()> {
    if matches!(service, Service::Echo) {
        return echo(listener, stopped);
    }
    let mut stalled = Vec::new();
    for stream in listener.incoming().flatten() {
        if stopped.load(Ordering::SeqCst) {
            break;
        }
        match service {
            Service::Count(count) => read_to_end(stream, |read| count.add(read as u64)),
            Service::Stall => stalled.push(stream),
            Service::Close | Service::Echo => read_to_end(stream, |_| ()),
        }
    }
    Ok(())
}

/// The daemon is ended with connections open: an error is an end too.
fn read_to_end(mut stream: UnixStream, note: impl Fn(usize)) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        note(read);
    }
}

/// Echoes on any number of connections. What it sends is less than a socket holds: who
/// asks waits for the answer.
fn echo(listener: &UnixListener, stopped: &AtomicBool) -> Result<()> {
    let epoll = Epoll::new().context("epoll_create")?;
    let add = |fd| {
        let event = EpollEvent::new(EventSet::IN, fd as u64);
        epoll.ctl(ControlOperation::Add, fd, event)
    };
    add(listener.as_raw_fd())?;
    let mut streams: HashMap<i32, UnixStream> = HashMap::new();
    let mut events = vec![EpollEvent::default(); 64];
    let mut buffer = vec![0; 64 << 10];
    while !stopped.load(Ordering::SeqCst) {
        let count = match epoll.wait(-1, &mut events) {
            Err(error) if error.kind() == ErrorKind::Interrupted => 0,
            result => result.context("epoll_wait")?,
        };
        for event in &events[..count] {
            let fd = event.fd();
            if fd == listener.as_raw_fd() {
                let (stream, _) = listener.accept().context("accept")?;
                add(stream.as_raw_fd())?;
                streams.insert(stream.as_raw_fd(), stream);
            } else if let Some(stream) = streams.get_mut(&fd) {
                let read = stream.read(&mut buffer).unwrap_or(0);
                if read == 0 || stream.write_all(&buffer[..read]).is_err() {
                    streams.remove(&fd);
                }
            }
        }
    }
    Ok(())
}

/// Connects to a guest's port and writes `len` bytes at a time until the daemon ends. A
/// guest that is not ready yet is asked again.
pub(crate) fn send(
    uds: &Path,
    port: u32,
    len: usize,
    placement: Placement,
) -> Result<JoinHandle<Result<()>>> {
    let start = Instant::now();
    let mut stream = loop {
        match connect(uds, port) {
            Err(_) if start.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(5)),
            result => break result.context("connect to the guest")?,
        }
    };
    let bytes = vec![0; len];
    Ok(thread::spawn(move || {
        placement.enter(Side::Applications)?;
        while stream.write_all(&bytes).is_ok() {}
        Ok(())
    }))
}

fn connect(uds: &Path, port: u32) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(uds)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // In one piece: not every device puts it together.
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        answer.extend(byte);
    }
    ensure!(answer.starts_with(b"OK "), "the daemon answered {answer:?}");
    Ok(stream)
}
