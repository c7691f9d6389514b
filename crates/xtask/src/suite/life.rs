//! The life of connections: half-closed, many at once, with slow readers.

use anyhow::Result;
use guest_agent::script::{Receive, Send, Step};

use super::Case;
use super::bulk::Direction;
use crate::lab::{Initiator, Lab, Talk};

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
