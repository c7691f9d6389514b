//! The house: guests and their devices, host applications, what they say, and chance.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vsock_packet::{Cid, GuestCid, VsockAddr};
use vsock_router::{HostSockets, Limits, Routers, Siblings, Switch};
use vsock_testkit::{Behaviour, Guest, Layout, Random, RxBuffers, Setup, feature};

use super::Outcome;
use super::application::Application;
use super::device::{self, Device, Kicks};
use super::mischief::Mischief;
use super::talk::{End, Talk};
use crate::config::GuestConfig;
use crate::cores::Cores;
use crate::events::Hub;
use crate::unix_socket::{self, SocketAccess};
use crate::worker::Worker;

/// How often all may do what they can before the house must be at rest.
const MAX_ROUNDS: usize = 5000;
/// Turns that a device may take one after the other.
const MAX_TURNS: usize = 1000;
/// Time after which a guest that is stopped may lose connections.
const LONG: Duration = Duration::from_secs(1);
/// Ports of talks; those below are nobody's.
const FIRST_PORT: u32 = 2000;

pub(super) struct House {
    device: Device,
    guest: Guest<Kicks>,
    uds_path: PathBuf,
    is_stopped: bool,
    /// It does what it should not.
    mischief: Option<Mischief>,
    _socket: unix_socket::SocketPath,
}

/// Those who are there.
#[derive(Default)]
pub(super) struct Guests(Vec<Option<House>>);

impl Guests {
    /// A guest, unless it is stopped or gone.
    pub(super) fn of(&mut self, index: usize) -> Option<&mut Guest<Kicks>> {
        let house = self.0.get_mut(index)?.as_mut()?;
        (!house.is_stopped).then_some(&mut house.guest)
    }

    /// Whether it is there, and cannot do anything.
    pub(super) fn is_stopped(&self, index: usize) -> bool {
        matches!(self.0.get(index), Some(Some(house)) if house.is_stopped)
    }

    fn houses(&mut self) -> impl Iterator<Item = &mut House> {
        self.0.iter_mut().flatten()
    }
}

pub(super) struct World {
    random: Random,
    guests: Guests,
    talks: Vec<Talk>,
    switch: Arc<Switch>,
    dir: TempDir,
    tells: bool,
}

impl World {
    pub(super) fn new(seed: u64, tells: bool) -> Self {
        let mut builder = tempfile::Builder::new();
        let dir = builder.prefix("vsock-simulation-").tempdir_in("/dev/shm");
        let mut world = Self {
            random: Random::new(seed),
            guests: Guests::default(),
            talks: Vec::new(),
            switch: Arc::new(Switch::new(Limits::default())),
            dir: dir.unwrap(),
            tells,
        };
        for index in 0..2 + world.random.below(2) {
            // The first two are well behaved.
            let is_hostile = index > 1 && world.random.chance(70);
            let house = world.house(index, is_hostile);
            world.guests.0.push(Some(house));
        }
        world
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        if self.tells {
            eprintln!("{}", what());
        }
    }

    fn house(&mut self, index: usize, is_hostile: bool) -> House {
        let cid = cid(index);
        let uds_path = self.dir.path().join(index.to_string());
        let mut config = GuestConfig::new(cid, "", &uds_path);
        config.groups = vec!["all".to_owned()];
        config.tx_buffer_size = self.random.pick(&[256 << 10, 64 << 10, 20_000]);
        let (listener, socket) = unix_socket::listen(&uds_path, SocketAccess::default()).unwrap();
        let host = HostSockets::new(uds_path.clone());
        let siblings = Siblings(Arc::clone(&self.switch));
        let router = Arc::new(Routers::default().then(host).then(siblings));
        let (hub, cores) = (Arc::new(Hub::default()), Cores::default());
        let worker = Worker::new(&config, listener, router, &self.switch, &hub, &cores).unwrap();
        let setup = self.setup();
        self.tell(|| format!("guest {index}, hostile: {is_hostile}: {setup:?}"));
        let (mut device, guest) = Device::start(worker, cid, setup);
        device.socket_size = self.random.pick(&[None, Some(5000), Some(20_000)]);
        House {
            device,
            guest,
            mischief: is_hostile.then(|| Mischief::new(&uds_path)),
            uds_path,
            is_stopped: false,
            _socket: socket,
        }
    }

