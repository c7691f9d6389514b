//! A guest: streams over a driver. What happens to them is told as events.

use std::collections::{HashMap, VecDeque};
use std::path::Path;

use anyhow::Result;
use vsock_packet::{Cid, Header, Op, ShutdownFlags, VsockAddr};

use crate::driver::{Driver, Stop};
use crate::stream::{State, Stream};

/// Names a stream: both ends.
pub(crate) type StreamId = (VsockAddr, VsockAddr);

/// What happened to a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// It is connected, or was accepted.
    Opened(StreamId),
    /// So many bytes came.
    Data(StreamId, u32),
    /// One is gone.
    Closed,
}

/// A guest with one thread of its own.
pub(crate) struct Guest {
    driver: Driver,
    cid: Cid,
    streams: HashMap<StreamId, Stream>,
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
            streams: HashMap::new(),
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
    pub(crate) fn open(&mut self, peer: VsockAddr) {
        let local = VsockAddr::new(self.cid, self.next_port);
        self.next_port = self.next_port.checked_add(1).unwrap_or(50_000);
        let mut stream = Stream::new(local, peer, State::Connecting);
        let request = stream.packet(Op::Request, 0);
        self.streams.insert((local, peer), stream);
        self.reply(request);
    }

    /// Ends a connection in both directions.
    pub(crate) fn close(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.state = State::Closing;
            let mut shutdown = stream.packet(Op::Shutdown, 0);
            shutdown.flags = ShutdownFlags::all().bits();
            self.reply(shutdown);
        }
    }

    /// Sends packets of `len` bytes for as long as there are credit and room, `most` at
    /// most; tells how many.
    pub(crate) fn send(&mut self, id: StreamId, len: u32, most: usize) -> usize {
        let Some(stream) = self.streams.get_mut(&id) else {
            return 0;
        };
        let mut count = 0;
        while count < most && stream.credit() >= len && self.driver.has_room() {
            self.driver.send(&stream.packet(Op::Rw, len));
            count += 1;
        }
        count
    }

    /// Takes in what came, at most a ring of it, as `events`.
    pub(crate) fn take_in(&mut self, events: &mut Vec<Event>) {
        events.clear();
        while let Some(reply) = self.replies.pop_front() {
            if !self.driver.send(&reply) {
                self.replies.push_front(reply);
                break;
            }
        }
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

    fn handle(&mut self, header: &Header) -> Option<Event> {
        let id = (header.dst, header.src);
        if header.op == Op::Request {
            let mut stream = Stream::new(header.dst, header.src, State::Open);
            stream.learn(header);
            let response = stream.packet(Op::Response, 0);
            self.streams.insert(id, stream);
            self.reply(response);
            return Some(Event::Opened(id));
        }
        let stream = self.streams.get_mut(&id)?;
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
                    self.remove(id)
                })
            }
            Op::CreditRequest => {
                let update = stream.packet(Op::CreditUpdate, 0);
                self.reply(update);
                None
            }
            Op::Rst => Some(self.remove(id)),
            // A credit update may be what a sender waits for.
            _ => None,
        }
    }

    fn remove(&mut self, id: StreamId) -> Event {
        self.streams.remove(&id);
        Event::Closed
    }

    fn reply(&mut self, header: Header) {
        if !self.replies.is_empty() || !self.driver.send(&header) {
            self.replies.push_back(header);
        }
    }
}
