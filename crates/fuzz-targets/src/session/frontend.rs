//! The frontend's end of the socket, and all that it hands over.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, Mode, OFlags, ftruncate, memfd_create, open};
use rustix::io::{dup, pwrite, write};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pipe::{PipeFlags, pipe_with};

use super::driver::{RINGS, Ring};
use super::messages::{Fd, Message, longs, message, request, words};

/// The guest's memory, in bytes, and where the frontend says it has it.
pub(super) const MEMORY_SIZE: u64 = 256 << 10;
pub(super) const USER: u64 = 0x7f00_0000_0000;
/// No frontend has to send more than this at once.
const MAX_FDS: usize = 8;
/// A server that takes nothing for so long does not live.
const PATIENCE: Duration = Duration::from_secs(20);
/// VERSION_1, INDIRECT_DESC, EVENT_IDX, PROTOCOL_FEATURES, STREAM and SEQPACKET.
const FEATURES: u64 = 1 << 32 | 1 << 28 | 1 << 29 | 1 << 30 | 3;
/// MQ, REPLY_ACK, BACKEND_REQ, CONFIG, RESET_DEVICE and CONFIGURE_MEM_SLOTS.
const PROTOCOL_FEATURES: u64 = 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 13 | 1 << 15;

/// The memory that the guest and the server share.
pub(super) struct SharedMemory(OwnedFd);

impl SharedMemory {
    fn new() -> Self {
        let memory = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memory, MEMORY_SIZE).unwrap();
        Self(memory)
    }

    pub(super) fn resize(&self, len: u64) {
        ftruncate(&self.0, len).unwrap();
    }

    /// Writes as much as there is room for.
    pub(super) fn write(&self, at: u64, bytes: &[u8]) {
        let room = MEMORY_SIZE.saturating_sub(at).min(bytes.len() as u64);
        pwrite(&self.0, &bytes[..room as usize], at).unwrap();
    }
}

/// A connected frontend.
pub(super) struct Frontend {
    socket: UnixStream,
    /// The server has ended the session.
    over: bool,
    memory: SharedMemory,
    /// Some that wait and some that do not.
    events: Vec<OwnedFd>,
    pipe: (OwnedFd, OwnedFd),
    pair: (UnixStream, UnixStream),
    null: OwnedFd,
}

impl Frontend {
    pub(super) fn connect(path: &Path) -> Self {
        let socket = UnixStream::connect(path).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        let event = |flags| eventfd(0, flags | EventfdFlags::CLOEXEC).unwrap();
        let non_blocking = EventfdFlags::NONBLOCK;
        let kinds = [
            non_blocking,
            non_blocking,
            EventfdFlags::empty(),
            non_blocking,
        ];
        Self {
            socket,
            over: false,
            memory: SharedMemory::new(),
            events: kinds.into_iter().map(event).collect(),
            pipe: pipe_with(PipeFlags::CLOEXEC).unwrap(),
            pair: UnixStream::pair().unwrap(),
            null: open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap(),
        }
    }

    pub(super) fn memory(&self) -> &SharedMemory {
        &self.memory
    }

    fn fd(&self, fd: Fd) -> BorrowedFd<'_> {
        match fd {
            Fd::Memory => self.memory.0.as_fd(),
            Fd::Event(which) => self.event(which.into()),
            Fd::PipeReader => self.pipe.0.as_fd(),
            Fd::PipeWriter => self.pipe.1.as_fd(),
            Fd::Socket => self.pair.0.as_fd(),
            Fd::Null => self.null.as_fd(),
        }
    }

    fn event(&self, which: usize) -> BorrowedFd<'_> {
        self.events[which % self.events.len()].as_fd()
    }

    /// Kicks a ring, as they were set up.
    pub(super) fn kick(&self, which: usize) {
        // One that is full and would wait is not kicked.
        let count = 1u64.to_ne_bytes();
        if let Ok(event) = dup(self.event(which)) {
            let _ = write(event, &count);
        }
    }

    pub(super) fn say(&mut self, message: &Message) {
        let count = message.fds.len().min(MAX_FDS);
        self.send(&message.bytes(), &message.fds[..count]);
    }

    /// Sends bytes, with descriptors, and reads away what was answered.
    pub(super) fn send(&mut self, bytes: &[u8], fds: &[Fd]) {
        if self.over || bytes.is_empty() {
            return;
        }
        let sent = self.send_message(bytes, fds);
        self.over = sent.is_err() || !self.read_away();
        let timed_out = matches!(sent, Err(rustix::io::Errno::AGAIN));
        assert!(!timed_out, "the server takes nothing for {PATIENCE:?}");
    }

    fn send_message(&self, bytes: &[u8], fds: &[Fd]) -> rustix::io::Result<()> {
        let fds: Vec<_> = fds.iter().map(|fd| self.fd(*fd)).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let parts = [IoSlice::new(bytes)];
        sendmsg(&self.socket, &parts, &mut ancillary, SendFlags::NOSIGNAL).map(drop)
    }

    /// Reads what is there. `false` when there will be nothing more.
    fn read_away(&mut self) -> bool {
        let mut bytes = [0; 4096];
        self.socket.set_nonblocking(true).unwrap();
        let read = self.socket.read(&mut bytes);
        self.socket.set_nonblocking(false).unwrap();
        match read {
            Ok(count) => count > 0,
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }

    /// Says all that a frontend says to begin with.
    pub(super) fn set_up(&mut self) {
        let table = [words(&[1, 0]), longs(&[0, MEMORY_SIZE, USER, 0])].concat();
        for (number, body, fds) in [
            (request::GET_FEATURES, Vec::new(), &[][..]),
            (request::GET_PROTOCOL_FEATURES, Vec::new(), &[]),
            (
                request::SET_PROTOCOL_FEATURES,
                longs(&[PROTOCOL_FEATURES]),
                &[],
            ),
            (request::SET_OWNER, Vec::new(), &[]),
            (request::SET_FEATURES, longs(&[FEATURES]), &[]),
            (request::SET_MEM_TABLE, table, &[Fd::Memory]),
        ] {
            self.send(&message(number, &body), fds);
        }
        for (queue, ring) in RINGS.iter().enumerate() {
            self.start_ring(queue as u8, ring);
        }
    }

    fn start_ring(&mut self, queue: u8, ring: &Ring) {
        let index = u32::from(queue);
        let [table, used, available] = [ring.table, ring.used, ring.available];
        let areas = longs(&[USER + table, USER + used, USER + available, 0]);
        let address = [words(&[index, 0]), areas].concat();
        for (number, body, fds) in [
            (
                request::SET_VRING_NUM,
                words(&[index, ring.size.into()]),
                &[][..],
            ),
            (request::SET_VRING_BASE, words(&[index, 0]), &[]),
            (request::SET_VRING_ADDR, address, &[]),
            (
                request::SET_VRING_KICK,
                longs(&[index.into()]),
                &[Fd::Event(queue)],
            ),
            (
                request::SET_VRING_CALL,
                longs(&[index.into()]),
                &[Fd::Event(3)],
            ),
            (request::SET_VRING_ENABLE, words(&[index, 1]), &[]),
        ] {
            self.send(&message(number, &body), fds);
        }
    }
}