    fn setup(&mut self) -> Setup {
        let random = &mut self.random;
        let mut behaviour = Behaviour {
            updates_unasked: random.chance(80),
            buf_alloc: random.pick(&[256 << 10, 256 << 10, 64 << 10, 2048]),
            max_packet: random.pick(&[64 << 10, 4096, 100]),
            layout: match random.below(4) {
                0 => Layout::whole(),
                1 => Layout::payload_in(5),
                _ => Layout::linux(),
            },
            ..Behaviour::linux()
        };
        // Only Linux counts packets, and it has large buffers.
        if behaviour.buf_alloc < 64 << 10 {
            behaviour.cost_of_a_packet = 0;
        }
        let rx = match random.below(4) {
            0 => RxBuffers::of([44, 4096]),
            1 => RxBuffers::of([512]),
            _ => RxBuffers::default(),
        };
        let event_idx = random.chance(70);
        Setup {
            queue_size: random.pick(&[128, 128, 32, 16]),
            features: if event_idx {
                feature::LINUX
            } else {
                feature::LINUX & !feature::EVENT_IDX
            },
            rx,
            behaviour,
            ..Setup::default()
        }
    }

    /// Something happens.
    pub(super) fn step(&mut self) {
        let index = self.random.below(self.guests.0.len());
        match self.random.below(1000) {
            0..60 => self.open(index),
            60..62 => self.restart(index),
            62..65 => self.kill(),
            65..75 => self.stop(index),
            75..120 => self.resume(index),
            120..180 => {
                let time = Duration::from_micros(self.random.size(50_000) as u64);
                device::pass(time);
            }
            180..185 => self.pass_long(),
            185..230 => self.misbehave(index),
            230..500 => {
                if let Some(house) = &mut self.guests.0[index] {
                    house.device.run();
                }
            }
            500..620 => {
                self.step_guest(index);
            }
            _ => self.act(),
        }
    }

    fn step_guest(&mut self, index: usize) -> bool {
        let is_hostile = matches!(&self.guests.0[index], Some(house) if house.mischief.is_some());
        let Some(guest) = self.guests.of(index) else {
            return false;
        };
        match guest.step() {
            Ok(count) => count > 0,
            // Its rings are not what it takes them for.
            Err(_) if is_hostile => false,
            Err(error) => panic!("guest {index}: {error}"),
        }
    }

    /// Somebody asks somebody for a connection.
    fn open(&mut self, index: usize) {
        let other = self.random.below(self.guests.0.len());
        let number = self.talks.len() as u64;
        let port = FIRST_PORT + number as u32;
        let is_vain = self.random.chance(10);
        let is_honest = |house: &&mut House| house.mischief.is_none() && !house.is_stopped;
        let Some(house) = self.guests.0[index].as_mut().filter(is_honest) else {
            return;
        };
        let mut talk = match self.random.below(3) {
            0 => {
                let path = format!("{}_{port}", house.uds_path.display());
                let asked = if is_vain {
                    End::Nobody
                } else {
                    let listener = UnixListener::bind(path).unwrap();
                    listener.set_nonblocking(true).unwrap();
                    End::Listener(listener)
                };
                let peer = VsockAddr::new(Cid::HOST, port);
                let id = house.guest.start_connect(peer).unwrap();
                let asks = End::Stream { guest: index, id };
                Talk::new(number, [asks, asked], [Some(index), None])
            }
            1 => {
                let asked = listen(house, index, port, is_vain);
                let asks = Application::asking(&house.uds_path, port);
                let asks = End::Application(asks);
                Talk::new(number, [asks, asked], [None, Some(index)])
            }
            _ if other == index => return,
            _ => {
                let Some(target) = self.guests.0[other].as_mut().filter(is_honest) else {
                    return;
                };
                let asked = listen(target, other, port, is_vain);
                let peer = VsockAddr::new(cid(other), port);
                let Some(guest) = self.guests.of(index) else {
                    return;
                };
                let id = guest.start_connect(peer).unwrap();
                let asks = End::Stream { guest: index, id };
                Talk::new(number, [asks, asked], [Some(index), Some(other)])
            }
        };
        self.tell(|| format!("talk {number}: {:?}, vain: {is_vain}", talk.who));
        for way in &mut talk.ways {
            way.wanted = self.random.size(60_000) as u64;
        }
        self.talks.push(talk);
    }

