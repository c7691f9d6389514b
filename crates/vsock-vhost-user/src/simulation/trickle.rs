//! When what an application writes little by little reaches the guest, by the clock of the
//! simulation.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use rustix::net::sockopt::set_socket_send_buffer_size;
use tempfile::TempDir;
use vsock_packet::{Cid, GuestCid, VsockAddr};
use vsock_router::{HostSockets, Limits, Routers, Switch};
use vsock_testkit::{Guest, Setup, StreamId};

use super::device::{self, Device, Kicks};
use crate::config::GuestConfig;
use crate::cores::Cores;
use crate::events::Hub;
use crate::poller::{EventFlags, Token};
use crate::trickle::PAUSE;
use crate::unix_socket::{self, SocketAccess, SocketPath};
use crate::worker::Worker;

/// Writes that are enough to be taken for a trickle.
const ENOUGH: usize = 20;

/// A guest, and an application that it is connected to.
struct Scene {
    device: Device,
    guest: Guest<Kicks>,
    stream: StreamId,
    application: UnixStream,
    _socket: SocketPath,
    _dir: TempDir,
}

impl Scene {
    fn set() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("vm");
        let cid = GuestCid::new(3).unwrap();
        let config = GuestConfig::new(cid, "", &path);
        let (listener, socket) = unix_socket::listen(&path, SocketAccess::default()).unwrap();
        let switch = Switch::new(Limits::default());
        let router = Arc::new(Routers::default().then(HostSockets::new(path.clone())));
        let (hub, cores) = (Arc::new(Hub::default()), Cores::default());
        let worker = Worker::new(&config, listener, router, &switch, &hub, &cores).unwrap();
        let (mut device, mut guest) = Device::start(worker, cid, Setup::default());
        let listener = UnixListener::bind(format!("{}_700", path.display())).unwrap();
        let peer = VsockAddr::new(Cid::HOST, 700);
        let stream = guest.start_connect(peer).unwrap();
        rest(&mut device, &mut guest);
        let (application, _) = listener.accept().unwrap();
        Self {
            device,
            guest,
            stream,
            application,
            _socket: socket,
            _dir: dir,
        }
    }

    /// The application writes a byte. How many the guest gets without any time going by.
    fn write(&mut self) -> usize {
        self.application.write_all(b"!").unwrap();
        self.take()
    }

    /// How many bytes the guest gets without any time going by.
    fn take(&mut self) -> usize {
        rest(&mut self.device, &mut self.guest);
        let unread = self.guest.stream(self.stream).unread();
        self.guest.drop_unread(self.stream);
        unread
    }

    /// The guest sends so many bytes.
    fn say(&mut self, bytes: usize) {
        let sent = self.guest.write_some(self.stream, &vec![7; bytes]);
        assert_eq!(sent.unwrap(), bytes);
        rest(&mut self.device, &mut self.guest);
    }

    /// The application writes until it is taken for one that trickles.
    fn begin(&mut self) {
        let written = (1..=ENOUGH).find(|_| self.write() == 0);
        assert!(written.is_some(), "nothing was gathered");
        device::pass(PAUSE);
        assert_eq!(self.take(), 1, "what was gathered comes after a pause");
    }
}

/// All do what they can.
fn rest(device: &mut Device, guest: &mut Guest<Kicks>) {
    while device.run() || guest.step().unwrap() > 0 {}
}

#[test]
fn a_trickle_is_gathered_for_a_pause_at_a_time() {
    let mut scene = Scene::set();
    scene.begin();
    for _ in 0..10 {
        for _ in 0..5 {
            device::pass(PAUSE / 10);
            assert_eq!(scene.write(), 0);
        }
        assert!(scene.device.deadline() <= Some(device::now() + PAUSE / 2));
        device::pass(PAUSE / 2);
        assert_eq!(scene.take(), 5);
    }
}

#[test]
fn what_is_written_now_and_then_comes_at_once() {
    let mut scene = Scene::set();
    scene.begin();
    for _ in 0..ENOUGH {
        device::pass(2 * PAUSE);
        assert_eq!(scene.take(), 0);
        assert_eq!(scene.write(), 1);
    }
}

#[test]
fn an_answer_comes_at_once() {
    let mut scene = Scene::set();
    for _ in 0..ENOUGH {
        scene.guest.write_some(scene.stream, b"?").unwrap();
        assert_eq!(scene.take(), 0);
        assert_eq!(scene.write(), 1);
    }
}

#[test]
fn the_end_of_a_trickle_comes_a_pause_after_all_before_it() {
    let mut scene = Scene::set();
    scene.begin();
    assert_eq!(scene.write(), 0);
    scene.application.shutdown(Shutdown::Write).unwrap();
    device::pass(PAUSE);
    assert_eq!(scene.take(), 1);
    device::pass(PAUSE);
    scene.take();
    assert!(scene.guest.stream(scene.stream).at_end());
}

#[test]
fn nothing_is_looked_after_when_a_trickle_has_dried_up() {
    let mut scene = Scene::set();
    scene.begin();
    device::pass(PAUSE);
    scene.take();
    let next = scene.device.deadline();
    assert!(
        next.is_none_or(|at| at > device::now() + 10 * PAUSE),
        "{next:?}"
    );
}

#[test]
fn what_could_not_be_watched_is_looked_after_while_the_guest_is_paused() {
    const BYTES: usize = 100_000;
    let mut scene = Scene::set();
    // A socket's size is chosen with the first of many bytes.
    scene.say(BYTES);
    scene.application.read_exact(&mut [0; BYTES]).unwrap();
    scene.begin();
    let worker = &mut scene.device.worker;
    let registry = worker.poller.registry();
    worker.connections.for_each_socket(|socket| {
        set_socket_send_buffer_size(socket, 5000).unwrap();
        // What is there already cannot be added.
        let nothing = EventFlags::empty();
        registry.add(socket, Token::Wake, nothing).unwrap();
    });
    scene.say(BYTES);
    let connections = &mut scene.device.worker.connections;
    connections.for_each_socket(|socket| registry.remove(socket).unwrap());
    scene.device.stop();
    device::pass(PAUSE);
    scene.application.set_nonblocking(true).unwrap();
    let mut heard = Vec::new();
    while let Err(error) = scene.application.read_to_end(&mut heard)
        && error.kind() == ErrorKind::WouldBlock
        && scene.device.run()
    {}
    assert_eq!(heard.len(), BYTES);
}
