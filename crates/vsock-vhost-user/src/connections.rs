//! The connections of a guest and the sockets at their other ends.
//!
//! The state machines are in `vsock-connection`; here each meets its [`HostEnd`]. After
//! whatever happens to either, [`Connections::settle`] carries the consequences over to
//! the other and lets go of what is over.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use tracing::{debug, trace};
use vsock_connection::{
    Cause, Connection, ConnectionId, Found, HostPorts, Received, Table, Timeouts,
};
use vsock_packet::{Cid, GuestCid, Header, PortNumber, ShutdownFlags, SocketType, VsockAddr};
use vsock_router::{ConnectionKind, ConnectionState, Record, Recorder};

use crate::allowance::Allowance;
use crate::counters::Counters;
use crate::handle::Settings;
use crate::host_end::{HostEnd, Read};
use crate::memory::Piece;
use crate::newcomers::Newcomers;
use crate::parting::Partings;
use crate::poller::{EventFlags, Poller, Registry, Token, Waker};
use crate::rx::{Room, RxPass};
use crate::status::ConnectionStatus;
use crate::trickle;

/// After so many bytes that one connection has put into the RX ring it is another's turn. It
/// is half of what Linux takes at once: the guest reads one half while the other is put.
const TURN: usize = 128 * 1024;

/// All connections between one guest and the host.
#[derive(Debug)]
pub(crate) struct Connections {
    guest: GuestCid,
    table: Table<HostEnd>,
    host_ports: HostPorts,
    allowance: Allowance,
    timeouts: Timeouts,
    counters: Arc<Counters>,
    recorder: Arc<Recorder>,
    /// Where the sockets are watched.
    registry: Registry,
    /// Has another turn come.
    waker: Waker,
    /// Trickles, and when each is to be read again.
    put_off: VecDeque<(Instant, ConnectionId)>,
    newcomers: Newcomers,
    /// How often the guest has sent payload, modulo 2^32.
    said: u32,
    /// Sockets of those that are over, still to be closed.
    partings: Partings,
    /// The time of this turn of the worker.
    now: Instant,
}

impl Connections {
    pub(crate) fn new(
        guest: GuestCid,
        timeouts: Timeouts,
        counters: Arc<Counters>,
        recorder: Arc<Recorder>,
        poller: &Poller,
    ) -> Self {
        Self {
            guest,
            table: Table::new(0),
            host_ports: HostPorts::default(),
            allowance: Allowance::default(),
            timeouts,
            counters,
            recorder,
            registry: poller.registry(),
            waker: poller.waker(),
            put_off: VecDeque::new(),
            newcomers: Newcomers::default(),
            said: 0,
            partings: Partings::default(),
            now: Instant::now(),
        }
    }

    /// Closes the sockets of connections that are over: the guest has been told.
    pub(crate) fn part(&mut self) {
        self.partings.close();
    }

    /// Ends a turn: does what the guest need not wait for.
    pub(crate) fn end_turn(&mut self) {
        self.part();
        while let Some(id) = self.newcomers.next_earlier() {
            self.welcome(id);
        }
        self.newcomers.end_turn();
    }

    /// Begins a turn: it is `now` until the next one.
    pub(crate) fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    /// What there is already stays as it is.
    pub(crate) fn set_limits(&mut self, settings: &Settings) {
        self.table.set_limit(settings.max_connections);
        self.allowance.set(settings, self.now);
    }

    fn record(&self, kind: ConnectionKind, from: VsockAddr, to: VsockAddr) -> Record {
        self.recorder
            .record(kind, from, to, SocketType::Stream, self.now)
    }

    /// All of them.
    pub(crate) fn list(&mut self) -> Vec<ConnectionStatus> {
        let mut list = Vec::with_capacity(self.table.len());
        for id in self.table.ids() {
            if let Some(entry) = self.table.get_mut(id) {
                list.push(status(&entry.connection, &entry.host.record));
            }
        }
        list
    }

    /// Resets those that `is_meant` picks, and returns their number.
    pub(crate) fn withdraw(&mut self, is_meant: impl Fn(&Connection, &Record) -> bool) -> usize {
        let mut count = 0;
        for id in self.table.ids() {
            if let Some(entry) = self.table.get_mut(id)
                && entry.connection.closed().is_none()
                && is_meant(&entry.connection, &entry.host.record)
            {
                entry.connection.reset(Cause::Withdrawn);
                count += 1;
                self.settle(id);
            }
        }
        count
    }

