//! A guest with a connection to an application, by the clock of the simulation.

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use tempfile::TempDir;
use vsock_packet::{Cid, GuestCid, PortNumber, VsockAddr};
use vsock_router::{HostSockets, Limits, Routers, Switch};
use vsock_testkit::{Guest, Setup, StreamId};

use super::device::{Device, Kicks};
use crate::config::GuestConfig;
use crate::cores::Cores;
use crate::events::Hub;
use crate::unix_socket::{self, SocketAccess, SocketPath};
use crate::worker::Worker;

/// Where applications listen.
pub(super) const PEER: VsockAddr = VsockAddr {
    cid: Cid::HOST,
    port: PortNumber::new(700),
};

/// A guest, and an application that it is connected to.
pub(super) struct Scene {
    pub(super) device: Device,
    pub(super) guest: Guest<Kicks>,
    pub(super) stream: StreamId,
    pub(super) application: UnixStream,
    listener: UnixListener,
    _socket: SocketPath,
    _dir: TempDir,
}

impl Scene {
    pub(super) fn set() -> Self {
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
        let stream = guest.start_connect(PEER).unwrap();
        rest(&mut device, &mut guest);
        let (application, _) = listener.accept().unwrap();
        Self {
            device,
            guest,
            stream,
            application,
            listener,
            _socket: socket,
            _dir: dir,
        }
    }

    /// The application writes a byte. How many the guest gets without any time going by.
    pub(super) fn write(&mut self) -> usize {
        self.application.write_all(b"!").unwrap();
        self.take()
    }

    /// How many bytes the guest gets without any time going by.
    pub(super) fn take(&mut self) -> usize {
        self.rest();
        let unread = self.guest.stream(self.stream).unread();
        self.guest.drop_unread(self.stream);
        unread
    }

    /// The guest sends so many bytes.
    pub(super) fn say(&mut self, bytes: usize) {
        let sent = self.guest.write_some(self.stream, &vec![7; bytes]);
        assert_eq!(sent.unwrap(), bytes);
        self.rest();
    }

    /// The next application that the guest is connected to.
    pub(super) fn accept(&self) -> UnixStream {
        self.listener.set_nonblocking(true).unwrap();
        self.listener.accept().unwrap().0
    }

    /// The guest takes what has come for it, and the device has no turn meanwhile.
    pub(super) fn hear(&mut self) {
        while self.guest.step().unwrap() > 0 {}
    }

    /// All do what they can.
    pub(super) fn rest(&mut self) {
        rest(&mut self.device, &mut self.guest);
    }
}

/// All do what they can.
fn rest(device: &mut Device, guest: &mut Guest<Kicks>) {
    while device.run() || guest.step().unwrap() > 0 {}
}
