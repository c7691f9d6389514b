//! A device with nothing to do does nothing: no state of a connection makes its worker spin.
//!
//! What is measured is the time all threads of the process have run, so the tests of this file
//! run one after the other.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::{Device, pattern};
use rustix::time::{ClockId, clock_gettime};
use vsock_packet::ShutdownFlags;
use vsock_testkit::host::{Client, HostListener, HostStream};
use vsock_testkit::{Behaviour, Error, Guest, Refill, RxBuffers, Setup, StreamId};

/// The time in which the process is watched, and how much of it it may run.
const WATCHED: Duration = Duration::from_millis(300);
const MAY_RUN: Duration = Duration::from_millis(30);

fn one_at_a_time() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn time_run() -> Duration {
    clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap()
}

/// A stream between a guest and a host, watched by [`Watched::is_idle`].
struct Watched {
    guest: Guest,
    stream: StreamId,
    end: HostStream,
    host: HostListener,
    device: Device,
    _lock: MutexGuard<'static, ()>,
}

impl Watched {
    fn new(behaviour: Behaviour) -> Result<Self, Error> {
        let lock = one_at_a_time();
        let device = Device::start();
        let host = HostListener::bind(&device.uds(), 700)?;
        let mut guest = device.guest_with(Setup {
            behaviour,
            ..Setup::default()
        })?;
        let stream = guest.connect(700)?;
        let end = host.accept()?;
        Ok(Self {
            guest,
            stream,
            end,
            host,
            device,
            _lock: lock,
        })
    }

    /// Fails when the process runs more than it may.
    #[track_caller]
    fn is_idle(&mut self) {
        // What is to be done at first is done here.
        self.guest.pump(Duration::from_millis(50)).unwrap();
        let before = time_run();
        self.guest.pump(WATCHED).unwrap();
        let run = time_run() - before;
        assert!(run < MAY_RUN, "the process ran {run:?} of {WATCHED:?}");
    }
}

#[test]
fn with_an_open_connection() -> Result<(), Error> {
    Watched::new(Behaviour::linux())?.is_idle();
    Ok(())
}

#[test]
fn while_a_host_has_data_and_the_guest_has_no_credit() -> Result<(), Error> {
    for answers_credit_requests in [true, false] {
        let behaviour = Behaviour {
            answers_credit_requests,
            ..Behaviour::linux()
        };
        let mut watched = Watched::new(behaviour)?;
        watched
            .end
            .write_until_blocked(&pattern(2 << 20), Duration::from_millis(20))?;
        watched.is_idle();
    }
    Ok(())
}

#[test]
fn while_a_guest_has_data_and_the_host_does_not_read() -> Result<(), Error> {
    let mut watched = Watched::new(Behaviour::linux())?;
    for _ in 0..100 {
        watched
            .guest
            .write_some(watched.stream, &pattern(64 << 10))?;
    }
    watched.is_idle();
    Ok(())
}

#[test]
fn while_both_directions_are_full() -> Result<(), Error> {
    let mut watched = Watched::new(Behaviour::linux())?;
    watched
        .end
        .write_until_blocked(&pattern(2 << 20), Duration::from_millis(20))?;
    for _ in 0..100 {
        watched
            .guest
            .write_some(watched.stream, &pattern(64 << 10))?;
    }
    watched.is_idle();
    Ok(())
}

#[test]
fn while_there_are_no_rx_buffers() -> Result<(), Error> {
    let mut watched = Watched::new(Behaviour::linux())?;
    let rx = RxBuffers {
        refill: Refill::ByHand,
        ..RxBuffers::default()
    };
    watched.guest.rings_mut().set_rx_buffers(rx);
    watched
        .end
        .write_until_blocked(&pattern(1 << 20), Duration::from_millis(20))?;
    watched.guest.pump(Duration::from_millis(20))?;
    watched.guest.read_some(watched.stream, usize::MAX)?;
    watched.is_idle();
    Ok(())
}

#[test]
fn when_one_side_has_sent_its_last() -> Result<(), Error> {
    let mut watched = Watched::new(Behaviour::linux())?;
    watched.end.shutdown_write()?;
    watched.is_idle();
    drop(watched);
    let mut watched = Watched::new(Behaviour::linux())?;
    watched
        .guest
        .shutdown(watched.stream, ShutdownFlags::SEND)?;
    watched.is_idle();
    Ok(())
}

#[test]
fn when_a_host_has_gone_and_the_guest_does_not_answer() -> Result<(), Error> {
    let behaviour = Behaviour {
        answers_shutdown: false,
        ..Behaviour::linux()
    };
    let mut watched = Watched::new(behaviour)?;
    watched
        .end
        .write_until_blocked(&pattern(1 << 20), Duration::from_millis(20))?;
    // Another end takes the place of the one that goes.
    watched.guest.connect(700)?;
    let other = watched.host.accept()?;
    drop(std::mem::replace(&mut watched.end, other));
    watched.is_idle();
    Ok(())
}

#[test]
fn when_clients_hang_up_before_they_are_heard() -> Result<(), Error> {
    let mut watched = Watched::new(Behaviour::linux())?;
    for line in ["", "CONN", "CONNECT 9\n"] {
        let mut client = Client::connect(&watched.device.uds())?;
        client.say(line.as_bytes())?;
    }
    let _silent = Client::connect(&watched.device.uds())?;
    watched.is_idle();
    Ok(())
}

#[test]
fn while_the_guest_is_stopped() -> Result<(), Error> {
    let mut watched = Watched::new(Behaviour::linux())?;
    let bases = watched.guest.stop()?;
    watched
        .end
        .write_until_blocked(&pattern(1 << 20), Duration::from_millis(20))?;
    let _client = Client::dial(&watched.device.uds(), 1234)?;
    watched.is_idle();
    watched.guest.resume(&bases)?;
    let read = watched.guest.read_exact(watched.stream, 100_000)?;
    assert!(read == pattern(100_000));
    Ok(())
}

#[test]
fn when_the_vm_has_gone() -> Result<(), Error> {
    let _lock = one_at_a_time();
    let device = Device::start();
    let guest = device.guest()?;
    drop(guest);
    let before = time_run();
    std::thread::sleep(WATCHED);
    assert!(time_run() - before < MAY_RUN);
    Ok(())
}
