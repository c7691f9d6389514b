//! The host's end of a connection: a stream socket, what is ready on it, and what waits
//! to be written to it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use vsock_packet::PortNumber;
use vsock_router::Record;

use crate::memory::Piece;
use crate::mishaps::{self, Call};
use crate::parting::Parting;
use crate::poller::EventFlags;
use crate::socket_io::{self, Received};
use crate::trickle::Trickle;
use crate::tx_buffer::TxBuffer;
use crate::unread::Unread;

/// The least and the most that is read from a socket at once, in bytes.
const READ_SIZES: std::ops::RangeInclusive<usize> = 4096..=65536;

/// The host's application, seen through its socket.
#[derive(Debug)]
pub(crate) struct HostEnd {
    /// `None` once everything was delivered and the socket closed.
    socket: Option<OwnedFd>,
    buffer: TxBuffer,
    unread: Unread,
    /// Bytes that were written, and that the guest is not to be told of yet.
    untold: usize,
    /// What the socket is watched for.
    watched: EventFlags,
    readable: bool,
    writable: bool,
    hung_up: bool,
    /// The application has shut something down: the end may be next.
    end_is_near: bool,
    /// Reads may stop before all is read: at a byte sent out of band.
    stops: bool,
    ended: Ended,
    read_size: usize,
    trickle: Trickle,
    /// It is a trickle: what comes is not watched for.
    gathers: bool,
    /// Until there is time for it, the socket is watched for nothing but room.
    pub(crate) is_newcomer: bool,
    /// It is going to be [resumed](Self::resume).
    pub(crate) is_put_off: bool,
    /// The host port that was assigned, to be freed.
    pub(crate) assigned_port: Option<PortNumber>,
    /// What may be kept here for the application, in bytes.
    pub(crate) buf_alloc: u32,
    /// Waits for the guest's rate to allow more.
    pub(crate) is_held: bool,
    /// The connection, as lists and observers know it.
    pub(crate) record: Record,
}

/// Directions that are over.
#[derive(Clone, Copy, Debug, Default)]
struct Ended {
    /// The application sends no more, or nobody wants it.
    reading: bool,
    /// The application was told that nothing more comes.
    writing: bool,
    /// The application takes no more.
    lost: bool,
}

/// What reading from the application gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Read {
    /// So many bytes.
    Bytes(usize),
    /// Nothing now.
    NotReady,
    /// The application sends no more.
    End,
}

impl HostEnd {
    /// An end whose socket is connected, and yet to be [watched](Self::watch). The guest
    /// may send `buf_alloc` bytes.
    pub(crate) fn new(
        socket: OwnedFd,
        assigned_port: Option<PortNumber>,
        buf_alloc: u32,
        record: Record,
    ) -> Self {
        Self {
            socket: Some(socket),
            buffer: TxBuffer::default(),
            unread: Unread::new(buf_alloc as usize),
            untold: 0,
            watched: EventFlags::empty(),
            readable: false,
            writable: true,
            hung_up: false,
            end_is_near: false,
            stops: false,
            ended: Ended::default(),
            read_size: *READ_SIZES.start(),
            trickle: Trickle::default(),
            gathers: false,
            is_newcomer: false,
            is_put_off: false,
            assigned_port,
            buf_alloc,
            is_held: false,
            record,
        }
    }

    /// What the socket was watched for, and what it is watched for from now on, if anything.
    pub(crate) fn watch(&mut self) -> (EventFlags, EventFlags) {
        let interest = self.interest();
        (std::mem::replace(&mut self.watched, interest), interest)
    }

    /// It could not be watched, and is not.
    pub(crate) fn unwatched(&mut self) {
        self.watched = EventFlags::empty();
    }

    /// Whether it is time to [watch](Self::watch) for something else.
    pub(crate) fn is_watched_otherwise(&self) -> bool {
        self.watched != self.interest()
    }

    /// Each read of the application's makes room, so room is of interest only while something
    /// waits for it. Who is left alone is not watched at all: to be heard, even of what is of
    /// no interest, takes a tenth of a small write. Nor is a [newcomer](crate::newcomers).
    fn interest(&self) -> EventFlags {
        let waits_for_room = !self.buffer.is_empty() || self.untold > 0;
        if (self.is_newcomer || self.is_left_alone()) && !waits_for_room {
            return EventFlags::empty();
        }
        let mut interest = EventFlags::RDHUP | EventFlags::ET;
        interest.set(EventFlags::IN | EventFlags::PRI, !self.gathers);
        interest.set(EventFlags::OUT, waits_for_room);
        interest
    }

