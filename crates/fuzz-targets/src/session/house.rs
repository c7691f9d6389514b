//! A server with two guests: the one that is fuzzed, and a witness.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vsock_packet::GuestCid;
use vsock_testkit::host::Service;
use vsock_testkit::{Guest, Setup, StreamId};
use vsock_vhost_user::{GuestConfig, Server, catch_memory_faults};

use super::messages::{message, request};

/// The CID of the guest that is fuzzed, and of the other one.
pub(super) const CID: u32 = 3;
pub(super) const WITNESS: u32 = 4;
/// Ports of which some are listened at.
pub(super) const PORTS: [u32; 3] = [ECHO, 700, 0];
const ECHO: u32 = 7;
/// How long anything may take that is to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Some thread has panicked.
static PANICKED: AtomicBool = AtomicBool::new(false);

pub(super) struct House {
    directory: TempDir,
    _server: Server,
    _echo: Service,
    witness: Guest,
    stream: StreamId,
    /// Descriptors and threads there are while nobody is fuzzed.
    at_rest: (usize, usize),
}

impl House {
    pub(super) fn new() -> Self {
        let told = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICKED.store(true, Ordering::Relaxed);
            told(info);
        }));
        catch_memory_faults().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = |cid: u32, end: &str| directory.path().join(format!("vm{cid}.{end}"));
        let server = Server::new();
        for cid in [CID, WITNESS] {
            let guest = GuestCid::new(cid.into()).unwrap();
            let mut config = GuestConfig::new(guest, path(cid, "sock"), path(cid, "vsock"));
            config.groups = vec!["all".to_owned()];
            config.max_connections = 16;
            server.add(config).unwrap();
        }
        echo(&path(CID, &format!("vsock_{ECHO}")));
        let service = Service::echo(&path(WITNESS, "vsock"), ECHO).unwrap();
        let mut witness = Guest::start(path(WITNESS, "sock"), Setup::default()).unwrap();
        witness.listen(ECHO);
        let stream = witness.connect(ECHO).unwrap();
        let mut house = Self {
            directory,
            _server: server,
            _echo: service,
            witness,
            stream,
            at_rest: (0, 0),
        };
        house.check_next_session();
        house.at_rest = settled();
        house
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.path().join(format!("vm{CID}.sock"))
    }

    pub(super) fn uds_path(&self) -> PathBuf {
        self.directory.path().join(format!("vm{CID}.vsock"))
    }

    /// What holds after every input.
    pub(super) fn check(&mut self) {
        self.check_witness();
        self.check_next_session();
        self.check_nothing_is_left();
        assert!(
            !PANICKED.swap(false, Ordering::Relaxed),
            "a thread has panicked"
        );
    }

    /// The other guest goes on as if nothing had happened.
    fn check_witness(&mut self) {
        let echoed = self.witness.exchange(self.stream, b"still here", 10);
        assert_eq!(echoed.unwrap(), b"still here");
    }

    /// The next frontend is served.
    fn check_next_session(&self) {
        let mut frontend = UnixStream::connect(self.socket()).unwrap();
        frontend.set_read_timeout(Some(PATIENCE)).unwrap();
        let question = message(request::GET_FEATURES, &[]);
        frontend.write_all(&question).unwrap();
        let mut answer = [0; 20];
        let answered = frontend.read_exact(&mut answer);
        answered.expect("the next frontend is answered");
        assert_eq!(answer[0], 1);
    }

    /// Descriptors and threads are as many as before.
    fn check_nothing_is_left(&self) {
        let start = Instant::now();
        let at_rest = self.at_rest;
        loop {
            let now = (count("/proc/self/fd"), count("/proc/self/task"));
            if now.0 <= at_rest.0 && now.1 <= at_rest.1 {
                return;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "descriptors and threads: {at_rest:?} before, {now:?} now: {}",
                descriptors()
            );
            sleep(Duration::from_micros(100));
        }
    }
}

/// A service that keeps nothing of a connection that has ended.
fn echo(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    spawn(move || {
        for stream in listener.incoming().flatten() {
            spawn(move || io::copy(&mut &stream, &mut &stream));
        }
    });
}

/// Counts when they have not changed for a while.
fn settled() -> (usize, usize) {
    let mut last = (0, 0);
    loop {
        sleep(Duration::from_millis(200));
        let now = (count("/proc/self/fd"), count("/proc/self/task"));
        if now == last {
            return now;
        }
        last = now;
    }
}

/// What the descriptors are of, one a line.
fn descriptors() -> String {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten();
    let links = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let link = fs::read_link(&path).ok()?;
        Some(format!("\n{} -> {}", path.display(), link.display()))
    });
    links.collect()
}

fn count(directory: &str) -> usize {
    fs::read_dir(directory).map_or(0, Iterator::count)
}
