//! A daemon of several VMs, one of which misbehaves while the others are watched.
//!
//! ```text
//!   hostile (CID 3) ──┐                    ┌── echo at port 700 of each VM
//!   sibling (CID 5) ──┼── daemon ── host ──┤
//!   witness (CID 4) ──┘                    └── the witness' own stream, all the time
//! ```
//!
//! A scenario does what it does with the hostile VM, and ends with [`House::ends_unharmed`]:
//! the process lives, the witness was served all the while, the VM can be used again, and
//! nothing of the scenario is left in the process, which is at rest.

#![allow(dead_code)] // Each test file uses a part of it.
#![allow(clippy::unwrap_used)] // What fails here fails the test.

mod metronome;
pub(crate) mod raw;
mod usage;
mod witness;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use vsock_packet::{Cid, Header, Op, VsockAddr};
use vsock_testkit::host::{Service, raise_file_limit};
use vsock_testkit::{Error, Guest, Setup};

use crate::support::http::Control;
use crate::support::{BINARY, Daemon, directory};
pub(crate) use usage::Usage;
use witness::Witness;

/// The VM that misbehaves, the one that is watched, and one in a group with the first.
pub(crate) const HOSTILE: u32 = 3;
pub(crate) const WITNESS: u32 = 4;
pub(crate) const SIBLING: u32 = 5;

/// The counters of what a well-behaved guest with a well-behaved host never does.
const OFFENCES: [&str; 9] = [
    "refused_requests",
    "refused_clients",
    "invalid_headers",
    "malformed_chains",
    "useless_buffers",
    "strangers",
    "violations",
    "timeouts",
    "faults",
];

/// Where the host echoes what a VM says.
pub(crate) const ECHO: u32 = 700;

/// The daemon, the witness, and what the process had before anything happened.
pub(crate) struct House {
    witness: Witness,
    before: Usage,
    pub(crate) daemon: Daemon,
    _services: Vec<Service>,
    dir: TempDir,
}

impl House {
    /// A daemon with defaults.
    pub(crate) fn new() -> Self {
        Self::with(&mut Command::new(BINARY))
    }

    /// The daemon that `command` starts when given the VMs.
    pub(crate) fn with(command: &mut Command) -> Self {
        raise_file_limit().unwrap();
        let dir = directory();
        let vms = [
            (HOSTILE, ",groups=street"),
            (WITNESS, ""),
            (SIBLING, ",groups=street"),
        ];
        for (cid, more) in vms {
            command.arg("--vm").arg(vm(dir.path(), cid, more));
        }
        command.arg("--control").arg(dir.path().join("control"));
        let daemon = Daemon::start_command(command);
        let uds = |cid| dir.path().join(format!("{cid}.vsock"));
        let services = [HOSTILE, SIBLING].map(|cid| Service::echo(&uds(cid), ECHO).unwrap());
        let witness = Witness::start(&socket(dir.path(), WITNESS), &uds(WITNESS));
        Self {
            before: Usage::at_rest(daemon.pid(), &witness),
            witness,
            daemon,
            _services: services.into(),
            dir,
        }
    }

    /// The vhost-user socket of a VM.
    pub(crate) fn socket(&self, cid: u32) -> PathBuf {
        socket(self.dir.path(), cid)
    }

    /// The hybrid vsock socket of a VM.
    pub(crate) fn uds(&self, cid: u32) -> PathBuf {
        self.dir.path().join(format!("{cid}.vsock"))
    }

    /// The hostile VM's guest, well-behaved so far.
    pub(crate) fn guest(&self) -> Guest {
        self.guest_with(Setup::default())
    }

    /// The hostile VM's guest, as `setup` has it.
    pub(crate) fn guest_with(&self, setup: Setup) -> Guest {
        Guest::start(self.socket(HOSTILE), setup).unwrap()
    }

    /// A guest that reaches the hostile one, and can be reached by it.
    pub(crate) fn sibling(&self) -> Guest {
        let mut sibling = Guest::start(self.socket(SIBLING), Setup::default()).unwrap();
        self.works(&mut sibling);
        sibling
    }

