//! The life of connections: half-closed, many at once, with slow readers.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_agent::script::{Receive, Send, Step, milliseconds};
use rustix::io::Errno;

use super::Case;
use super::bulk::{BULK, Transfer};
use crate::lab::Lab;
use crate::talk::{Direction, Initiator, Talk};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for initiator in Initiator::BOTH {
        let connects = initiator.connects();
        for direction in Direction::BOTH {
            let name = format!("half-close by the sender, {}, {connects}", direction.name());
            cases.push(Case::new(name, move |lab| {
                half_close(lab, initiator, direction)
            }));
        }
        let name = format!("200 connections at once, {connects}");
        cases.push(Case::new(name, move |lab| many(lab, initiator)));
        for direction in Direction::BOTH {
            let name = format!(
                "a slow reader gets all of it, {}, {connects}",
                direction.name()
            );
            cases.push(Case::new(name, move |lab| {
                slow_reader(lab, initiator, direction)
            }));
        }
        let name = format!("a reader that begins after the close, {connects}");
        cases.push(Case::new(name, move |lab| late_reader(lab, initiator)));
        let name = format!("300 connections one after the other, {connects}");
        cases.push(Case::new(name, move |lab| one_by_one(lab, initiator)));
    }
    for direction in Direction::BOTH {
        let name = format!(
            "single bytes to a reader that begins late, {}",
            direction.name()
        );
        cases.push(Case::new(name, move |lab| single_bytes(lab, direction)));
        let name = format!("a stalled reader holds nobody up, {}", direction.name());
        cases.push(Case::new(name, move |lab| stalled_beside(lab, direction)));
        let name = format!(
            "a reader that leaves is noticed at once, {}",
            direction.name()
        );
        cases.push(Case::new(name, move |lab| reader_leaves(lab, direction)));
    }
    cases
}

/// One end sends and shuts its direction down; the other reads to the end, and then
/// sends in turn.
fn half_close(lab: &mut Lab, initiator: Initiator, direction: Direction) -> Result<String> {
    const BYTES: u64 = 1 << 20;
    let first = vec![
        Step::Send(Send::new(BYTES, 1)),
        Step::FinishSending,
        Step::Receive(Receive::new(BYTES, 2)),
        Step::ExpectEnd,
    ];
    let second = vec![
        Step::Receive(Receive::new(BYTES, 1)),
        Step::ExpectEnd,
        Step::Send(Send::new(BYTES, 2)),
    ];
    let (guest, host) = direction.assign(first, second);
    lab.talk(&Talk {
        initiator,
        connections: 1,
        guest,
        host,
    })?;
    Ok(String::new())
}

/// All connections are open before the first byte goes over any; each has a pattern of
/// its own, echoed by the other end.
fn many(lab: &mut Lab, initiator: Initiator) -> Result<String> {
    const BYTES: u64 = 100_000;
    let asks = vec![
        Step::Meet,
        Step::Exchange(Send::new(BYTES, 7), Receive::new(BYTES, 7)),
        Step::Meet,
    ];
    let echoes = vec![Step::Meet, Step::Echo];
    let (guest, host) = match initiator {
        Initiator::Guest => (asks, echoes),
        Initiator::Host => (echoes, asks),
    };
    lab.talk(&Talk {
        initiator,
        connections: 200,
        guest,
        host,
    })?;
    Ok(String::new())
}

/// The sender closes as soon as its last byte is written; the reader takes its time, and
/// misses nothing.
fn slow_reader(lab: &mut Lab, initiator: Initiator, direction: Direction) -> Result<String> {
    const BYTES: u64 = 2 << 20;
    let sender = vec![Step::Send(Send::new(BYTES, 3))];
    let slow = Receive {
        bytes: BYTES,
        read_size: 16 << 10,
        pause_ms: 20,
        seed: 3,
    };
    let receiver = vec![Step::Receive(slow), Step::ExpectEnd];
    let (guest, host) = direction.assign(sender, receiver);
    lab.talk(&Talk {
        initiator,
        connections: 1,
        guest,
        host,
    })?;
    Ok(String::new())
}

/// The guest writes as much as a socket takes and closes, before the host reads at all.
fn late_reader(lab: &mut Lab, initiator: Initiator) -> Result<String> {
    const BYTES: u64 = 200_000;
    let guest = vec![Step::Send(Send::new(BYTES, 4))];
    let host = vec![
        Step::Dawdle(1500),
        Step::Receive(Receive::new(BYTES, 4)),
        Step::ExpectEnd,
    ];
    lab.talk(&Talk {
        initiator,
        connections: 1,
        guest,
        host,
    })?;
    Ok(String::new())
}

