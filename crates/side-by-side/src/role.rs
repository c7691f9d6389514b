//! What the applications in a guest do, for as long as the guest runs.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::Result;
use vsock_packet::VsockAddr;

use crate::count::Count;
use crate::guest::{Event, Guest, StreamId};

/// Packets that one stream sends before it is another's turn.
const TURN: usize = 32;

/// An application that connects to somebody.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) to: VsockAddr,
    pub(crate) task: Task,
    pub(crate) count: Count,
}

/// What it does then.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Task {
    /// Sends packets of this length as fast as it may.
    Send(u32),
    /// Sends one byte, waits for one byte, and counts round trips.
    PingPong,
    /// Sends so many bytes, waits for as many, and counts them.
    Exchange(u32),
    /// The same once; then the connection is idle.
    ExchangeOnce(u32),
    /// Closes, counts and connects again.
    Close,
}

/// The application that accepts connections.
#[derive(Clone, Debug)]
pub(crate) enum Service {
    /// Counts the bytes that come.
    Count(Count),
    /// Sends back what comes.
    Echo,
    /// Accepts so many connections; then the guest does nothing at all.
    Stall(usize),
}

/// Runs a guest until it is stopped; returns how long each round trip took, in
/// nanoseconds.
pub(crate) fn run(mut guest: Guest, service: Service, clients: Vec<Client>) -> Result<Vec<u64>> {
    let mut apps = Apps {
        service,
        clients,
        streams: Vec::new(),
        accepted: 0,
        senders: Vec::new(),
        owed: VecDeque::new(),
        round_trips: Vec::new(),
    };
    for index in 0..apps.clients.len() {
        apps.open(&mut guest, index);
    }
    let mut events = Vec::new();
    while !guest.is_stopped() {
        guest.take_in(&mut events);
        for &event in &events {
            apps.handle(&mut guest, event);
        }
        if apps.is_stalled() {
            guest.stall()?;
            break;
        }
        let sent = apps.send(&mut guest);
        if events.is_empty() && sent == 0 {
            guest.wait()?;
        } else {
            guest.kick()?;
        }
    }
    Ok(apps.round_trips)
}

struct Apps {
    service: Service,
    clients: Vec<Client>,
    /// A client's stream: by the stream's number.
    streams: Vec<Option<Exchange>>,
    /// Connections that others have opened.
    accepted: usize,
    /// Streams that send all the time, with the length of their packets.
    senders: Vec<(StreamId, u32)>,
    /// Packets for which there was no room or no credit, in their order.
    owed: VecDeque<(StreamId, u32)>,
    round_trips: Vec<u64>,
}

/// What a client waits for.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    /// The client's number.
    client: usize,
    sent: Instant,
    /// Bytes that are still to come.
    awaited: u32,
}

impl Apps {
    fn open(&mut self, guest: &mut Guest, client: usize) {
        let id = guest.open(self.clients[client].to);
        if self.streams.len() <= id {
            self.streams.resize(id + 1, None);
        }
        self.streams[id] = Some(Exchange {
            client,
            sent: Instant::now(),
            awaited: 0,
        });
    }

    fn handle(&mut self, guest: &mut Guest, event: Event) {
        match event {
            Event::Accepted => self.accepted += 1,
            Event::Opened(id) => self.opened(guest, id),
            Event::Data(id, len) => match self.streams.get(id).copied().flatten() {
                Some(exchange) => self.answered(guest, id, exchange, len),
                None => self.serve(guest, id, len),
            },
            Event::Closed(id) => {
                guest.forget(id);
                let exchange = self.streams.get_mut(id).and_then(Option::take);
                self.senders.retain(|&(sender, _)| sender != id);
                if let Some(Exchange { client, .. }) = exchange
                    && matches!(self.clients[client].task, Task::Close)
                {
                    self.clients[client].count.add(1);
                    self.open(guest, client);
                }
            }
        }
    }

    fn opened(&mut self, guest: &mut Guest, id: StreamId) {
        let Some(exchange) = self.streams.get(id).copied().flatten() else {
            return;
        };
        match self.clients[exchange.client].task {
            Task::Send(len) => self.senders.push((id, len)),
            Task::PingPong => self.ask(guest, id, exchange, 1),
            Task::Exchange(len) | Task::ExchangeOnce(len) => self.ask(guest, id, exchange, len),
            Task::Close => guest.close(id),
        }
    }

    fn ask(&mut self, guest: &mut Guest, id: StreamId, exchange: Exchange, len: u32) {
        self.streams[id] = Some(Exchange {
            sent: Instant::now(),
            awaited: len,
            ..exchange
        });
        self.give(guest, id, len);
    }

    fn answered(&mut self, guest: &mut Guest, id: StreamId, mut exchange: Exchange, len: u32) {
        exchange.awaited = exchange.awaited.saturating_sub(len);
        self.streams[id] = Some(exchange);
        if exchange.awaited > 0 {
            return;
        }
        let client = &self.clients[exchange.client];
        match client.task {
            Task::PingPong => {
                client.count.add(1);
                let took = exchange.sent.elapsed().as_nanos() as u64;
                self.round_trips.push(took);
                self.ask(guest, id, exchange, 1);
            }
            Task::Exchange(len) => {
                client.count.add(len.into());
                self.ask(guest, id, exchange, len);
            }
            Task::ExchangeOnce(_) => client.count.add(1),
            Task::Send(_) | Task::Close => (),
        }
    }

    fn serve(&mut self, guest: &mut Guest, id: StreamId, len: u32) {
        match &self.service {
            Service::Count(count) => count.add(len.into()),
            Service::Echo => self.give(guest, id, len),
            Service::Stall(_) => (),
        }
    }

    /// Sends a packet, after those that are owed.
    fn give(&mut self, guest: &mut Guest, id: StreamId, len: u32) {
        if !self.owed.is_empty() || guest.send(id, len, 1) == 0 {
            self.owed.push_back((id, len));
        }
    }

    /// Sends what may be sent now; tells how many packets.
    fn send(&mut self, guest: &mut Guest) -> usize {
        let mut sent = 0;
        while let Some(&(id, len)) = self.owed.front()
            && guest.send(id, len, 1) > 0
        {
            self.owed.pop_front();
            sent += 1;
        }
        for &(id, len) in &self.senders {
            sent += guest.send(id, len, TURN);
        }
        sent
    }

    fn is_stalled(&self) -> bool {
        matches!(self.service, Service::Stall(after) if self.accepted >= after)
    }
}
