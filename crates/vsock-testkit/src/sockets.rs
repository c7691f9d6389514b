//! The streams and listeners of a guest: packets in, packets out, no ring.

use std::collections::{HashMap, HashSet, VecDeque};

use vsock_packet::{Header, Op, RawHeader, ShutdownFlags, SocketType, VsockAddr};

use crate::stream::Reply;
use crate::{Behaviour, Error, Packet, State, Stream};

/// A stream of a [`Guest`](crate::Guest).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct StreamId(usize);

/// A packet to be sent: its credit is filled in when it is.
#[derive(Debug)]
enum Outgoing {
    Of(StreamId, Reply),
    Raw(RawHeader),
}

/// A port somebody listens to.
#[derive(Debug)]
struct Listener {
    socket_type: SocketType,
    /// Streams that were not accepted yet.
    waiting: VecDeque<StreamId>,
}

/// All sockets of a guest.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    streams: Vec<Stream>,
    live: HashMap<(VsockAddr, VsockAddr), StreamId>,
    /// Ports somebody listens to.
    listeners: HashMap<u32, Listener>,
    /// Ports at which packets are sent by hand, and left to the inbox.
    by_hand: HashSet<u32>,
    outgoing: VecDeque<Outgoing>,
    refused: usize,
}

impl Sockets {
    pub(crate) fn stream(&self, id: StreamId) -> &Stream {
        &self.streams[id.0]
    }

    pub(crate) fn stream_mut(&mut self, id: StreamId) -> &mut Stream {
        &mut self.streams[id.0]
    }

    pub(crate) fn listen(&mut self, port: u32, socket_type: SocketType) {
        self.listeners.entry(port).or_insert_with(|| Listener {
            socket_type,
            waiting: VecDeque::new(),
        });
    }

    pub(crate) fn stop_listening(&mut self, port: u32) {
        self.listeners.remove(&port);
    }

    /// REQUESTs that were answered with an RST.
    pub(crate) fn refused(&self) -> usize {
        self.refused
    }

    pub(crate) fn accepted(&mut self, port: u32) -> Option<StreamId> {
        self.listeners.get_mut(&port)?.waiting.pop_front()
    }

    /// Leaves the packets to `port` to the inbox from now on, unless a stream is there.
    pub(crate) fn leave_to_hand(&mut self, port: u32) {
        if !self
            .live
            .keys()
            .any(|(local, _)| local.port.value() == port)
        {
            self.by_hand.insert(port);
        }
    }

    pub(crate) fn connect(
        &mut self,
        local: VsockAddr,
        peer: VsockAddr,
        socket_type: SocketType,
        buf: u32,
    ) -> StreamId {
        let state = State::Connecting;
        let id = self.add(Stream::new(local, peer, socket_type, state, buf));
        self.say(id, Some((Op::Request, 0)));
        id
    }

    pub(crate) fn shutdown(&mut self, id: StreamId, flags: ShutdownFlags) {
        let reply = self.streams[id.0].shut(flags);
        self.say(id, reply);
    }

    pub(crate) fn close(&mut self, id: StreamId) {
        let reply = self.streams[id.0].close();
        self.say(id, reply);
    }

    /// Takes up to `max` bytes that arrived.
    pub(crate) fn read(&mut self, id: StreamId, max: usize, rules: &Behaviour) -> Vec<u8> {
        let bytes = self.streams[id.0].read(max);
        let reply = self.streams[id.0].after_read(rules);
        self.say(id, reply);
        bytes
    }

    /// Takes a message that arrived.
    pub(crate) fn read_message(&mut self, id: StreamId, rules: &Behaviour) -> Option<Vec<u8>> {
        let message = self.streams[id.0].read_message()?;
        let reply = self.streams[id.0].after_read(rules);
        self.say(id, reply);
        Some(message)
    }

    /// Sends an operation of a stream at the next opportunity.
    pub(crate) fn say(&mut self, id: StreamId, reply: Option<Reply>) {
        self.outgoing
            .extend(reply.map(|reply| Outgoing::Of(id, reply)));
        let stream = &self.streams[id.0];
        if stream.state() == State::Closed {
            self.live.remove(&(stream.local(), stream.peer()));
        }
    }

    /// Ends all streams without a word; listeners stay, as after a TRANSPORT_RESET.
    pub(crate) fn reset(&mut self) {
        self.live.clear();
        self.outgoing.clear();
        let listeners = self.listeners.values_mut();
        listeners.for_each(|listener| listener.waiting.clear());
        self.streams.iter_mut().for_each(Stream::forget);
    }

    /// Whether something waits to be sent.
    pub(crate) fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Sends what waits to be sent, as long as `send` has room for it.
    pub(crate) fn flush(&mut self, mut send: impl FnMut(&RawHeader) -> bool) {
        while let Some(outgoing) = self.outgoing.front() {
            let header = match *outgoing {
                Outgoing::Raw(header) => header,
                Outgoing::Of(id, (op, flags)) => Header {
                    flags,
                    ..self.streams[id.0].header(op)
                }
                .to_raw(),
            };
            if !send(&header) {
                break;
            }
            self.outgoing.pop_front();
        }
    }

    /// Takes a packet from the device; gives it back when it is for the inbox.
    pub(crate) fn handle(
        &mut self,
        packet: Packet,
        rules: &Behaviour,
    ) -> Result<Option<Packet>, Error> {
        if self.by_hand.contains(&packet.header.dst_port()) {
            return Ok(Some(packet));
        }
        let header = match packet.parse() {
            Ok(header) => header,
            // A packet of a type nobody knows is refused with that type.
            Err(_) if packet.op() == Some(Op::Rst) => return Ok(Some(packet)),
            Err(error) => {
                let header = packet.header;
                return Err(Error::Device(format!("a packet with {error}: {header:?}")));
            }
        };
        if let Some(&id) = self.live.get(&(header.dst, header.src)) {
            let reply = self.streams[id.0].handle(&header, &packet.payload, rules)?;
            self.say(id, reply);
            return Ok(None);
        }
        if header.op == Op::Request {
            return Ok(self.requested(&header, rules).then_some(packet));
        }
        if rules.resets_strangers {
            self.outgoing.extend(packet.header.rst().map(Outgoing::Raw));
        }
        Ok(Some(packet))
    }

    /// Answers a REQUEST; `true` when it is left to the inbox.
    fn requested(&mut self, header: &Header, rules: &Behaviour) -> bool {
        if !rules.answers_requests {
            return true;
        }
        let port = header.dst.port.value();
        let listener = self.listeners.get(&port);
        if listener.is_none_or(|listener| listener.socket_type != header.socket_type) {
            self.outgoing
                .extend(header.to_raw().rst().map(Outgoing::Raw));
            self.refused += 1;
            return false;
        }
        let mut stream = Stream::new(
            header.dst,
            header.src,
            header.socket_type,
            State::Established,
            rules.buf_alloc,
        );
        stream.learn_credit(header);
        let id = self.add(stream);
        if let Some(listener) = self.listeners.get_mut(&port) {
            listener.waiting.push_back(id);
        }
        self.say(id, Some((Op::Response, 0)));
        false
    }

    fn add(&mut self, stream: Stream) -> StreamId {
        let id = StreamId(self.streams.len());
        self.live.insert((stream.local(), stream.peer()), id);
        self.streams.push(stream);
        id
    }
}