    /// Somebody goes on with what they do.
    fn act(&mut self) {
        if self.talks.is_empty() {
            return;
        }
        // The latest ones, mostly.
        let back = self.random.size(self.talks.len() - 1);
        let index = self.talks.len() - 1 - back;
        let (side, max) = (self.random.below(2), 1 + self.random.size(300_000));
        let (talk, guests) = (&mut self.talks[index], &mut self.guests);
        let (what, done) = match self.random.below(100) {
            0..15 => ("begins", talk.begin(guests, max % 20)),
            15..55 => ("says", talk.say(side, max, guests)),
            55..90 => ("hears", talk.hear(side, max, guests)),
            90..96 => ("ends", talk.end(side, guests)),
            96..99 => ("begins", talk.begin(guests, max)),
            _ => ("leaves", talk.leave(side, guests)),
        };
        if done {
            let ways = &self.talks[index].ways;
            let state = [&ways[0], &ways[1]].map(|way| (way.said, way.heard));
            self.tell(|| format!("talk {index}: {side} {what} {max}: {state:?}"));
        }
    }

    /// All talks of this guest end, for whatever reason.
    fn excuse(&mut self, index: usize) {
        for talk in &mut self.talks {
            talk.is_excused |= talk.who.contains(&Some(index));
        }
    }

    fn restart(&mut self, index: usize) {
        self.excuse(index);
        if let Some(house) = &mut self.guests.0[index] {
            house.device.stop();
            house.guest.forget_all();
            house.device.resume(true);
            house.is_stopped = false;
        }
        self.tell(|| format!("guest {index} starts anew"));
    }

    fn stop(&mut self, index: usize) {
        if let Some(house) = &mut self.guests.0[index]
            && !std::mem::replace(&mut house.is_stopped, true)
        {
            house.device.stop();
            self.tell(|| format!("guest {index} stops"));
        }
        // It refuses whoever asks meanwhile.
        for talk in &mut self.talks {
            talk.is_excused |=
                talk.who[1] == Some(index) && !matches!(talk.ends[1], End::Stream { .. });
        }
    }

    fn resume(&mut self, index: usize) {
        if let Some(house) = &mut self.guests.0[index]
            && std::mem::replace(&mut house.is_stopped, false)
        {
            house.device.resume(false);
            self.tell(|| format!("guest {index} goes on"));
        }
    }

    /// The operator ends a connection.
    fn kill(&mut self) {
        if self.talks.is_empty() {
            return;
        }
        let number = self.random.below(self.talks.len());
        let talk = &mut self.talks[number];
        let Some(End::Stream { guest, id }) = talk
            .ends
            .iter()
            .find(|end| matches!(end, End::Stream { .. }))
        else {
            return;
        };
        let Some(Some(house)) = self.guests.0.get_mut(*guest) else {
            return;
        };
        let (own, peer) = (
            house.guest.stream(*id).local(),
            house.guest.stream(*id).peer(),
        );
        let worker = &mut house.device.worker;
        let ends = |connection: &vsock_connection::Connection| {
            connection.guest() == own && connection.host() == peer
        };
        let mut killed = worker
            .connections
            .withdraw(|connection, _| ends(connection))
            > 0;
        for sibling in worker.member.list() {
            let is_it = [(own, peer), (peer, own)].contains(&(sibling.from, sibling.to));
            killed |= is_it && worker.member.kill(sibling.id, device::now());
        }
        worker.poller.waker().wake();
        talk.is_excused |= killed;
        self.tell(|| format!("talk {number} is killed: {killed}"));
    }

    fn misbehave(&mut self, index: usize) {
        let targets: Vec<_> = (0..self.guests.0.len())
            .map(|index| cid(index).cid())
            .collect();
        if let Some(house) = &mut self.guests.0[index]
            && let Some(mischief) = &mut house.mischief
            && !house.is_stopped
        {
            mischief.act(&mut house.guest, &targets, &mut self.random);
        }
    }

    /// Time for many a time-out.
    fn pass_long(&mut self) {
        self.calm();
        let time = LONG + Duration::from_millis(self.random.size(12_000) as u64);
        for index in 0..self.guests.0.len() {
            if self.guests.is_stopped(index) {
                self.excuse(index);
            }
        }
        for talk in &mut self.talks {
            if let End::Application(application) = &talk.ends[0] {
                talk.is_excused |= !application.is_greeted();
            }
        }
        device::pass(time);
        self.tell(|| format!("{time:?} go by"));
        self.calm();
    }

    /// Guests and devices do all they can; applications do nothing.
    fn calm(&mut self) {
        for _ in 0..MAX_ROUNDS {
            if !self.work() {
                return;
            }
        }
        panic!("no rest");
    }

    fn work(&mut self) -> bool {
        let mut is_busy = false;
        for index in 0..self.guests.0.len() {
            is_busy |= self.step_guest(index);
            if let Some(house) = &mut self.guests.0[index] {
                let turns = (0..MAX_TURNS).take_while(|_| house.device.run()).count();
                assert!(turns < MAX_TURNS, "guest {index}'s worker spins");
                is_busy |= turns > 0;
            }
        }
        is_busy
    }

