//! What the application in a guest does, for as long as the guest runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Result;
use vsock_packet::VsockAddr;

use crate::guest::{Event, Guest, StreamId};

/// An application.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    /// Sends packets of this length as fast as it may.
    Send { to: VsockAddr, len: u32 },
    /// Accepts connections and counts the bytes that come.
    Count,
    /// Accepts connections and sends back what comes.
    Echo,
    /// Sends one byte, waits for one byte, and counts.
    PingPong { to: VsockAddr },
    /// Connects, closes and counts; so many at once.
    Connect { to: VsockAddr, at_once: usize },
}

/// What an application counts, for another thread to look at.
#[derive(Clone, Default, Debug)]
pub(crate) struct Count(Arc<AtomicU64>);

impl Count {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Runs an application until its guest is stopped; returns how long each round trip took,
/// in nanoseconds.
pub(crate) fn run(mut guest: Guest, role: Role, count: &Count) -> Result<Vec<u64>> {
    let mut app = App {
        role,
        count,
        stream: None,
        sent: Instant::now(),
        round_trips: Vec::new(),
    };
    app.start(&mut guest);
    let mut events = Vec::new();
    while !guest.is_stopped() {
        guest.take_in(&mut events);
        for &event in &events {
            app.handle(&mut guest, event);
        }
        let sent = app.send(&mut guest);
        if events.is_empty() && sent == 0 {
            guest.wait()?;
        } else {
            guest.kick()?;
        }
    }
    Ok(app.round_trips)
}

struct App<'a> {
    role: Role,
    count: &'a Count,
    /// The stream of an application that has but one.
    stream: Option<StreamId>,
    sent: Instant,
    round_trips: Vec<u64>,
}

impl App<'_> {
    fn start(&mut self, guest: &mut Guest) {
        match self.role {
            Role::Send { to, .. } | Role::PingPong { to } => guest.open(to),
            Role::Connect { to, at_once } => (0..at_once).for_each(|_| guest.open(to)),
            Role::Count | Role::Echo => (),
        }
    }

    fn handle(&mut self, guest: &mut Guest, event: Event) {
        match (self.role, event) {
            (Role::Send { .. }, Event::Opened(id)) => self.stream = Some(id),
            (Role::Count, Event::Data(_, len)) => self.count.add(len.into()),
            (Role::Echo, Event::Data(id, len)) => {
                self.count.add(1);
                guest.send(id, len, 1);
            }
            (Role::PingPong { .. }, Event::Opened(id)) => self.ping(guest, id),
            (Role::PingPong { .. }, Event::Data(id, _)) => {
                self.count.add(1);
                self.round_trips.push(self.sent.elapsed().as_nanos() as u64);
                self.ping(guest, id);
            }
            (Role::Connect { .. }, Event::Opened(id)) => guest.close(id),
            (Role::Connect { to, .. }, Event::Closed) => {
                self.count.add(1);
                guest.open(to);
            }
            _ => (),
        }
    }

    fn ping(&mut self, guest: &mut Guest, id: StreamId) {
        self.sent = Instant::now();
        guest.send(id, 1, 1);
    }

    /// Sends what a streaming application may send now; tells how many packets.
    fn send(&mut self, guest: &mut Guest) -> usize {
        match (self.role, self.stream) {
            (Role::Send { len, .. }, Some(id)) => guest.send(id, len, usize::MAX),
            _ => 0,
        }
    }
}