    /// Remembers what an event says.
    pub(crate) fn note(&mut self, events: EventFlags) {
        let gone = EventFlags::HUP | EventFlags::ERR;
        self.hung_up |= events.contains(EventFlags::HUP);
        self.end_is_near |= events.intersects(EventFlags::RDHUP | gone);
        self.stops |= events.contains(EventFlags::PRI);
        self.readable |= events.intersects(EventFlags::IN | EventFlags::RDHUP | gone);
        self.writable |= events.intersects(EventFlags::OUT | gone);
    }

    /// Whether there may be something to read.
    pub(crate) fn is_readable(&self) -> bool {
        self.readable && !self.ended.reading && self.socket.is_some()
    }

    /// Whether nothing is going to be read, nor told, before it is [resumed](Self::resume).
    pub(crate) fn is_left_alone(&self) -> bool {
        self.gathers && !self.readable && !self.ended.reading && self.socket.is_some()
    }

    /// Has the socket be read, whatever was told of it.
    pub(crate) fn resume(&mut self) {
        self.readable = true;
    }

    /// A read gave so many bytes. What follows is gathered if it is one more of a trickle.
    pub(crate) fn note_read(&mut self, bytes: usize, now: Instant, said: u32) {
        self.trickle.add(bytes);
        if !self.readable {
            self.gathers = self.trickle.goes_on(now, said);
        }
    }

    /// Whether the application neither sends nor takes any more, and everything it sent
    /// was read.
    pub(crate) fn is_gone(&self) -> bool {
        self.ended.reading && self.hung_up
    }

    /// How much to read at once, in bytes: it follows what the last reads gave.
    pub(crate) fn read_size(&self) -> usize {
        self.read_size
    }

