//! The host's applications, each in a thread that ends with the daemon or the listener.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::role::Count;

/// A guest answers within this time.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a server does with each connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Service {
    /// Counts the bytes that come.
    Count,
    /// Sends back what comes.
    Echo,
    /// Reads to the end and closes.
    Close,
}

/// A server of one connection after the other.
#[derive(Debug)]
pub(crate) struct Server {
    path: PathBuf,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `port` of a VM.
    pub(crate) fn start(uds: &Path, port: u32, service: Service, count: &Count) -> Result<Self> {
        let path = PathBuf::from(format!("{}_{port}", uds.display()));
        let listener = UnixListener::bind(&path).context("listen for the guest")?;
        let stopped = Arc::<AtomicBool>::default();
        let (seen, count) = (Arc::clone(&stopped), count.clone());
        let thread = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if seen.load(Ordering::SeqCst) {
                    break;
                }
                serve(stream, service, &count);
            }
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

fn serve(mut stream: UnixStream, service: Service, count: &Count) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        // The daemon is ended with connections open: an error is an end too.
        let read = match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(read) => read,
        };
        match service {
            Service::Count => count.add(read as u64),
            Service::Echo if stream.write_all(&buffer[..read]).is_err() => return,
            Service::Echo | Service::Close => (),
        }
    }
}

/// Connects to a guest's port and writes `len` bytes at a time until the daemon ends. A
/// guest that is not ready yet is asked again.
pub(crate) fn send(uds: &Path, port: u32, len: usize) -> Result<JoinHandle<()>> {
    let start = Instant::now();
    let mut stream = loop {
        match connect(uds, port) {
            Err(_) if start.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(5)),
            result => break result.context("connect to the guest")?,
        }
    };
    let bytes = vec![0; len];
    Ok(thread::spawn(
        move || {
            while stream.write_all(&bytes).is_ok() {}
        },
    ))
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
