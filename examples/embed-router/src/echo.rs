//! A service of the VMM's own: it sends back what it receives.
//!
//! The switch treats it like a guest: it receives by a [`Port`] and sends by a [`Member`].
//! What a connection is, and how much may be sent on it, it leaves to [`Connection`].

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vsock_connection::{Connection, Received, Timeouts};
use vsock_packet::{Header, Op, Payload, RawHeader, ShutdownFlags, SocketType, VsockAddr};
use vsock_router::{Member, Packet, Port, Receiver, Refusal, Request, Route, Router};

/// What a guest may have sent ahead of the echo, in bytes.
const BUF_ALLOC: u32 = 64 * 1024;
/// Packets that wait in the inbox.
const INBOX: usize = 64;
/// The most payload in a packet, in bytes.
const MAX_PAYLOAD: usize = 16 * 1024;

/// Routes one address to the service.
pub(crate) struct EchoRoute {
    pub(crate) at: VsockAddr,
    pub(crate) service: Arc<Member>,
}

impl Router for EchoRoute {
    fn route(&self, request: &Request) -> Route {
        match request.socket_type {
            _ if request.dst != self.at => Route::Refuse(Refusal::NoRoute),
            SocketType::Stream => Route::Member(Arc::clone(&self.service)),
            SocketType::Seqpacket => Route::Refuse(Refusal::TypeNotSupported),
        }
    }
}

/// The service's receiving side. Others' threads may put packets here, so it only keeps
/// them.
#[derive(Default)]
pub(crate) struct Inbox(Mutex<Letters>);

#[derive(Default)]
struct Letters(VecDeque<(RawHeader, Vec<u8>)>);

impl Inbox {
    fn letters(&self) -> MutexGuard<'_, Letters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Port for Inbox {
    fn is_up(&self) -> bool {
        true
    }

    fn pass(&self, fill: &mut dyn FnMut(&mut dyn Receiver)) {
        fill(&mut *self.letters());
    }

    fn wake(&self) {}
}

impl Receiver for Letters {
    fn put(&mut self, packet: &mut Packet<'_>) -> bool {
        let room = self.0.len() < INBOX;
        if room {
            let mut payload = vec![0; packet.payload.len()];
            let header = packet.header_for(payload.len());
            packet.payload.copy_to_bytes(&mut payload);
            self.0.push_back((header, payload));
        }
        room
    }

    fn put_control(&mut self, header: &RawHeader) -> bool {
        let room = self.0.len() < INBOX;
        if room {
            self.0.push_back((*header, Vec::new()));
        }
        room
    }
}

/// The service.
pub(crate) struct Echo {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) member: Arc<Member>,
    pub(crate) calls: HashMap<VsockAddr, Call>,
}

/// A connection, and what is still to be sent back on it.
pub(crate) struct Call {
    connection: Connection,
    unsent: VecDeque<u8>,
}

impl Echo {
    /// Answers all that has come. `false` when there was nothing.
    pub(crate) fn run(&mut self, now: Instant) -> bool {
        let letters = std::mem::take(&mut *self.inbox.letters()).0;
        for (raw, payload) in &letters {
            if let Ok(header) = Header::parse(raw) {
                self.take(&header, payload, now);
            }
        }
        self.member.handle_timeouts(now);
        !letters.is_empty()
    }

    fn take(&mut self, header: &Header, payload: &[u8], now: Instant) {
        if header.op == Op::Request {
            let call = Call {
                connection: Connection::accepted(header, BUF_ALLOC, Timeouts::default()),
                unsent: VecDeque::new(),
            };
            self.calls.insert(header.src, call);
        }
        let Some(call) = self.calls.get_mut(&header.src) else {
            return;
        };
        if header.op != Op::Request && call.connection.receive(header, now) == Received::Payload {
            call.unsent.extend(payload);
        }
        call.answer(&self.member, now);
        if call.connection.closed().is_some() {
            self.calls.remove(&header.src);
        }
    }
}

impl Call {
    fn answer(&mut self, member: &Member, now: Instant) {
        let send = |header, payload: &[u8]| {
            member.send(&[Packet::new(header, Payload::from_bytes(payload))], now);
        };
        loop {
            while let Some(header) = self.connection.poll_control(now) {
                send(header, &[]);
            }
            let (bytes, packets) = self.connection.sendable();
            let len = bytes.min(self.unsent.len()).min(MAX_PAYLOAD);
            if packets > 0 && len > 0 {
                let payload: Vec<u8> = self.unsent.drain(..len).collect();
                self.connection.forwarded(len);
                send(self.connection.data_header(len), &payload);
            } else if !self.connection.has_control() && !self.end(now) {
                return;
            }
        }
    }

    /// Ends the connection when the guest has, and has got everything back. `false` when
    /// there is nothing to say for that.
    fn end(&mut self, now: Instant) -> bool {
        let ended = self.connection.guest_ended();
        if ended.contains(ShutdownFlags::RECEIVE) {
            self.connection.forwarded(self.unsent.len());
            self.unsent.clear();
        }
        if ended.is_all() {
            self.connection.finish();
        } else if ended.contains(ShutdownFlags::SEND) && self.unsent.is_empty() {
            self.connection.end_host(ShutdownFlags::all(), now);
        }
        self.connection.has_control()
    }
}
