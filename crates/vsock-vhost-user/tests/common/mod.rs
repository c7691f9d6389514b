//! The device under test: a server whose sockets lie in a directory of their own.

#![allow(dead_code, unused_imports, reason = "each test file uses its part")]
#![allow(unreachable_pub, reason = "the test files are its users")]
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod house;
mod pair;
mod waking;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vsock_packet::{Cid, GuestCid, Header, Op, VsockAddr};
use vsock_testkit::{Error, Guest, Setup};
use vsock_vhost_user::{AddError, GuestConfig, Server};

pub use house::{PORT, connect, house, is_up};
pub use pair::{Alive, pair, pair_of, pair_with};
pub use waking::Waking;

/// The CID of the guest that every [`Device`] serves.
pub const CID: u64 = 3;

/// What the issue calls "at once", and the limit for an end of file.
pub const AT_ONCE: Duration = Duration::from_millis(100);

/// A server, and where its guests' sockets are.
pub struct Device {
    pub server: Server,
    dir: TempDir,
}

impl Device {
    /// A server of one guest, with defaults.
    pub fn start() -> Self {
        Self::with(|_| ())
    }

    /// A server of one guest, whose configuration `change` changes.
    pub fn with(change: impl FnOnce(&mut GuestConfig)) -> Self {
        let device = Self {
            server: Server::new(),
            dir: directory(),
        };
        let mut config = device.config(CID);
        change(&mut config);
        device.server.add(config).unwrap();
        device
    }

    /// Serves one more guest.
    pub fn add(&self, cid: u64) -> Result<(), AddError> {
        self.server.add(self.config(cid))
    }

    /// Serves one guest less.
    pub fn remove(&self, cid: u64) -> bool {
        self.server.remove(GuestCid::new(cid).unwrap())
    }

    /// A guest's configuration, with defaults.
    pub fn config(&self, cid: u64) -> GuestConfig {
        GuestConfig::new(
            GuestCid::new(cid).unwrap(),
            self.socket(cid),
            self.uds_of(cid),
        )
    }

    /// A guest's vhost-user socket.
    pub fn socket(&self, cid: u64) -> PathBuf {
        self.dir.path().join(format!("vm{cid}.sock"))
    }

    /// A guest's hybrid vsock socket.
    pub fn uds_of(&self, cid: u64) -> PathBuf {
        self.dir.path().join(format!("vm{cid}.vsock"))
    }

    /// The hybrid vsock socket of the first guest.
    pub fn uds(&self) -> PathBuf {
        self.uds_of(CID)
    }

    /// The first guest, as Linux is.
    pub fn guest(&self) -> Result<Guest, Error> {
        self.guest_with(Setup::default())
    }

    /// The first guest, as `setup` has it.
    pub fn guest_with(&self, setup: Setup) -> Result<Guest, Error> {
        Guest::start(self.socket(CID), setup)
    }

    /// Another guest, as Linux is.
    pub fn guest_of(&self, cid: u64) -> Result<Guest, Error> {
        Guest::start(self.socket(cid), Setup::default())
    }
}

/// A directory in memory, where there is a place for one: on a disk the kernel looks the
/// longer for a free inode, the more sockets came and went before.
fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// Bytes that tell where they come from: no two places of a stream look the same.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

/// A port of the host.
pub fn host_port(port: u32) -> VsockAddr {
    VsockAddr::new(Cid::HOST, port)
}

/// Fails when more time than the issue allows for "at once" went by.
#[track_caller]
pub fn assert_at_once(start: Instant, what: &str) {
    let elapsed = start.elapsed();
    assert!(elapsed < AT_ONCE, "{what} took {elapsed:?}");
}

/// The header of a packet from a port of the guest to one of the host, with Linux's
/// receive buffer.
pub fn header(guest: &Guest, op: Op, local_port: u32, host_port: u32) -> Header {
    let host = VsockAddr::new(Cid::HOST, host_port);
    Header {
        buf_alloc: 256 << 10,
        ..Header::new(op, guest.at(local_port), host)
    }
}