    /// Reads into pieces of guest memory. An application that failed has ended.
    pub(crate) fn read(&mut self, room: &[Piece<'_>], capacity: usize) -> Read {
        let Some(socket) = &self.socket else {
            return Read::NotReady;
        };
        match socket_io::receive(socket.as_fd(), room) {
            Ok(Received { bytes: 0, .. }) => {
                self.ended.reading = true;
                Read::End
            }
            Ok(Received { bytes, cut_short }) => {
                self.adapt_read_size(bytes, capacity);
                // Less than there was room for is all there was, and what comes is told,
                // as the end is.
                let is_all = bytes < capacity && !cut_short;
                self.readable = !is_all || self.end_is_near || self.stops;
                Read::Bytes(bytes)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                self.gathers = false;
                self.trickle.ends();
                Read::NotReady
            }
            Err(_) => {
                self.ended.reading = true;
                self.hung_up = true;
                Read::End
            }
        }
    }

    /// Whether the application has ended and nothing is left to read. The guest may learn
    /// that without credit for a single byte.
    pub(crate) fn read_end(&mut self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let ends = self.end_is_near
            && self.socket.as_ref().is_some_and(|socket| {
                rustix::net::recv(socket, &mut [0; 1], flags).is_ok_and(|(_, bytes)| bytes == 0)
            });
        self.ended.reading |= ends;
        ends
    }

    fn adapt_read_size(&mut self, bytes: usize, capacity: usize) {
        let size = if bytes == capacity {
            self.read_size * 2
        } else {
            bytes.next_power_of_two().max(self.read_size / 2)
        };
        self.read_size = size.clamp(*READ_SIZES.start(), *READ_SIZES.end());
    }

    /// Writes `len` bytes that lie in `pieces`, and keeps what the socket does not take.
    /// Returns the bytes that the guest may send again: written, or nobody's.
    pub(crate) fn write(&mut self, pieces: &[Piece<'_>], len: usize) -> usize {
        let Some(socket) = self.socket.as_ref().filter(|_| !self.ended.lost) else {
            return len;
        };
        if !self.writable || !self.buffer.is_empty() {
            self.buffer.push(pieces, 0);
            return 0;
        }
        self.unread.prepare(socket.as_fd(), len);
        let written = match socket_io::send(socket.as_fd(), pieces) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => return self.lose() + len,
        };
        if written < len {
            self.writable = false;
            self.buffer.push(pieces, written);
        }
        self.tell(written)
    }

    /// So many bytes more were written. Returns those that the guest may know of.
    fn tell(&mut self, written: usize) -> usize {
        let Some(socket) = self.socket.as_ref().filter(|_| !self.ended.lost) else {
            return written;
        };
        let excess = self.unread.excess(socket.as_fd(), written);
        let done = self.untold + written;
        self.untold = excess.min(done);
        done - self.untold
    }

    /// Writes bytes of our own, ahead of all payload: a few, to a socket just connected.
    pub(crate) fn greet(&mut self, bytes: &[u8]) {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = self
            .socket
            .as_ref()
            .map(|socket| rustix::net::send(socket, bytes, flags));
        if sent != Some(Ok(bytes.len())) {
            self.lose();
        }
    }

    /// Writes what was kept, as far as the socket takes it. Returns the bytes that the
    /// guest may send again.
    pub(crate) fn flush(&mut self) -> usize {
        let (mut written, mut lost) = (0, 0);
        while let Some(socket) = &self.socket
            && self.writable
            && !self.buffer.is_empty()
        {
            match send(socket.as_fd(), self.buffer.front()) {
                Ok(bytes) => {
                    self.buffer.consume(bytes);
                    written += bytes;
                }
                Err(Errno::AGAIN) => self.writable = false,
                Err(Errno::INTR) => (),
                Err(_) => lost += self.lose(),
            }
        }
        let told = if written + self.untold > 0 {
            self.tell(written)
        } else {
            0
        };
        told + lost
    }

    /// The application takes no more: what was kept for it is nobody's.
    fn lose(&mut self) -> usize {
        self.ended.lost = true;
        let lost = self.buffer.len() + std::mem::take(&mut self.untold);
        self.buffer = TxBuffer::default();
        lost
    }

    /// Whether the application takes no more.
    pub(crate) fn is_lost(&self) -> bool {
        self.ended.lost
    }

    /// Whether nothing waits to be written.
    pub(crate) fn is_flushed(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Whether the socket is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.socket.is_none()
    }

    /// Tells the application that nothing more comes.
    pub(crate) fn end_writing(&mut self) {
        if !std::mem::replace(&mut self.ended.writing, true) {
            self.shutdown(Shutdown::Write);
        }
    }

    /// Tells the application that nothing more is taken.
    pub(crate) fn end_reading(&mut self) {
        if !std::mem::replace(&mut self.ended.reading, true) {
            self.shutdown(Shutdown::Read);
        }
    }

    fn shutdown(&self, how: Shutdown) {
        if let Some(socket) = &self.socket {
            // It fails when the application is gone, which is told otherwise.
            let _ = rustix::net::shutdown(socket, how);
        }
    }

    /// What is left of it when it is closed, if it was open.
    pub(crate) fn close(&mut self) -> Option<Parting> {
        self.buffer = TxBuffer::default();
        self.socket.take().map(Parting::from)
    }

    /// The socket, while it is open.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }
}

/// Sends without waiting and without a signal.
fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    mishaps::instead_of(Call::Transfer, socket)?;
    let count = mishaps::limit(socket).take(bytes.len());
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::send(socket, &bytes[..count], flags)
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read as _, Write};
    use std::mem::MaybeUninit;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage};
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
    use vsock_connection::ConnectionId;
    use vsock_packet::{Cid, SocketType, VsockAddr};
    use vsock_router::{ConnectionKind, Recorder};

    use super::*;
    use crate::memory::Memory;
    use crate::poller::{Poller, Token};

    /// A connection's end, watched, and the application behind it.
    struct Scene {
        memory: Memory,
        poller: Poller,
        end: HostEnd,
        application: UnixStream,
    }

    const TOKEN: Token = Token::Connection(ConnectionId::from_u64(1));
    const ROOM: usize = 4096;
    const WINDOW: u32 = 256 * 1024;

    impl Scene {
        fn set() -> Self {
            let (application, ours) = UnixStream::pair().unwrap();
            let record = Arc::new(Recorder::default()).record(
                ConnectionKind::GuestToHost,
                VsockAddr::new(Cid::new(3), 1),
                VsockAddr::new(Cid::HOST, 2),
                SocketType::Stream,
                Instant::now(),
            );
            let mut end = HostEnd::new(ours.into(), None, WINDOW, record);
            let poller = Poller::new().unwrap();
            let (_, events) = end.watch();
            let registry = poller.registry();
            registry.add(end.socket().unwrap(), TOKEN, events).unwrap();
            Self {
                memory: Memory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap(),
                poller,
                end,
                application,
            }
        }

        /// Tells the end what has happened; the number of events.
        fn hear(&mut self) -> usize {
            let mut heard = 0;
            self.poller.poll(|_, events| {
                heard += 1;
                self.end.note(events);
            });
            if self.end.is_watched_otherwise() {
                let (_, events) = self.end.watch();
                let registry = self.poller.registry();
                registry
                    .modify(self.end.socket().unwrap(), TOKEN, events)
                    .unwrap();
            }
            heard
        }

        /// What is read until the end is not readable any more.
        fn read_all(&mut self) -> Vec<u8> {
            let mut all = Vec::new();
            while self.end.is_readable() {
                let room = self.memory.get_slice(GuestAddress(0), ROOM).unwrap();
                if let Read::Bytes(bytes) = self.end.read(&[room], ROOM) {
                    let mut read = vec![0; bytes];
                    self.memory.read_slice(&mut read, GuestAddress(0)).unwrap();
                    all.extend(read);
                }
            }
            all
        }

        /// Writes until the application's socket is full.
        fn fill(&mut self) {
            let all = self.memory.get_slice(GuestAddress(0), 0x10000).unwrap();
            while self.end.is_flushed() {
                self.end.write(&[all], 0x10000);
            }
        }
    }

    #[test]
    fn what_leaves_room_was_all_there_was() {
        let mut scene = Scene::set();
        scene.application.write_all(b"hello").unwrap();
        scene.hear();
        let room = scene.memory.get_slice(GuestAddress(0), ROOM).unwrap();
        assert_eq!(scene.end.read(&[room], ROOM), Read::Bytes(5));
        assert!(!scene.end.is_readable());
        scene.application.write_all(b"again").unwrap();
        scene.hear();
        assert_eq!(scene.read_all(), b"again");
    }

    #[test]
    fn the_end_behind_the_last_bytes_is_read() {
        let mut scene = Scene::set();
        scene.application.write_all(b"bye").unwrap();
        scene
            .application
            .shutdown(std::net::Shutdown::Write)
            .unwrap();
        scene.hear();
        assert_eq!(scene.read_all(), b"bye");
        assert!(scene.end.ended.reading);
    }

    #[test]
    fn descriptors_on_the_way_hide_nothing_behind_them() {
        let mut scene = Scene::set();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let passed = [scene.poller.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&passed)));
        let bytes = [IoSlice::new(b"with, ")];
        let flags = SendFlags::empty();
        rustix::net::sendmsg(&scene.application, &bytes, &mut control, flags).unwrap();
        scene.application.write_all(b"without").unwrap();
        scene.hear();
        assert_eq!(scene.read_all(), b"with, without");
    }

    #[test]
    fn bytes_out_of_band_hide_nothing_behind_them() {
        let mut scene = Scene::set();
        scene.application.write_all(b"before, ").unwrap();
        rustix::net::send(&scene.application, b"!", SendFlags::OOB).unwrap();
        scene.application.write_all(b"after").unwrap();
        scene.hear();
        assert_eq!(scene.read_all(), b"before, after");
    }

    #[test]
    fn hears_of_room_only_while_something_waits_for_it() {
        let mut scene = Scene::set();
        let mut taken = vec![0; 1 << 20];
        scene
            .end
            .write(&[scene.memory.get_slice(GuestAddress(0), 10).unwrap()], 10);
        assert_eq!(scene.application.read(&mut taken).unwrap(), 10);
        assert_eq!(scene.hear(), 0, "there was room all the time");
        scene.fill();
        assert_eq!(scene.hear(), 0);
        scene.application.set_nonblocking(true).unwrap();
        while scene.hear() == 0 {
            assert!(scene.application.read(&mut taken).unwrap() > 0);
        }
        assert!(scene.end.flush() > 0);
        assert!(scene.end.is_flushed());
        scene.hear();
        scene.hear();
        assert!(scene.application.read(&mut taken).unwrap() > 0);
        assert_eq!(scene.hear(), 0, "nothing waits any more");
    }

    /// A guest that sends all it may. What it has sent, and what it was told of.
    fn send_all_the_guest_may(scene: &mut Scene) -> (usize, usize) {
        const PACKET: usize = 0x10000;
        let (mut sent, mut told) = (0, 0);
        let packet = scene.memory.get_slice(GuestAddress(0), PACKET).unwrap();
        while sent + PACKET <= WINDOW as usize + told {
            told += scene.end.write(&[packet], PACKET);
            sent += PACKET;
        }
        (sent, told)
    }

    #[test]
    fn a_guest_within_its_window_does_not_overfill_the_socket() {
        let mut scene = Scene::set();
        let (sent, told) = send_all_the_guest_may(&mut scene);
        assert!(scene.end.is_flushed(), "nothing of it was copied");
        assert!(told > 0 && told < sent, "told of {told} bytes of {sent}");
        let mut taken = vec![0; sent];
        scene.application.read_exact(&mut taken).unwrap();
        assert_eq!(scene.hear(), 0);
        assert_eq!(
            scene.hear(),
            1,
            "the watch for room began when it was there"
        );
        assert_eq!(told + scene.end.flush(), sent);
    }
}