    pub(crate) fn is_full(&self) -> bool {
        self.table.is_full()
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// What is promised to those there are, in bytes.
    #[cfg(test)]
    pub(crate) fn promised(&self) -> u64 {
        self.allowance.promised()
    }

    /// Does something with all host sockets.
    #[cfg(test)]
    pub(crate) fn for_each_socket(&mut self, mut act: impl FnMut(std::os::fd::BorrowedFd<'_>)) {
        for id in self.table.ids() {
            let entry = self.table.get_mut(id);
            entry.and_then(|entry| entry.host.socket()).map(&mut act);
        }
    }

    /// Gives the guest the connection it asked for. `false` when there is no room.
    pub(crate) fn accept(&mut self, request: &Header, socket: OwnedFd) -> bool {
        let buf_alloc = self.allowance.promise();
        let connection = Connection::accepted(request, buf_alloc, self.timeouts);
        let record = self.record(ConnectionKind::GuestToHost, request.src, request.dst);
        let host = HostEnd::new(socket, None, buf_alloc, record);
        let Ok(id) = self.table.insert(connection, host) else {
            self.allowance.take_back(buf_alloc);
            return false;
        };
        if let Some(entry) = self.table.get_mut(id) {
            entry.host.is_newcomer = true;
            entry.host.record.establish();
        }
        self.newcomers.add(id);
        self.table.mark_ready(id);
        true
    }

    /// Has a newcomer's socket watched that came alone.
    pub(crate) fn watch_lone_newcomer(&mut self) {
        if let Some(id) = self.newcomers.lone() {
            self.welcome(id);
        }
    }

    /// Has the next newcomer's socket watched. `false` when there is none.
    pub(crate) fn watch_newcomer(&mut self) -> bool {
        let next = self.newcomers.next();
        if let Some(id) = next {
            self.welcome(id);
        }
        next.is_some()
    }

    /// Has the sockets of all newcomers watched: the worker may be about to sleep.
    pub(crate) fn watch_newcomers(&mut self) {
        while self.watch_newcomer() {}
    }

    /// Has a newcomer's socket watched, if it is still there.
    fn welcome(&mut self, id: ConnectionId) {
        if let Some(entry) = self.table.get_mut(id) {
            entry.host.is_newcomer = false;
        }
        self.rewatch(id);
    }

    /// Asks the guest for a connection to its `port`. The socket is watched as a
    /// handshake so far. `false` when there is no room.
    pub(crate) fn request(&mut self, port: PortNumber, socket: OwnedFd) -> bool {
        let Some(host_port) = self.host_ports.take() else {
            return false;
        };
        let host = VsockAddr {
            cid: Cid::HOST,
            port: host_port,
        };
        let guest = VsockAddr {
            cid: self.guest.cid(),
            port,
        };
        let buf_alloc = self.allowance.promise();
        let connection = Connection::requested(host, guest, buf_alloc, self.timeouts, self.now);
        let record = self.record(ConnectionKind::HostToGuest, host, guest);
        let end = HostEnd::new(socket, Some(host_port), buf_alloc, record);
        let taken = self.table.find_ends(host, guest).is_some();
        let Some(id) = (!taken)
            .then(|| self.table.insert(connection, end).ok())
            .flatten()
        else {
            self.allowance.take_back(buf_alloc);
            self.host_ports.free(host_port);
            return false;
        };
        if !self.watch_client(id) {
            self.drop_entry(id);
            return false;
        }
        if let Some(entry) = self.table.get_mut(id) {
            entry.host.record.begin();
        }
        self.table.mark_ready(id);
        self.table.reschedule(id);
        true
    }

    /// Has a socket that is watched as a handshake watched for what its end waits for.
    fn watch_client(&mut self, id: ConnectionId) -> bool {
        let Some(entry) = self.table.get_mut(id) else {
            return false;
        };
        let (_, events) = entry.host.watch();
        let token = Token::Connection(id);
        let socket = entry.host.socket();
        socket.is_some_and(|socket| self.registry.modify(socket, token, events).is_ok())
    }

    /// What the socket is to be watched for may have changed: it is full, or not any more, or
    /// left alone for a while.
    fn rewatch(&mut self, id: ConnectionId) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        if !entry.host.is_watched_otherwise() {
            return;
        }
        let (before, events) = entry.host.watch();
        let Some(socket) = entry.host.socket() else {
            return;
        };
        let token = Token::Connection(id);
        let result = if events.is_empty() {
            self.registry.remove(socket)
        } else if before.is_empty() {
            self.registry.add(socket, token, events)
        } else {
            self.registry.modify(socket, token, events)
        };
        match result {
            Ok(()) => (),
            // There is no memory for it now: it is left alone for longer. The timer is armed in
            // a turn, and this may be between two.
            Err(_) if before.is_empty() => {
                entry.host.unwatched();
                self.read_later(id);
                self.waker.wake();
            }
            // Without being told of room or bytes nothing more could be carried.
            Err(_) => entry.connection.reset(Cause::HostError),
        }
    }

    /// The connections that packets between these ends belong to.
    pub(crate) fn find_all(
        &self,
        packets: impl Iterator<Item = Option<(VsockAddr, VsockAddr)>>,
    ) -> Found {
        self.table.find_all(packets)
    }

    /// The connection that a packet belongs to, unless it is a REQUEST that shows that
    /// the guest has forgotten a closed one. It may have been the one `found` for this index.
    pub(crate) fn find(
        &mut self,
        header: &Header,
        found: Option<(&Found, usize)>,
    ) -> Option<ConnectionId> {
        let id = match found {
            Some((found, index)) => self.table.find_again(found, index, header),
            None => self.table.find(header),
        }?;
        let entry = self.table.get_mut(id)?;
        if header.op == vsock_packet::Op::Request && entry.connection.closed().is_some() {
            entry.connection.abandon();
            self.table.forget(id);
            self.settle(id);
            return None;
        }
        Some(id)
    }

    /// Takes a packet of a connection's. `true` when its payload is to be
    /// [written](Self::write); otherwise it is to be [settled](Self::settle) when the
    /// payload before it was written.
    pub(crate) fn receive(&mut self, id: ConnectionId, header: &Header) -> bool {
        let Some(entry) = self.table.get_mut(id) else {
            return false;
        };
        let received = entry.connection.receive(header, self.now);
        match received {
            Received::Payload => return true,
            Received::Accepted => {
                self.counters.host_connections.add(1);
                entry.host.record.establish();
                let line = format!("OK {}\n", entry.connection.host().port);
                entry.host.greet(line.as_bytes());
            }
            Received::Closed(cause) => {
                debug!(connection = %Ends(&entry.connection), ?cause, "closed by the guest");
                if cause != Cause::GuestReset {
                    self.counters.violations.add(1);
                }
            }
            Received::Nothing | Received::Shutdown => (),
        }
        // More credit may let waiting payload go.
        if entry.host.is_readable() {
            self.table.mark_ready(id);
        }
        false
    }

    /// Resets the connection between these ends, of which a packet can't be read. `false`
    /// when there is none.
    pub(crate) fn ruin(&mut self, host: VsockAddr, guest: VsockAddr) -> bool {
        let id = self.table.find_ends(host, guest);
        if let Some(id) = id
            && let Some(entry) = self.table.get_mut(id)
        {
            entry.connection.reset(Cause::MalformedPacket);
            self.counters.violations.add(1);
            self.settle(id);
        }
        id.is_some()
    }

    /// Passes payload of the guest's on to the host's application.
    pub(crate) fn write(&mut self, id: ConnectionId, pieces: &[Piece<'_>], len: usize) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        self.said = self.said.wrapping_add(1);
        let guest = entry.connection.guest();
        entry.host.record.count(guest, len as u64);
        let done = entry.host.write(pieces, len);
        entry.connection.forwarded(done);
        self.rewatch(id);
        self.settle(id);
    }

    /// Something happened on a host socket.
    pub(crate) fn handle_event(&mut self, id: ConnectionId, events: EventFlags) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        entry.host.note(events);
        let done = entry.host.flush();
        entry.connection.forwarded(done);
        if entry.host.is_readable() {
            self.table.mark_ready(id);
        }
        self.rewatch(id);
        self.settle(id);
    }

    /// When [`Self::handle_timeouts`] is due.
    pub(crate) fn next_timeout(&mut self) -> Option<Instant> {
        let release = self.allowance.next_release(self.now);
        let resume = self.put_off.front().map(|&(at, _)| at);
        [self.table.next_timeout(), release, resume]
            .into_iter()
            .flatten()
            .min()
    }

    pub(crate) fn handle_timeouts(&mut self) {
        for id in self.allowance.release(self.now) {
            if let Some(entry) = self.table.get_mut(id) {
                entry.host.is_held = false;
                self.table.mark_ready(id);
            }
        }
        self.resume();
        while let Some(id) = self.table.next_expired(self.now) {
            if let Some(entry) = self.table.get_mut(id) {
                entry.connection.handle_timeout(self.now);
                if let Some(cause) = entry.connection.closed() {
                    debug!(connection = %Ends(&entry.connection), ?cause, "closed");
                    self.counters.timeouts.add(1);
                }
            }
            self.settle(id);
        }
    }

    /// Has the trickles read whose time has come.
    fn resume(&mut self) {
        while let Some((_, id)) = self.put_off.pop_front_if(|(at, _)| *at <= self.now) {
            if let Some(entry) = self.table.get_mut(id) {
                entry.host.is_put_off = false;
            }
            // It may wait for room in vain, and the guest may take nothing, perhaps for ever.
            self.rewatch(id);
            self.settle(id);
            if let Some(entry) = self.table.get_mut(id) {
                entry.host.resume();
                self.table.mark_ready(id);
            }
        }
    }

    /// Has a trickle read later, which is the only way that more of it is heard of.
    fn put_off(&mut self, id: ConnectionId) {
        let entry = self.table.get_mut(id);
        if entry.is_some_and(|entry| entry.host.is_left_alone()) {
            self.read_later(id);
        }
    }

    fn read_later(&mut self, id: ConnectionId) {
        if let Some(entry) = self.table.get_mut(id)
            && !std::mem::replace(&mut entry.host.is_put_off, true)
        {
            self.put_off.push_back((self.now + trickle::PAUSE, id));
        }
    }

    /// Whether a connection may have something for the guest.
    pub(crate) fn has_ready(&self) -> bool {
        self.table.has_ready()
    }

    /// Fills the RX ring with what the connections have, in turn, for at most `turns` of
    /// them, and until one of them has used up its turn. `true` when there may be more, and
    /// buffers for it.
    pub(crate) fn fill(&mut self, rx: &mut RxPass<'_, '_>, turns: usize) -> bool {
        for _ in 0..turns {
            let Some(id) = self.table.next_ready() else {
                return false;
            };
            let Some(entry) = self.table.get_mut(id) else {
                continue;
            };
            let mut turn = Turn {
                connection: &mut entry.connection,
                host: &mut entry.host,
                allowance: &mut self.allowance,
                counters: &self.counters,
                said: self.said,
                now: self.now,
            };
            let outcome = turn.take(rx);
            match outcome {
                Outcome::Done => (),
                Outcome::More => self.table.mark_ready(id),
                Outcome::NoBuffer => self.table.return_ready(id),
                Outcome::Held if entry.host.is_held => (),
                Outcome::Held => {
                    entry.host.is_held = true;
                    self.allowance.hold(id);
                }
            }
            self.put_off(id);
            self.rewatch(id);
            self.settle(id);
            match outcome {
                Outcome::NoBuffer => return false,
                Outcome::More => break,
                Outcome::Done | Outcome::Held => (),
            }
        }
        self.table.has_ready()
    }

    /// The guest is gone or starts anew: all its connections end. What it sent before is
    /// still delivered to applications that have not read it yet.
    pub(crate) fn abandon(&mut self) {
        for id in self.table.ids() {
            if let Some(entry) = self.table.get_mut(id) {
                entry.connection.abandon();
            }
            self.settle(id);
        }
    }

    /// Carries over from each end to the other what has to be, and lets go of the
    /// connection when both are done.
    pub(crate) fn settle(&mut self, id: ConnectionId) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        let (connection, host) = (&mut entry.connection, &mut entry.host);
        if connection.closed().is_none() {
            settle_open(connection, host, self.now);
        }
        if connection.closed().is_some() {
            if host.is_flushed() {
                if let Some(parting) = host.close() {
                    self.partings.add(parting);
                }
            } else {
                // The application may be waiting for its own writes to be read.
                host.end_reading();
            }
        }
        match (connection.closed(), connection.has_control()) {
            (Some(_), false) if host.is_closed() => self.drop_entry(id),
            (Some(_), false) => self.table.forget(id),
            (_, true) => self.table.mark_ready(id),
            _ => (),
        }
        self.table.reschedule(id);
    }

