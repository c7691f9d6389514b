//! Host servers that go by themselves.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, spawn};

use crate::Error;
use crate::host::{PATIENCE, port_path, timeout};

/// What a service does with a connection; what it returns is put on record.
type Act = dyn Fn(&mut UnixStream) -> io::Result<Vec<u8>> + Send + Sync;

/// A host server at a port's path, with a thread for each connection.
///
/// Dropping it ends its connections and joins its threads.
#[derive(Debug)]
pub struct Service {
    path: PathBuf,
    shared: Arc<Shared>,
    records: Receiver<Vec<u8>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    ending: AtomicBool,
    /// The connections that have not ended, by number.
    streams: Mutex<HashMap<usize, UnixStream>>,
}

impl Service {
    /// Sends back what comes, and closes at its end.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the path is taken.
    pub fn echo(uds_path: &Path, port: u32) -> Result<Self, Error> {
        Self::serve(uds_path, port, |stream| {
            let mut from = stream.try_clone()?;
            io::copy(&mut from, stream)?;
            Ok(Vec::new())
        })
    }

    /// Reads everything, to be had from [`Self::received`].
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the path is taken.
    pub fn sink(uds_path: &Path, port: u32) -> Result<Self, Error> {
        Self::serve(uds_path, port, |stream| {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes)?;
            Ok(bytes)
        })
    }

    /// Writes `bytes` to whoever connects, and closes.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the path is taken.
    pub fn source(uds_path: &Path, port: u32, bytes: Vec<u8>) -> Result<Self, Error> {
        Self::serve(uds_path, port, move |stream| {
            stream.write_all(&bytes)?;
            Ok(Vec::new())
        })
    }

    /// Does anything with each connection. What `act` returns is to be had from
    /// [`Self::received`].
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the path is taken.
    pub fn serve(
        uds_path: &Path,
        port: u32,
        act: impl Fn(&mut UnixStream) -> io::Result<Vec<u8>> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let path = port_path(uds_path, port);
        let listener = UnixListener::bind(&path).map_err(Error::io("bind a host's socket"))?;
        let shared = Arc::new(Shared::default());
        let (record, records) = channel();
        let for_thread = Arc::clone(&shared);
        let act: Arc<Act> = Arc::new(act);
        let thread = spawn(move || accept_all(&listener, &for_thread, &act, &record));
        Ok(Self {
            path,
            shared,
            records,
            thread: Some(thread),
        })
    }

    /// What the next connection to end sent in all.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`].
    pub fn received(&self) -> Result<Vec<u8>, Error> {
        let waited_for = || format!("a connection to {} to end", self.path.display());
        self.records
            .recv_timeout(PATIENCE)
            .map_err(|_| timeout(waited_for(), PATIENCE))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::SeqCst);
        // Wakes up the accepting thread; it cannot fail while that listens.
        let _ = UnixStream::connect(&self.path);
        self.shared.end_streams();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Shared {
    fn streams(&self) -> MutexGuard<'_, HashMap<usize, UnixStream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, number: usize, stream: UnixStream) {
        self.streams().insert(number, stream);
        if self.ending.load(Ordering::SeqCst) {
            self.end_streams();
        }
    }

    fn end_streams(&self) {
        for (_, stream) in self.streams().drain() {
            // It may have ended already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn accept_all(
    listener: &UnixListener,
    shared: &Arc<Shared>,
    act: &Arc<Act>,
    record: &Sender<Vec<u8>>,
) {
    let mut threads = Vec::new();
    while let Ok((mut stream, _)) = listener.accept() {
        if shared.ending.load(Ordering::SeqCst) {
            break;
        }
        let number = threads.len();
        match stream.try_clone() {
            Ok(clone) => shared.add(number, clone),
            Err(_) => continue,
        }
        let (act, record, shared) = (Arc::clone(act), record.clone(), Arc::clone(shared));
        threads.push(spawn(move || {
            let outcome = act(&mut stream);
            // The clone above keeps the socket open.
            let _ = stream.shutdown(Shutdown::Both);
            shared.streams().remove(&number);
            if let Ok(bytes) = outcome {
                // Nobody need be interested.
                let _ = record.send(bytes);
            }
        }));
    }
    for thread in threads {
        let _ = thread.join();
    }
}
