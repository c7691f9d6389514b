//! A simulated VM: its guest, which comes and goes, and the host's server for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vsock_packet::{Cid, Features, SocketType, VsockAddr};
use vsock_testkit::{Behaviour, Guest, Layout, Refill, RxBuffers, Setup, feature};

use crate::host::Service;
use crate::random::Random;

/// The host's port that each guest connects to.
pub(crate) const HOST_PORT: u32 = 700;
/// The ports at which each guest listens, for streams and for messages.
pub(crate) const STREAM_PORT: u32 = 80;
pub(crate) const MESSAGE_PORT: u32 = 81;

/// What a VM does now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Up,
    /// Its rings are stopped, at these bases.
    Paused(Vec<u16>),
    /// It runs, and does nothing.
    Stalled,
    /// There is none.
    Gone,
    /// The daemon is asked to remove it, or to add it again.
    Removed,
}

/// What an operator has the daemon do with a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    Add,
    Remove,
    Regroup,
}

/// A VM.
pub(crate) struct Vm {
    pub(crate) cid: Cid,
    pub(crate) socket: PathBuf,
    pub(crate) uds: PathBuf,
    pub(crate) groups: Vec<&'static str>,
    /// The daemon's configuration has it; otherwise it was added by the control socket.
    pub(crate) is_configured: bool,
    pub(crate) state: State,
    /// When a state other than [`State::Up`] is over; [`State::Removed`] is when it is.
    pub(crate) until: Instant,
    /// What the daemon was asked to do with it, and has not answered.
    pub(crate) change: Option<Change>,
    /// Which of its guests this is.
    pub(crate) life: u64,
    guest: Option<Guest>,
    /// Its guest knows SEQPACKET.
    pub(crate) knows_messages: bool,
    /// `None` while there is no host server.
    pub(crate) service: Option<Service>,
    pub(crate) service_until: Instant,
}

impl Vm {
    pub(crate) fn new(directory: &Path, cid: u32, is_configured: bool) -> Self {
        let now = Instant::now();
        Self {
            cid: Cid::new(cid),
            socket: directory.join(format!("{cid}.sock")),
            uds: directory.join(format!("{cid}.vsock")),
            groups: vec!["a"],
            is_configured,
            state: State::Gone,
            until: now,
            change: None,
            life: 0,
            guest: None,
            knows_messages: false,
            service: None,
            service_until: now,
        }
    }

    /// Whether it does what VMs do.
    pub(crate) fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// Whether it does what VMs do, and nobody changes that.
    pub(crate) fn is_steady(&self) -> bool {
        self.is_up() && self.change.is_none()
    }

    fn configuration(&self) -> PathBuf {
        let directory = self.socket.with_file_name("vms");
        directory.join(format!("{}.toml", self.cid))
    }

    /// Writes its file of the daemon's configuration.
    pub(crate) fn write_configuration(&self) -> Result<()> {
        let (socket, uds, groups) = (&self.socket, &self.uds, &self.groups);
        let text = format!(
            "[[vm]]\ncid = {}\nsocket = {socket:?}\nuds_path = {uds:?}\ngroups = {groups:?}\n",
            self.cid
        );
        // The daemon may be reading.
        let draft = self.socket.with_extension("draft");
        fs::write(&draft, text)?;
        fs::rename(&draft, self.configuration()).context("write a configuration")
    }

    /// Takes it out of the daemon's configuration.
    pub(crate) fn delete_configuration(&self) -> Result<()> {
        fs::remove_file(self.configuration()).context("remove a configuration")
    }

    /// Whether two VMs may talk to each other.
    pub(crate) fn shares_a_group(&self, other: &Self) -> bool {
        self.groups.iter().any(|group| other.groups.contains(group))
    }

    /// Its guest, unless that does nothing now.
    pub(crate) fn guest(&mut self) -> Option<&mut Guest> {
        self.guest.as_mut().filter(|_| self.state == State::Up)
    }

    /// An address of its guest.
    pub(crate) fn at(&self, port: u32) -> VsockAddr {
        VsockAddr::new(self.cid, port)
    }

