//! Notifications of returned TX chains come: to guests that wait for each, with and without
//! EVENT_IDX, and to those that have filled their ring.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::{Alive, header, pair_of};
use vsock_packet::{Op, RawHeader};
use vsock_testkit::host::HostStream;
use vsock_testkit::{Error, Guest, Layout, Setup, Transport, feature, queue};

const DEADLINE: Duration = Duration::from_secs(10);

/// A guest that does nothing but send packets which nobody answers.
struct Sender {
    guest: Guest,
    header: RawHeader,
    _end: HostStream,
    _alive: Alive,
}

impl Sender {
    fn new(features: u64) -> Result<Self, Error> {
        let (alive, mut guest, stream, end) = pair_of(Setup {
            features,
            ..Setup::default()
        })?;
        let local = guest.stream(stream).local().port;
        let header = header(&guest, Op::CreditUpdate, local.value(), 700).to_raw();
        guest.expect_tx_returned()?;
        let mut sender = Self {
            guest,
            header,
            _end: end,
            _alive: alive,
        };
        sender.is_called();
        Ok(sender)
    }

    /// Puts a packet into the ring, unless that is full.
    fn put(&mut self) -> bool {
        let layout = Layout::default();
        self.guest.rings_mut().send(&self.header, &[], &layout)
    }

    fn kick(&mut self) {
        if self.guest.rings_mut().ring_mut(queue::TX).needs_kick() {
            self.guest.transport().kick(queue::TX).unwrap();
        }
    }

    fn is_called(&mut self) -> bool {
        self.guest.transport().was_called(queue::TX)
    }

    /// Waits until so many chains are back, asleep but for notifications of the TX ring.
    #[track_caller]
    fn wait_for_call(&mut self, chains: usize) {
        let start = Instant::now();
        let mut back = self.guest.rings_mut().reclaim_tx().unwrap();
        while back < chains {
            while !self.is_called() {
                let waited = start.elapsed();
                assert!(
                    waited < DEADLINE,
                    "no notification within {waited:?}, {back} of {chains} chains are back"
                );
                thread::yield_now();
            }
            back += self.guest.rings_mut().reclaim_tx().unwrap();
        }
    }
}

#[test]
fn a_guest_that_waits_for_each_chain_gets_each() -> Result<(), Error> {
    for features in [feature::LINUX, feature::LINUX & !feature::EVENT_IDX] {
        let mut sender = Sender::new(features)?;
        for _ in 0..2_000 {
            assert!(sender.put());
            sender.kick();
            sender.wait_for_call(1);
        }
    }
    Ok(())
}

#[test]
fn a_guest_that_waits_for_room_gets_it() -> Result<(), Error> {
    let mut sender = Sender::new(feature::LINUX)?;
    for _ in 0..200 {
        let mut sent = 0;
        while sender.put() {
            sent += 1;
            sender.kick();
        }
        assert!(sent > 0);
        sender.wait_for_call(sent);
    }
    Ok(())
}
