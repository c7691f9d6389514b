//! Everything there is: the daemon, its VMs, the connections, and one thread that has them
//! all do what they can.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use vsock_packet::{Cid, SocketType, VsockAddr};

use crate::connection::Connection;
use crate::content::{Content, NUMBER_LEN, number_in};
use crate::daemon::Daemon;
use crate::host::HostSocket;
use crate::operator::Operator;
use crate::plan::{ACCEPTOR, Kind, OPENER, Plan};
use crate::random::Random;
use crate::tally::Tally;
use crate::vm::{HOST_PORT, MESSAGE_PORT, STREAM_PORT, Vm};
use crate::wire::{Given, Wire};

/// VMs of the configuration, and those added by the control socket.
const CONFIGURED: u32 = 3;
const ADDED: u32 = 2;
/// The CID of the first.
pub(crate) const FIRST_CID: u32 = 3;
/// Connections there are at a time.
const OPEN: usize = 60;
/// A connection on which nothing moves for so long hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The loop does not come round for so long only when the machine is busy: whoever waited
/// for an answer may have given up.
const LATE: Duration = Duration::from_millis(500);

/// The daemon gives up nobody who is connected sooner than this.
const DAEMONS_PATIENCE: Duration = Duration::from_secs(4);

/// The daemon's process is looked at so often.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Somebody who was accepted, and has not said the number of the connection.
struct Stranger {
    vm: usize,
    wire: Wire,
    heard: Vec<u8>,
    socket_type: SocketType,
    since: Instant,
}

/// Everything.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) random: Random,
    pub(crate) daemon: Daemon,
    pub(crate) operator: Operator,
    pub(crate) vms: Vec<Vm>,
    pub(crate) connections: BTreeMap<u64, Connection>,
    strangers: Vec<Stranger>,
    /// Ends that are to be closed, of no connection any more.
    leftovers: Vec<Wire>,
    next_number: u64,
    pub(crate) tally: Tally,
    /// Until then a refusal has a reason.
    pub(crate) refusals_until: Instant,
    last_turn: Instant,
    /// The time in all in which nothing could be done.
    pub(crate) stood_still: Duration,
    next_look: Instant,
}

impl World {
    /// Starts a daemon, with its VMs.
    pub(crate) fn start(program: &Path, directory: &Path, seed: u64) -> Result<Self> {
        let mut random = Random::new(seed);
        fs::create_dir(directory.join("vms")).context("make a directory for the configuration")?;
        let cids = FIRST_CID..FIRST_CID + CONFIGURED + ADDED;
        let vms: Vec<_> = cids
            .map(|cid| Vm::new(directory, cid, cid < FIRST_CID + CONFIGURED))
            .collect();
        for vm in vms.iter().filter(|vm| vm.is_configured) {
            vm.write_configuration()?;
        }
        let daemon = Daemon::start(program, directory, random.next())?;
        let operator = Operator::new(&directory.join("control"));
        let now = Instant::now();
        let mut world = Self {
            seed,
            random,
            daemon,
            operator,
            vms,
            connections: BTreeMap::new(),
            strangers: Vec::new(),
            leftovers: Vec::new(),
            next_number: 1,
            tally: Tally::new(),
            refusals_until: now,
            last_turn: now,
            stood_still: Duration::ZERO,
            next_look: now,
        };
        for index in 0..world.vms.len() {
            if !world.vms[index].is_configured {
                world.vms[index].state = crate::vm::State::Removed;
                world.add_vm(index);
            }
        }
        Ok(world)
    }

    /// One round: everybody does what can be done without waiting, and new connections are
    /// opened, up to a number.
    pub(crate) fn turn(&mut self, opens: bool) -> Result<()> {
        let now = Instant::now();
        let late = now.duration_since(self.last_turn);
        if late > LATE {
            self.forgive(late, now);
        }
        self.last_turn = now;
        if now >= self.next_look {
            self.next_look = now + LOOK_EVERY;
            self.daemon.check()?;
            let (open, daemon) = (self.connections.len(), &self.daemon);
            self.tally.tell(now, open, daemon)?;
        }
        self.take_results()?;
        let mut moved = self.go_on(now)?;
        if opens && self.connections.len() < OPEN {
            self.open()?;
            moved = true;
        }
        self.accept(now)?;
        moved |= self.meet_strangers(now)?;
        moved |= self.move_connections(now)?;
        self.close_leftovers()?;
        if !moved {
            sleep(Duration::from_micros(300));
        }
        Ok(())
    }

    /// Nothing could be done for so long. What hung then may not hang any more, and whoever
    /// waited for an answer may have been told that there is none.
    fn forgive(&mut self, late: Duration, now: Instant) {
        self.refusals_until = now + PATIENCE;
        self.stood_still += late;
        for connection in self.connections.values_mut() {
            connection.touched += late;
            if late > DAEMONS_PATIENCE {
                connection.disturb("the machine stood still");
            }
        }
        for stranger in &mut self.strangers {
            stranger.since += late;
        }
    }