/// Each connection ends before the next begins.
fn one_by_one(lab: &mut Lab, initiator: Initiator) -> Result<String> {
    const CONNECTIONS: usize = 300;
    let guest = vec![
        Step::Send(Send::new(100, 1)),
        Step::Receive(Receive::new(100, 2)),
    ];
    let host = vec![
        Step::Receive(Receive::new(100, 1)),
        Step::Send(Send::new(100, 2)),
    ];
    let talk = Talk {
        initiator,
        connections: 1,
        guest,
        host,
    };
    for number in 0..CONNECTIONS {
        lab.talk(&talk)
            .with_context(|| format!("connection {number}"))?;
    }
    Ok(String::new())
}

/// So many packets that a guest's kernel would give the connection up, were they all on
/// their way to it while nobody reads: it charges each packet for more than its bytes.
fn single_bytes(lab: &mut Lab, direction: Direction) -> Result<String> {
    const BYTES: u64 = 5000;
    let sender = vec![
        Step::Send(Send {
            bytes: BYTES,
            write_size: 1,
            seed: 6,
        }),
        Step::FinishSending,
        Step::ExpectEnd,
    ];
    let receiver = vec![
        Step::Dawdle(1000),
        Step::Receive(Receive::new(BYTES, 6)),
        Step::ExpectEnd,
    ];
    let (guest, host) = direction.assign(sender, receiver);
    lab.talk(&Talk {
        initiator: Initiator::Guest,
        connections: 1,
        guest,
        host,
    })?;
    Ok(String::new())
}

/// While one connection's reader doesn't read, and its sender has filled every buffer,
/// others' data flows.
fn stalled_beside(lab: &mut Lab, direction: Direction) -> Result<String> {
    const BYTES: u64 = 8 << 20;
    const STALL: Duration = Duration::from_secs(4);
    let initiator = Initiator::Guest;
    let sender = vec![Step::Send(Send::new(BYTES, 8))];
    let stall = Step::Dawdle(STALL.as_millis() as u64);
    let receiver = vec![
        stall,
        Step::Receive(Receive::new(BYTES, 8)),
        Step::ExpectEnd,
    ];
    let (guest, host) = direction.assign(sender, receiver);
    let start = Instant::now();
    let stalled = lab.begin(&Talk {
        initiator,
        connections: 1,
        guest,
        host,
    })?;
    for direction in Direction::BOTH {
        let transfer = Transfer {
            initiator,
            direction,
            bytes: 10_000_000,
            write_size: 64 << 10,
        };
        transfer
            .transfer(lab)
            .context("beside the stalled connection")?;
    }
    let took = start.elapsed();
    stalled
        .finish()?
        .succeeded()
        .context("the stalled connection, once it is read")?;
    ensure!(
        took < STALL,
        "20 MB took {took:?} beside it, until it was read"
    );
    Ok(format!("{:.0} ms", milliseconds(took)))
}

/// A sender in mid-transfer learns at once that its reader has closed.
fn reader_leaves(lab: &mut Lab, direction: Direction) -> Result<String> {
    const GONE: [Errno; 2] = [Errno::PIPE, Errno::CONNRESET];
    let sender = vec![Step::Send(Send::new(BULK, 2))];
    let receiver = vec![Step::Receive(Receive::new(1 << 20, 2))];
    let (guest, host) = direction.assign(sender, receiver);
    let initiator = Initiator::Guest;
    let begun = Instant::now();
    let ends = lab.attempt(&Talk {
        initiator,
        connections: 1,
        guest,
        host,
    })?;
    let took = begun.elapsed();
    let sender = match direction {
        Direction::ToHost => &ends.guest[0],
        Direction::ToGuest => &ends.host[0],
    };
    let Some(failure) = &sender.failure else {
        bail!("the sender has noticed nothing")
    };
    let gone = GONE
        .iter()
        .any(|gone| failure.errno == Some(gone.raw_os_error()));
    ensure!(gone, "the sender failed otherwise: {}", failure.why);
    ensure!(took < Duration::from_secs(2), "it took {took:?}");
    Ok(format!("{:.0} ms", milliseconds(took)))
}