    fn drop_entry(&mut self, id: ConnectionId) {
        if let Some((connection, host)) = self.table.remove(id) {
            trace!(connection = %Ends(&connection), "over");
            self.allowance.take_back(host.buf_alloc);
            if let Some(port) = host.assigned_port {
                self.host_ports.free(port);
            }
        }
    }
}

fn status(connection: &Connection, record: &Record) -> ConnectionStatus {
    let (sent, received) = record.bytes();
    let state = if connection.closed().is_some() {
        ConnectionState::Closing
    } else if record.is_established() {
        ConnectionState::Established
    } else {
        ConnectionState::Requested
    };
    ConnectionStatus {
        id: record.id(),
        kind: record.kind(),
        socket_type: record.socket_type(),
        state,
        from: record.from(),
        to: record.to(),
        sent,
        received,
        age: record.since().elapsed(),
    }
}

/// What the guest's halves mean for the application, and what the application's loss
/// means for the guest.
fn settle_open(connection: &mut Connection, host: &mut HostEnd, now: Instant) {
    let ended = connection.guest_ended();
    if ended.is_all() && host.is_flushed() {
        // Closing the socket says it all.
        connection.finish();
        return;
    }
    if ended.contains(ShutdownFlags::RECEIVE) {
        host.end_reading();
    }
    if ended.contains(ShutdownFlags::SEND) && host.is_flushed() {
        host.end_writing();
    }
    if host.is_lost() {
        connection.end_host(ShutdownFlags::RECEIVE, now);
    }
    if host.is_gone() {
        connection.end_host(ShutdownFlags::all(), now);
    }
}

