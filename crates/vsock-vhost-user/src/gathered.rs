//! Where a guest's packets go: to the host, to siblings, or nowhere.
//!
//! Packets for the same destination are gathered and handed on together: those of one
//! connection with the host by one system call, those for siblings by one call of the
//! switch.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType as NetType};
use rustix::process::Pid;
use tracing::{debug, trace};
use vsock_connection::{ConnectionId, Found};
use vsock_packet::chain::ChainError;
use vsock_packet::{Header, Op, Payload, RawHeader, SocketType};
use vsock_router::{HostEndpoint, Packet, Refusal, Request, Route};

use crate::memory::Piece;
use crate::mishaps::{self, Call};
use crate::socket_io::peer_process;
use crate::worker::Worker;

/// A packet taken from the TX ring: what was read of it, and where its pieces are among those of
/// the pass.
pub(crate) type Taken = (Result<RawHeader, ChainError>, Range<usize>);

/// Packets of one destination that have not been handed on.
#[derive(Default)]
pub(crate) struct Gathered {
    destination: Option<Destination>,
    /// For the host: where their pieces are, and the bytes in them.
    pieces: Range<usize>,
    len: usize,
    /// For siblings: the packets and where their pieces are.
    packets: Vec<(Header, Range<usize>)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Destination {
    Host(ConnectionId),
    Siblings,
}

impl Worker {
    /// Deals with packets, the payload of which is in `pieces`.
    pub(crate) fn take_packets(&mut self, taken: &[Taken], pieces: &[Piece<'_>]) {
        // One is found when it is needed.
        let found = (taken.len() > 1).then(|| {
            let ends = |(raw, _): &Taken| raw.as_ref().ok()?.ends();
            self.connections.find_all(taken.iter().map(ends))
        });
        let mut gathered = std::mem::take(&mut self.gathered);
        for (index, (raw, at)) in taken.iter().enumerate() {
            self.counters.tx_packets.add(1);
            match raw {
                Ok(raw) => {
                    let found = found.as_ref().map(|found| (found, index));
                    self.take_packet(raw, found, at, pieces, &mut gathered);
                }
                Err(error) => {
                    debug!(guest = %self.guest, %error, "a malformed chain");
                    self.counters.malformed_chains.add(1);
                    if let Some(raw) = error.header() {
                        self.hand_on(pieces, &mut gathered);
                        self.ruin(raw);
                    }
                }
            }
        }
        self.hand_on(pieces, &mut gathered);
        self.gathered = gathered;
    }

    /// Deals with a packet whose payload are the pieces at `at`.
    fn take_packet(
        &mut self,
        raw: &RawHeader,
        found: Option<(&Found, usize)>,
        at: &Range<usize>,
        pieces: &[Piece<'_>],
        gathered: &mut Gathered,
    ) {
        let header = match Header::parse(raw) {
            Ok(header) => header,
            Err(error) => {
                debug!(guest = %self.guest, %error, "an invalid header");
                self.counters.invalid_headers.add(1);
                self.hand_on(pieces, gathered);
                self.ruin(raw);
                return;
            }
        };
        trace!(%header, "from the guest");
        let destination = self.destination_of(&header, found);
        let goes_on = destination == gathered.destination
            && (header.op == Op::Rw || destination == Some(Destination::Siblings));
        if !goes_on {
            self.hand_on(pieces, gathered);
            gathered.destination = destination;
            gathered.pieces = at.clone();
        }
        match destination {
            None => self.take_stranger(raw, &header),
            Some(Destination::Siblings) => {
                gathered.packets.push((header, at.clone()));
                self.count_payload(&header);
            }
            Some(Destination::Host(id)) if self.connections.receive(id, &header) => {
                gathered.pieces.end = at.end;
                gathered.len += header.len as usize;
                self.count_payload(&header);
            }
            Some(Destination::Host(id)) => {
                self.hand_on(pieces, gathered);
                self.connections.settle(id);
            }
        }
    }

    fn count_payload(&mut self, header: &Header) {
        if header.op == Op::Rw {
            self.counters.tx_bytes.add(header.len as usize);
            self.sends.take(header.len as usize);
        }
    }

    /// Where a packet goes that is no question to the router; `None` for those that are,
    /// and for those that claim to be somebody else's.
    fn destination_of(
        &mut self,
        header: &Header,
        found: Option<(&Found, usize)>,
    ) -> Option<Destination> {
        if header.src.cid != self.guest.cid() {
            return None;
        }
        if header.socket_type == SocketType::Stream
            && let Some(id) = self.connections.find(header, found)
        {
            return Some(Destination::Host(id));
        }
        (header.op != Op::Request).then_some(Destination::Siblings)
    }

    /// Hands on what was gathered.
    fn hand_on(&mut self, pieces: &[Piece<'_>], gathered: &mut Gathered) {
        match gathered.destination.take() {
            Some(Destination::Host(id)) if gathered.len > 0 => {
                let pieces = &pieces[gathered.pieces.clone()];
                self.connections.write(id, pieces, gathered.len);
            }
            Some(Destination::Siblings) => {
                let packet = |(header, at): &(Header, Range<usize>)| {
                    Packet::new(*header, Payload::from_pieces(&pieces[at.clone()]))
                };
                match &gathered.packets[..] {
                    // Most often it is one, which needs no list.
                    [one] => self.member.send(&[packet(one)], self.now),
                    all => {
                        let packets: Vec<_> = all.iter().map(packet).collect();
                        self.member.send(&packets, self.now);
                    }
                }
            }
            _ => (),
        }
        gathered.packets.clear();
        gathered.len = 0;
    }

    /// Ends the connection of a packet that can't be read: what it carried is missing
    /// from then on. Without a connection it is answered like any stranger.
    fn ruin(&mut self, raw: &RawHeader) {
        let ruined = raw.ends().is_some_and(|(src, dst)| {
            src.cid == self.guest.cid()
                && (self.connections.ruin(dst, src) || self.member.ruin(src, dst, self.now))
        });
        if !ruined {
            self.member.refuse(raw);
        }
    }

    /// Deals with a packet of no connection.
    fn take_stranger(&mut self, raw: &RawHeader, header: &Header) {
        let refused = match header.op {
            Op::Request => self.open(header),
            _ => Err(Refusal::ForgedSource),
        };
        if let Err(why) = refused {
            self.counters.refused_requests.add(1);
            self.tell_refusal(header, why);
            self.member.refuse(raw);
        }
    }

    /// Opens the connection that the guest asks for.
    fn open(&mut self, request: &Header) -> Result<(), Refusal> {
        if request.src.cid != self.guest.cid() {
            return Err(Refusal::ForgedSource);
        }
        if !self.member.takes(request.socket_type) {
            return Err(Refusal::TypeNotSupported);
        }
        if !self.requests.has_some(self.now) {
            return Err(Refusal::TooOften);
        }
        self.requests.take(1);
        match self.router.route(&Request::new(self.guest, request)) {
            Route::Host(HostEndpoint::Unix(path)) => self.open_unix(request, &path),
            Route::Member(target) => self.member.open(request, &target, self.now),
            Route::Refuse(why) => Err(why),
            _ => Err(Refusal::NoRoute),
        }
    }

    fn open_unix(&mut self, request: &Header, path: &Path) -> Result<(), Refusal> {
        if self.connections.is_full() {
            return Err(Refusal::TooManyConnections);
        }
        let socket = connect(path).map_err(|error| {
            debug!(path = %path.display(), %error, "cannot connect");
            Refusal::NotListening
        })?;
        if self
            .shuns
            .is_some_and(|process| is_listened_at_by(process, &socket))
        {
            return Err(Refusal::OwnSocket);
        }
        if !self.connections.accept(request, socket) {
            return Err(Refusal::TooManyConnections);
        }
        self.counters.guest_connections.add(1);
        Ok(())
    }
}

/// Whether this process listens at the other end. What cannot be told is not trusted; one of
/// no number here lives in another namespace, and is another.
fn is_listened_at_by(process: Pid, socket: &OwnedFd) -> bool {
    peer_process(socket.as_fd()).map_or(true, |listener| listener == process.as_raw_nonzero().get())
}

/// Connects without waiting. An AF_UNIX connection is there at once or not at all: a
/// listener whose backlog is full is EAGAIN.
fn connect(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, NetType::STREAM, flags, None)?;
    mishaps::instead_of(Call::Connect, socket.as_fd())?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use rustix::process::getpid;

    use super::*;

    /// Tells the test below, where it is run again, what to connect to.
    const ELSEWHERE: &str = "VSOCK_TEST_LISTENER_ELSEWHERE";

    /// As applications outside of a container are to a daemon inside.
    #[test]
    fn tells_its_own_listeners_from_those_of_other_namespaces() {
        if let Some(path) = env::var_os(ELSEWHERE) {
            let socket = connect(Path::new(&path)).unwrap();
            assert!(!is_listened_at_by(getpid(), &socket));
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(is_listened_at_by(getpid(), &connect(&path).unwrap()));

        let apart = |command: &str| {
            let mut apart = Command::new("unshare");
            apart.args(["--user", "--pid", "--fork", command]);
            apart
        };
        if !apart("true").status().is_ok_and(|status| status.success()) {
            println!("not tried: this system has no namespaces for us");
            return;
        }
        let this = concat!(
            module_path!(),
            "::tells_its_own_listeners_from_those_of_other_namespaces"
        );
        let (_, this) = this.split_once("::").unwrap();
        let again = apart(env::current_exe().unwrap().to_str().unwrap())
            .args(["--exact", this])
            .env(ELSEWHERE, &path)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&again.stdout);
        assert!(told.contains("1 passed"), "{told}");
    }
}