    /// VMs and servers go on when it is time.
    fn go_on(&mut self, now: Instant) -> Result<bool> {
        let mut moved = false;
        for index in 0..self.vms.len() {
            let vm = &mut self.vms[index];
            if vm.go_on(now, &mut self.random)? {
                for connection in self.connections.values_mut() {
                    connection.touched = now;
                }
            }
            moved |= self.vms[index].step()?;
        }
        Ok(moved)
    }

    /// Opens one connection, if there is anybody to open it.
    fn open(&mut self) -> Result<()> {
        let plan = Plan::make(&mut self.random, self.vms.len());
        let number = self.next_number;
        let (vm, peer) = (&self.vms[plan.vm], &self.vms[plan.peer]);
        if !vm.is_up() {
            return Ok(());
        }
        let steady = |vm: &Vm| vm.is_steady() && vm.service.is_some();
        let mut may_be_refused = Instant::now() < self.refusals_until || !steady(vm);
        // The daemon may do it sooner than it says so.
        let is_changed = vm.change.is_some() || peer.change.is_some();
        let mut sent = 0;
        let wire = match plan.kind {
            Kind::HostToGuest => {
                let content = Content::of_opener(self.seed, number);
                let early = self.random.below(200).min(plan.parts[OPENER].total);
                let bytes = content.bytes(0, early as usize);
                let dialed = HostSocket::dial(&vm.uds, STREAM_PORT, &bytes)?;
                let Some(socket) = dialed else {
                    self.tally.refused += 1;
                    return Ok(());
                };
                if self.random.one_in(4) {
                    socket.shrink(self.random.magnitude(4096, 65536) as usize)?;
                }
                sent = early;
                Wire::Host(socket)
            }
            Kind::GuestToHost => self.connect(&plan, VsockAddr::new(Cid::HOST, HOST_PORT))?,
            Kind::Siblings(socket_type) => {
                may_be_refused |= !steady(peer) || !vm.shares_a_group(peer);
                let both_know = vm.knows_messages && peer.knows_messages;
                may_be_refused |= socket_type == SocketType::Seqpacket && !both_know;
                let port = match socket_type {
                    SocketType::Stream => STREAM_PORT,
                    SocketType::Seqpacket => MESSAGE_PORT,
                };
                let target = peer.at(port);
                self.connect(&plan, target)?
            }
        };
        self.next_number += 1;
        self.tally.opened += 1;
        let mut connection = Connection::open(self.seed, number, plan, wire, sent);
        connection.may_be_refused = may_be_refused;
        if is_changed {
            connection.disturb("one of its VMs was changed meanwhile");
        }
        self.connections.insert(number, connection);
        Ok(())
    }

    fn connect(&mut self, plan: &Plan, peer: VsockAddr) -> Result<Wire> {
        let (socket_type, vm) = (plan.socket_type(), &mut self.vms[plan.vm]);
        let life = vm.life;
        let guest = vm.guest().context("the VM is up")?;
        Ok(Wire::Guest {
            vm: plan.vm,
            life,
            id: guest.start_connect_as(socket_type, peer)?,
            socket_type,
        })
    }

    /// Servers, in guests and on the host, accept who has come.
    fn accept(&mut self, now: Instant) -> Result<()> {
        for index in 0..self.vms.len() {
            let (vm, strangers) = (&mut self.vms[index], &mut self.strangers);
            let mut met = |wire, socket_type| {
                strangers.push(Stranger {
                    vm: index,
                    wire,
                    heard: Vec::new(),
                    socket_type,
                    since: now,
                });
            };
            while let Some(service) = &vm.service
                && let Some(socket) = service.accept()?
            {
                met(Wire::Host(socket), SocketType::Stream);
            }
            let life = vm.life;
            let Some(guest) = vm.guest() else {
                continue;
            };
            let ports = [
                (STREAM_PORT, SocketType::Stream),
                (MESSAGE_PORT, SocketType::Seqpacket),
            ];
            for (port, socket_type) in ports {
                while let Some(id) = guest.accepted(port) {
                    let wire = Wire::Guest {
                        vm: index,
                        life,
                        id,
                        socket_type,
                    };
                    met(wire, socket_type);
                }
            }
        }
        Ok(())
    }

    /// Hears which connections those are that were accepted.
    fn meet_strangers(&mut self, now: Instant) -> Result<bool> {
        let mut moved = false;
        for mut stranger in std::mem::take(&mut self.strangers) {
            if stranger.wire.has_vanished(&self.vms) {
                continue;
            }
            if !stranger.wire.is_served(&self.vms) {
                stranger.since = now;
                self.strangers.push(stranger);
                continue;
            }
            let most = NUMBER_LEN - stranger.heard.len();
            match stranger.wire.read(&mut self.vms, most)? {
                Given::Bytes(bytes) => {
                    moved = true;
                    stranger.heard.extend(bytes);
                }
                Given::Nothing => ensure!(
                    now.duration_since(stranger.since) < PATIENCE,
                    "a connection was accepted, and for {PATIENCE:?} neither its number nor \
                     its end came: {:?}, heard {:?}\n{}the daemon has {:?}\n{}",
                    stranger.wire,
                    stranger.heard,
                    stranger.wire.view(&mut self.vms),
                    self.operator.get("/connections"),
                    self.unrest()
                ),
                // Its opener knows why.
                Given::End | Given::Error(_) => {
                    self.leftovers.push(stranger.wire);
                    continue;
                }
            }
            match number_in(&stranger.heard) {
                None => self.strangers.push(stranger),
                Some(number) => self.introduce(number, stranger)?,
            }
        }
        Ok(moved)
    }