    /// All finish what they have begun.
    pub(super) fn finish(&mut self) -> Outcome {
        self.tell(|| "all finish".to_owned());
        for index in 0..self.guests.0.len() {
            self.resume(index);
        }
        self.settle(Duration::from_secs(30));
        for talk in &self.talks {
            talk.check();
        }
        self.dismiss();
        self.settle(Duration::from_secs(70));
        self.check_empty();
        Outcome {
            talks: self.talks.len(),
            whole: self.talks.iter().filter(|talk| talk.is_whole()).count(),
            bytes: self.talks.iter().map(Talk::heard).sum(),
        }
    }

    /// Hostile guests leave, and whoever waits for what will never come.
    fn dismiss(&mut self) {
        for (index, house) in self.guests.0.iter_mut().enumerate() {
            if let Some(mut house) = house.take_if(|house| house.mischief.is_some()) {
                house.device.worker.end_session();
                self.switch.leave(cid(index), device::now());
            }
        }
        for talk in &mut self.talks {
            for side in 0..2 {
                talk.leave(side, &mut self.guests);
            }
        }
    }

    fn settle(&mut self, patience: Duration) {
        let end = device::now() + patience;
        for _ in 0..MAX_ROUNDS {
            let mut is_busy = self.work();
            for talk in &mut self.talks {
                is_busy |= talk.begin(&mut self.guests, usize::MAX);
                for side in 0..2 {
                    is_busy |= talk.finish(side, &mut self.guests);
                }
            }
            if is_busy {
                continue;
            }
            match self.next_deadline() {
                Some(at) if at <= end => device::pass(at.saturating_duration_since(device::now())),
                _ => return,
            }
        }
        panic!("no rest");
    }

    fn next_deadline(&mut self) -> Option<Instant> {
        self.guests
            .houses()
            .filter_map(|house| house.device.deadline())
            .min()
    }

    /// Nothing is left, and nobody is blamed for anything.
    fn check_empty(&mut self) {
        // A hostile one uses ports again at once: what was on its way to the connection before
        // looks wrong on the next one, and no device can tell.
        let is_hostile_there = self.guests.0.iter().any(Option::is_none);
        for (index, house) in self.guests.0.iter_mut().enumerate() {
            let Some(house) = house else { continue };
            let worker = &mut house.device.worker;
            assert_eq!(
                worker.connections.len(),
                0,
                "guest {index}: {:?}",
                worker.connections
            );
            assert_eq!(worker.connections.promised(), 0, "guest {index}");
            assert_eq!(worker.member.connections(), 0, "guest {index}");
            assert_eq!(worker.member.charged(), 0, "guest {index}");
            assert_eq!(worker.poller.armed(), None, "guest {index}");
            let counted = worker.counters.values(worker.member.counters());
            let blamed = counted.violations
                + counted.invalid_headers
                + counted.malformed_chains
                + counted.faults;
            let siblings = counted.siblings.violations;
            assert!(
                siblings == 0 || is_hostile_there,
                "guest {index}: {counted:?}"
            );
            assert_eq!(blamed, 0, "guest {index}: {counted:?}");
            check_counted(index, &counted, &self.talks);
        }
    }
}

/// What was counted is what was said, unless something was lost on the way.
fn check_counted(index: usize, counted: &crate::CounterValues, talks: &[Talk]) {
    let own = || talks.iter().filter(|talk| talk.who.contains(&Some(index)));
    if !own().all(|talk| talk.is_vain || talk.is_whole()) {
        return;
    }
    let said = |by: Option<usize>| -> u64 {
        let talks = own().filter(|talk| !talk.is_vain);
        let ways = talks.flat_map(|talk| talk.who.iter().zip(&talk.ways));
        ways.filter(|(who, _)| **who == by)
            .map(|(_, way)| way.said)
            .sum()
    };
    assert_eq!(counted.tx_bytes, said(Some(index)), "guest {index}");
    assert_eq!(counted.rx_bytes, said(None), "guest {index}");
}

fn listen(house: &mut House, index: usize, port: u32, is_vain: bool) -> End {
    if is_vain {
        return End::Nobody;
    }
    house.guest.listen(port);
    End::Port { guest: index, port }
}

pub(super) fn cid(index: usize) -> GuestCid {
    GuestCid::new(3 + index as u64).unwrap()
}