/// A connection whose turn it is to fill the RX ring.
struct Turn<'a> {
    connection: &'a mut Connection,
    host: &'a mut HostEnd,
    allowance: &'a mut Allowance,
    counters: &'a Counters,
    said: u32,
    now: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It has nothing more now.
    Done,
    /// It has more, after the others.
    More,
    /// The RX ring is out of buffers.
    NoBuffer,
    /// The guest has got as much as it may for now.
    Held,
}

impl Turn<'_> {
    fn take(&mut self, rx: &mut RxPass<'_, '_>) -> Outcome {
        let mut left = TURN;
        loop {
            if !self.put_control(rx) {
                return Outcome::NoBuffer;
            }
            if !self.host.is_readable() || self.connection.closed().is_some() {
                return Outcome::Done;
            }
            let (bytes, packets) = self.connection.sendable();
            if bytes == 0 {
                if self.host.read_end() {
                    self.end();
                    continue;
                }
                self.connection.blocked();
                if self.connection.has_control() {
                    continue;
                }
                return Outcome::Done;
            }
            if left == 0 {
                return Outcome::More;
            }
            if !self.allowance.has_some(self.now) {
                return Outcome::Held;
            }
            let wanted = bytes.min(self.host.read_size());
            match rx.reserve(wanted, packets) {
                Room::Payload(room) => left = left.saturating_sub(self.read(rx, room)),
                // Of no use to payload, but it must come back with a packet in it.
                Room::Header => rx.commit_control(&self.connection.credit_update().to_raw()),
                Room::None => return Outcome::NoBuffer,
            }
        }
    }

    /// Puts all control packets into the ring. `false` when it is out of buffers.
    fn put_control(&mut self, rx: &mut RxPass<'_, '_>) -> bool {
        while self.connection.has_control() {
            // Buffers first: a control packet polled is a control packet sent.
            if rx.reserve_control() {
                let Some(header) = self.connection.poll_control(self.now) else {
                    return true;
                };
                trace!(%header, "to the guest");
                rx.commit_control(&header.to_raw());
            } else {
                return false;
            }
        }
        true
    }

    /// The application sends no more, and takes none when it is gone.
    fn end(&mut self) {
        let gone = self.host.is_gone();
        let halves = if gone {
            ShutdownFlags::all()
        } else {
            ShutdownFlags::SEND
        };
        self.connection.end_host(halves, self.now);
    }

    /// Reads from the application into the room reserved. Returns the bytes read.
    fn read(&mut self, rx: &mut RxPass<'_, '_>, room: usize) -> usize {
        match self.host.read(rx.room(), room) {
            Read::Bytes(bytes) => {
                let (connection, counters) = (&mut *self.connection, self.counters);
                rx.commit(bytes, |share| {
                    counters.rx_packets.add(1);
                    connection.data_header(share).to_raw()
                });
                counters.rx_bytes.add(bytes);
                self.host.note_read(bytes, self.now, self.said);
                self.allowance.take(bytes);
                let host = connection.host();
                self.host.record.count(host, bytes as u64);
                bytes
            }
            Read::NotReady => {
                rx.put_back();
                self.connection.unblocked();
                0
            }
            Read::End => {
                rx.put_back();
                self.end();
                0
            }
        }
    }
}

/// A connection's ends, for the log.
struct Ends<'a>(&'a Connection);

impl std::fmt::Display for Ends<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "guest {} host {}", self.0.guest(), self.0.host())
    }
}