    fn introduce(&mut self, number: u64, stranger: Stranger) -> Result<()> {
        ensure!(
            (1..self.next_number).contains(&number),
            "an opener said a number that is no connection's: {number:#x}"
        );
        // It may be over at its opener's end.
        let Some(connection) = self.connections.get_mut(&number) else {
            self.leftovers.push(stranger.wire);
            return Ok(());
        };
        ensure!(
            connection.plan.socket_type() == stranger.socket_type,
            "a socket of another type has accepted\n{connection}"
        );
        let accepted = connection.accept(stranger.wire, &stranger.heard);
        accepted.with_context(|| connection.to_string())
    }

    fn move_connections(&mut self, now: Instant) -> Result<bool> {
        let mut moved = false;
        let mut over = Vec::new();
        for (&number, connection) in &mut self.connections {
            match connection.turn(&mut self.vms, now) {
                Ok(bytes) => self.tally.bytes += bytes,
                Err(error) => {
                    let view = connection.guests_view(&mut self.vms);
                    return Err(error.context(format!("{connection}{view}")));
                }
            }
            moved |= connection.touched == now;
            if connection.is_over() {
                over.push(number);
            } else if now.duration_since(connection.touched) > PATIENCE {
                let list = self.operator.get("/connections");
                return Err(anyhow!(
                    "nothing has moved for {PATIENCE:?} on {connection}{}\nthe daemon has {list:?}",
                    connection.guests_view(&mut self.vms)
                ));
            }
        }
        for number in over {
            if let Some(connection) = self.connections.remove(&number) {
                self.count(&connection)?;
            }
        }
        Ok(moved)
    }

    fn count(&mut self, connection: &Connection) -> Result<()> {
        let tally = &mut self.tally;
        if connection.was_refused() {
            tally.refused += 1;
            let has_reason = connection.may_be_refused || connection.disturbed.is_some();
            tally.refused_unasked += u64::from(!has_reason);
            return Ok(());
        }
        if connection.is_complete() {
            tally.complete += 1;
        } else {
            tally.cut += 1;
        }
        Ok(())
    }

    fn close_leftovers(&mut self) -> Result<()> {
        let mut kept = Vec::new();
        for mut wire in std::mem::take(&mut self.leftovers) {
            let is_served = wire.is_served(&self.vms);
            if !wire.has_vanished(&self.vms) && (!is_served || !wire.close(&mut self.vms)?) {
                kept.push(wire);
            }
        }
        self.leftovers = kept;
        Ok(())
    }

    /// Whether no connection is there any more, and every VM is as it should be.
    pub(crate) fn is_quiet(&self) -> bool {
        let served = |vm: &Vm| vm.is_steady() && vm.service.is_some();
        self.connections.is_empty()
            && self.strangers.is_empty()
            && self.leftovers.is_empty()
            && self.vms.iter().all(served)
    }

    /// What keeps it from being quiet.
    pub(crate) fn unrest(&mut self) -> String {
        let states: Vec<_> = self
            .vms
            .iter()
            .map(|vm| format!("VM {} {:?}, {:?}", vm.cid, vm.state, vm.change))
            .collect();
        let (connections, vms) = (self.connections.values(), &mut self.vms);
        let describe = |one: &Connection| format!("{one}{}", one.guests_view(vms));
        let connections: Vec<_> = connections.map(describe).collect();
        format!(
            "{}; {} strangers, {} to be closed; connections:\n{}",
            states.join("; "),
            self.strangers.len(),
            self.leftovers.len(),
            connections.join("\n")
        )
    }

    /// Something happens to a VM that may end its connections.
    pub(crate) fn disturb(&mut self, vm: usize, why: &'static str) {
        let concerned = |connection: &&mut Connection| connection.plan.concerns(vm);
        for connection in self.connections.values_mut().filter(concerned) {
            connection.disturb(why);
        }
    }

    /// The host's server of a VM dies, with all that it has accepted.
    pub(crate) fn kill_service(&mut self, vm: usize, until: Instant) {
        self.vms[vm].kill_service(until);
        // Those it had not heard of are among them.
        self.strangers
            .retain(|stranger| stranger.vm != vm || !matches!(stranger.wire, Wire::Host(_)));
        for connection in self.connections.values_mut() {
            if connection.plan.kind != Kind::GuestToHost || connection.plan.vm != vm {
                continue;
            }
            if connection.side(ACCEPTOR).is_none() {
                connection.disturb("the host's server died");
            }
            connection.kill_application();
        }
    }
}