    /// What the daemon has counted of a VM.
    #[track_caller]
    pub(crate) fn counters(&self, cid: u32) -> BTreeMap<String, u64> {
        let control = Control(self.dir.path().join("control"));
        let vm = control.get(&format!("/vms/{cid}")).json();
        serde_json::from_value(vm["counters"].clone()).unwrap()
    }

    /// What the hostile VM did was counted, in each of these counters.
    #[track_caller]
    pub(crate) fn has_counted(&self, names: &[&str]) {
        let counters = self.counters(HOSTILE);
        for name in names {
            assert!(counters[*name] > 0, "nothing in {name}: {counters:?}");
        }
    }

    /// Nothing was counted of the witness but its traffic.
    #[track_caller]
    fn has_nothing_against_the_witness(&self) {
        let counters = self.counters(WITNESS);
        for name in OFFENCES {
            assert_eq!(counters[name], 0, "{name} of the witness: {counters:?}");
        }
    }

    /// The hostile guest's session was ended by the daemon, which said why, once.
    #[track_caller]
    pub(crate) fn has_ended_a_session(&self) {
        let mut log = self.daemon.wait_for_log("ending the session");
        log.extend(self.daemon.log());
        let warns = |line: &&String| line.contains("WARN") && line.contains("guest=3");
        assert_eq!(log.iter().filter(warns).count(), 1, "{log:#?}");
    }

    /// Resets a guest, which then works.
    #[track_caller]
    pub(crate) fn works_again(&self, guest: &mut Guest) {
        if let Err(error) = guest.expect_tx_returned() {
            panic!(
                "TX chains are not back: {error}; log: {:#?}",
                self.daemon.log()
            );
        }
        guest.reset().unwrap();
        self.works(guest);
    }

    /// A guest gets something done.
    #[track_caller]
    pub(crate) fn works(&self, guest: &mut Guest) {
        let outcome = guest.connect(ECHO).and_then(|stream| {
            assert_eq!(guest.exchange(stream, b"hello", 5)?, b"hello");
            guest.close(stream)
        });
        if let Err(error) = outcome {
            panic!(
                "the guest is not served: {error}; log: {:#?}",
                self.daemon.log()
            );
        }
    }

    /// The process has nothing to do while the witness rests, whatever is open.
    #[track_caller]
    pub(crate) fn is_at_rest(&self) {
        Usage::at_rest(self.daemon.pid(), &self.witness).is_all_there_is(&self.witness);
    }

    /// Nothing that happened did any harm. All other guests are gone by now.
    #[track_caller]
    pub(crate) fn ends_unharmed(self) {
        assert!(
            self.daemon.is_alive(),
            "the daemon has ended: {:#?}",
            self.daemon.log()
        );
        self.witness.was_served();
        self.has_nothing_against_the_witness();
        let mut next = self.guest();
        self.works(&mut next);
        drop(next);
        self.before.is_all_there_is(&self.witness);
        self.witness.end();
        assert_eq!(self.daemon.end(rustix::process::Signal::TERM), Some(0));
    }
}

fn vm(dir: &Path, cid: u32, more: &str) -> String {
    let dir = dir.display();
    format!("guest-cid={cid},socket={dir}/{cid}.sock,uds-path={dir}/{cid}.vsock{more}")
}

fn socket(dir: &Path, cid: u32) -> PathBuf {
    dir.join(format!("{cid}.sock"))
}

/// The result of a scenario, which fails with what it says.
#[track_caller]
pub(crate) fn done<R>(result: Result<R, Error>) -> R {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// A port of the host.
pub(crate) fn host(port: u32) -> VsockAddr {
    VsockAddr::new(Cid::HOST, port)
}

/// A packet's header from a port of the guest to anywhere, with Linux's receive buffer.
pub(crate) fn header(guest: &Guest, op: Op, port: u32, to: VsockAddr) -> Header {
    Header {
        buf_alloc: 256 << 10,
        ..Header::new(op, guest.at(port), to)
    }
}

/// Numbers that look random, and are the same each time.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}
