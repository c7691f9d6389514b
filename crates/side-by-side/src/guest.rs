//! A guest: streams over a driver. What happens to them is told as events.

use std::collections::{HashMap, VecDeque};
use std::path::Path;

use anyhow::Result;
use slab::Slab;
use vsock_packet::{Cid, Header, Op, ShutdownFlags, VsockAddr};

use crate::driver::{Driver, Stop};
use crate::stream::{State, Stream};

/// Names a stream of a guest, until it is forgotten.
pub(crate) type StreamId = usize;

/// Both ends of a stream, the guest's first.
type Ends = (VsockAddr, VsockAddr);

/// What happened to a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// A connection that was asked for is there.
    Opened(StreamId),
    /// Somebody else asked for one, and has it.
    Accepted,
    /// So many bytes came.
    Data(StreamId, u32),
    /// It is gone, and its number is to be freed ([`Guest::forget`]).
    Closed(StreamId),
}

/// A guest with one thread of its own.
pub(crate) struct Guest {
    driver: Driver,
    cid: Cid,
    streams: Slab<Stream>,
    by_ends: HashMap<Ends, StreamId>,
    /// The stream of the packet before: mostly the one of the next, too.
    last: Option<(Ends, StreamId)>,
    /// Packets for which the TX ring had no room.
    replies: VecDeque<Header>,
    next_port: u32,
}

impl Guest {
    /// Connects to the device.
    pub(crate) fn connect(socket: &Path, cid: Cid) -> Result<Self> {
        Ok(Self {
            driver: Driver::connect(socket)?,
            cid,
            streams: Slab::new(),
            by_ends: HashMap::new(),
            last: None,
            replies: VecDeque::new(),
            next_port: 50_000,
        })
    }

    /// What ends the guest's waiting.
    pub(crate) fn stop(&self) -> Stop {
        self.driver.stop()
    }

    /// Whether the guest was told to stop.
    pub(crate) fn is_stopped(&self) -> bool {
        self.driver.is_stopped()
    }

    /// Asks for a connection.
    pub(crate) fn open(&mut self, peer: VsockAddr) -> StreamId {
        let local = VsockAddr::new(self.cid, self.next_port);
        self.next_port = self.next_port.checked_add(1).unwrap_or(50_000);
        let mut stream = Stream::new(local, peer, State::Connecting);
        let request = stream.packet(Op::Request, 0);
        let id = self.add((local, peer), stream);
        self.reply(request);
        id
    }

    /// Ends a connection in both directions.
    pub(crate) fn close(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(id) {
            stream.state = State::Closing;
            let mut shutdown = stream.packet(Op::Shutdown, 0);
            shutdown.flags = ShutdownFlags::all().bits();
            self.reply(shutdown);
        }
    }

    /// Frees the number of a stream that is gone: only now, so that no event after its last
    /// is another's.
    pub(crate) fn forget(&mut self, id: StreamId) {
        self.streams.try_remove(id);
    }

    /// Sends packets of `len` bytes for as long as there are credit and room, `most` at
    /// most; tells how many.
    pub(crate) fn send(&mut self, id: StreamId, len: u32, most: usize) -> usize {
        let Some(stream) = self.streams.get_mut(id) else {
            return 0;
        };
        let mut count = 0;
        while count < most && stream.credit() >= len && self.driver.has_room() {
            self.driver.send(&stream.packet(Op::Rw, len));
            count += 1;
        }
        count
    }

    /// Takes in what came, at most half a ring of it, as `events`.
    pub(crate) fn take_in(&mut self, events: &mut Vec<Event>) {
        events.clear();
        self.send_replies();
        while events.len() < 64 {
            match self.driver.receive() {
                Some(header) => events.extend(self.handle(&header)),
                None => break,
            }
        }
    }

    /// Notifies the device, if it wants to be.
    pub(crate) fn kick(&mut self) -> Result<()> {
        self.driver.kick()
    }

    /// Waits until the device has done something.
    pub(crate) fn wait(&mut self) -> Result<()> {
        self.driver.wait()
    }

    /// Waits until the guest is stopped, whatever the device does.
    pub(crate) fn stall(&mut self) -> Result<()> {
        self.send_replies();
        self.driver.kick()?;
        while !self.is_stopped() {
            self.driver.wait_for_call()?;
        }
        Ok(())
    }

    fn handle(&mut self, header: &Header) -> Option<Event> {
        let ends = (header.dst, header.src);
        if header.op == Op::Request {
            let mut stream = Stream::new(header.dst, header.src, State::Open);
            stream.learn(header);
            let response = stream.packet(Op::Response, 0);
            self.add(ends, stream);
            self.reply(response);
            return Some(Event::Accepted);
        }
        let id = self.find(ends)?;
        let stream = self.streams.get_mut(id)?;
        stream.learn(header);
        match header.op {
            Op::Response => {
                stream.state = State::Open;
                Some(Event::Opened(id))
            }
            Op::Rw => {
                stream.read(header.len);
                if stream.update_is_due() {
                    let update = stream.packet(Op::CreditUpdate, 0);
                    self.reply(update);
                }
                Some(Event::Data(id, header.len))
            }
            Op::Shutdown if header.shutdown_flags().is_all() => {
                let closing = stream.state == State::Closing;
                let rst = stream.packet(Op::Rst, 0);
                (!closing).then(|| {
                    self.reply(rst);
                    self.end(ends, id)
                })
            }
            Op::CreditRequest => {
                let update = stream.packet(Op::CreditUpdate, 0);
                self.reply(update);
                None
            }
            Op::Rst => Some(self.end(ends, id)),
            // A credit update may be what a sender waits for.
            _ => None,
        }
    }

    fn find(&mut self, ends: Ends) -> Option<StreamId> {
        if let Some((_, id)) = self.last.filter(|&(last, _)| last == ends) {
            return Some(id);
        }
        let id = *self.by_ends.get(&ends)?;
        self.last = Some((ends, id));
        Some(id)
    }

    fn add(&mut self, ends: Ends, stream: Stream) -> StreamId {
        let id = self.streams.insert(stream);
        self.by_ends.insert(ends, id);
        self.last = Some((ends, id));
        id
    }

    fn end(&mut self, ends: Ends, id: StreamId) -> Event {
        self.by_ends.remove(&ends);
        self.last = None;
        Event::Closed(id)
    }

    fn reply(&mut self, header: Header) {
        if !self.replies.is_empty() || !self.driver.send(&header) {
            self.replies.push_back(header);
        }
    }

    fn send_replies(&mut self) {
        while let Some(reply) = self.replies.pop_front() {
            if !self.driver.send(&reply) {
                self.replies.push_front(reply);
                break;
            }
        }
    }
}