    /// Boots a guest.
    pub(crate) fn boot(&mut self, random: &mut Random) -> Result<()> {
        let setup = setup(random);
        self.knows_messages = setup.features & Features::SEQPACKET.bits() != 0;
        let mut guest = Guest::start(&self.socket, setup)
            .with_context(|| format!("boot a guest as VM {}", self.cid))?;
        guest.listen(STREAM_PORT);
        guest.listen_as(SocketType::Seqpacket, MESSAGE_PORT);
        self.life += 1;
        self.guest = Some(guest);
        self.state = State::Up;
        Ok(())
    }

    /// The VM ends, without a word.
    pub(crate) fn end(&mut self, until: Instant) {
        self.guest = None;
        self.life += 1;
        self.state = State::Gone;
        self.until = until;
    }

    /// The guest's driver starts anew, as under one QEMU or the other.
    pub(crate) fn reset(&mut self, with_message: bool) -> Result<()> {
        let Some(guest) = self.guest() else {
            return Ok(());
        };
        if with_message {
            guest.reset_device()?;
        } else {
            guest.reset()?;
        }
        self.life += 1;
        Ok(())
    }

    /// QEMU's `stop`.
    pub(crate) fn pause(&mut self, until: Instant) -> Result<()> {
        if let Some(guest) = self.guest() {
            self.state = State::Paused(guest.stop()?);
            self.until = until;
        }
        Ok(())
    }

    /// The VM's processors do something else.
    pub(crate) fn stall(&mut self, until: Instant) {
        self.state = State::Stalled;
        self.until = until;
    }

    /// What was stopped goes on when it is time.
    pub(crate) fn go_on(&mut self, now: Instant, random: &mut Random) -> Result<bool> {
        if self.service.is_none() && self.service_until <= now {
            self.service = Some(Service::start(&self.uds, HOST_PORT)?);
        }
        if self.until > now {
            return Ok(false);
        }
        match std::mem::replace(&mut self.state, State::Up) {
            State::Up => return Ok(false),
            State::Removed => {
                self.state = State::Removed;
                return Ok(false);
            }
            State::Stalled => (),
            State::Gone => self.boot(random)?,
            State::Paused(bases) => {
                if let Some(guest) = self.guest() {
                    guest.resume(&bases)?;
                }
            }
        }
        Ok(true)
    }

    /// The host's server dies; another comes later.
    pub(crate) fn kill_service(&mut self, until: Instant) {
        self.service = None;
        self.service_until = until;
    }

    /// Has the guest handle what came. `true` when something did.
    pub(crate) fn step(&mut self) -> Result<bool> {
        let Some(guest) = self.guest() else {
            return Ok(false);
        };
        let count = guest.step()?;
        guest.inbox().clear();
        Ok(count > 0)
    }
}

/// A guest like one of those in the field.
fn setup(random: &mut Random) -> Setup {
    let (max_packet, layout) = random.pick(&[
        (64 << 10, Layout::linux()),
        (64 << 10, Layout::linux().indirect()),
        (64 << 10, Layout::payload_in(17)),
        (16 << 10, Layout::pieces([10, 0, 100])),
        (4 << 10, Layout::whole()),
    ]);
    let (pieces, features) = random.pick(&[
        (vec![3776], feature::LINUX),
        (vec![4184], feature::LINUX & !feature::EVENT_IDX),
        (vec![44, 8192], feature::LINUX),
        (vec![556], feature::LINUX & !feature::INDIRECT_DESC),
    ]);
    // Not every driver knows of messages.
    let features = match random.one_in(5) {
        true => features & !Features::SEQPACKET.bits(),
        false => features,
    };
    let layout = if features & feature::INDIRECT_DESC == 0 {
        Layout::linux()
    } else {
        layout
    };
    let room = pieces.iter().sum::<usize>();
    let rx = RxBuffers {
        refill: random.pick(&[Refill::BelowHalf, Refill::Always]),
        ..RxBuffers::of(pieces)
    };
    let behaviour = Behaviour {
        // Who counts packets has larger buffers.
        cost_of_a_packet: if room > 1024 { 576 } else { 0 },
        buf_alloc: random.pick(&[128 << 10, 256 << 10, 1 << 20]),
        updates_unasked: !random.one_in(5),
        max_packet,
        layout,
        ..Behaviour::linux()
    };
    Setup {
        queue_size: random.pick(&[128, 256]),
        features,
        rx,
        behaviour,
        patience: Duration::from_secs(10),
        ..Setup::default()
    }
}
