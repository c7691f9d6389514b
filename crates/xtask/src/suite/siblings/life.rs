//! The life of connections between siblings: half-closed, many at once, with slow readers.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest_agent::script::{Receive, Send, Step, milliseconds};

use super::bulk::{Transfer, Way};
use super::{Case, LEFT, MIDDLE};
use crate::siblings::{Begun, Dialogue, Siblings};

pub(super) fn cases() -> Vec<Case<Siblings>> {
    let pairs = [(MIDDLE, LEFT), (LEFT, MIDDLE)];
    let mut cases = Vec::new();
    for (from, to) in pairs {
        let between = format!("guest {from} to {to}");
        let mut add = |name: &str, check: fn(&mut Siblings, u32, u32) -> Result<String>| {
            let name = format!("{name}, {between}");
            cases.push(Case::new(name, move |siblings| check(siblings, from, to)));
        };
        add("half-close by the dialler", half_close);
        add("200 connections at once", many);
        add("100 connections one after the other", one_by_one);
        add("slow readers beside fast ones", slow_beside_fast);
        add("a stalled reader holds nobody up", stalled_beside);
        add("single bytes to a reader that begins late", single_bytes);
        add("a reader that begins after the close", late_reader);
    }
    cases
}

/// A conversation on one connection.
fn dialogue(from: u32, to: u32, dialler: Vec<Step>, listener: Vec<Step>) -> Dialogue {
    Dialogue {
        from,
        to,
        connections: 1,
        dialler,
        listener,
    }
}

/// One end sends and shuts its direction down; the other reads to the end, and then sends
/// in turn.
fn half_close(siblings: &mut Siblings, from: u32, to: u32) -> Result<String> {
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
    siblings.talk(&dialogue(from, to, first, second))?;
    Ok(String::new())
}

/// All connections are open before the first byte goes over any; each has a pattern of its
/// own, echoed by the other end.
fn many(siblings: &mut Siblings, from: u32, to: u32) -> Result<String> {
    const BYTES: u64 = 100_000;
    let asks = vec![
        Step::Meet,
        Step::Exchange(Send::new(BYTES, 7), Receive::new(BYTES, 7)),
        Step::Meet,
    ];
    let echoes = vec![Step::Meet, Step::Echo];
    siblings.talk(&Dialogue {
        connections: 200,
        ..dialogue(from, to, asks, echoes)
    })?;
    Ok(String::new())
}

/// Each connection ends before the next begins.
fn one_by_one(siblings: &mut Siblings, from: u32, to: u32) -> Result<String> {
    const CONNECTIONS: usize = 100;
    let (ask, answer) = (Send::new(100, 1), Send::new(100, 2));
    let asks = vec![Step::Send(ask), Step::Receive(Receive::new(100, 2))];
    let answers = vec![Step::Receive(Receive::new(100, 1)), Step::Send(answer)];
    let dialogue = dialogue(from, to, asks, answers);
    for number in 0..CONNECTIONS {
        siblings
            .talk(&dialogue)
            .with_context(|| format!("connection {number}"))?;
    }
    Ok(String::new())
}

/// Some readers take their time and miss nothing; what others read meanwhile is there
/// before the slow ones are done.
fn slow_beside_fast(siblings: &mut Siblings, from: u32, to: u32) -> Result<String> {
    const EACH: usize = 3;
    const SLOW: u64 = 2 << 20;
    const FAST: u64 = 5_000_000;
    let reader = |receive: Receive| {
        let sends = vec![Step::Send(Send::new(receive.bytes, receive.seed))];
        let reads = vec![Step::Receive(receive), Step::ExpectEnd];
        dialogue(from, to, sends, reads)
    };
    let slow = reader(Receive {
        read_size: 16 << 10,
        pause_ms: 25,
        ..Receive::new(SLOW, 3)
    });
    let fast = reader(Receive::new(FAST, 4));
    let mut begin = |dialogue| {
        let begun = (0..EACH).map(|_| siblings.begin(dialogue));
        begun.collect::<Result<Vec<_>>>()
    };
    let (slow, fast) = (begin(&slow)?, begin(&fast)?);
    let fast = slowest(fast).context("the fast readers")?;
    let slow = slowest(slow).context("the slow readers")?;
    ensure!(
        fast < slow,
        "the fast readers took {fast:.0} ms, the slow ones {slow:.0} ms"
    );
    Ok(format!("{fast:.0} and {slow:.0} ms"))
}

/// How long the slowest of some readers took, in milliseconds.
fn slowest(readers: Vec<Begun>) -> Result<f64> {
    readers.into_iter().try_fold(0.0, |slowest: f64, reader| {
        let said = reader.succeeded()?;
        Ok(slowest.max(said.listener[0].done[0].elapsed_ms))
    })
}

/// While one connection's reader doesn't read, and its sender has filled every buffer,
/// others' data flows.
fn stalled_beside(siblings: &mut Siblings, from: u32, to: u32) -> Result<String> {
    const BYTES: u64 = 8 << 20;
    const STALL: Duration = Duration::from_secs(4);
    let sends = vec![Step::Send(Send::new(BYTES, 8))];
    let stall = Step::Dawdle(STALL.as_millis() as u64);
    let reads = vec![
        stall,
        Step::Receive(Receive::new(BYTES, 8)),
        Step::ExpectEnd,
    ];
    let start = Instant::now();
    let stalled = siblings.begin(&dialogue(from, to, sends, reads))?;
    for way in [Way::Forth, Way::Back] {
        let transfer = Transfer {
            from,
            to,
            way,
            bytes: 10_000_000,
            write_size: 64 << 10,
        };
        transfer
            .run(siblings)
            .context("beside the stalled connection")?;
    }
    let took = start.elapsed();
    stalled
        .succeeded()
        .context("the stalled connection, once it is read")?;
    ensure!(
        took < STALL,
        "20 MB took {took:?} beside it, until it was read"
    );
    Ok(format!("{:.0} ms", milliseconds(took)))
}

/// So many packets that a guest's kernel would give the connection up, were they all on
/// their way to it while nobody reads: it charges each packet for more than its bytes.
fn single_bytes(siblings: &mut Siblings, from: u32, to: u32) -> Result<String> {
    const BYTES: u64 = 5000;
    let bytewise = Send {
        bytes: BYTES,
        write_size: 1,
        seed: 6,
    };
    let sends = vec![Step::Send(bytewise), Step::FinishSending, Step::ExpectEnd];
    let reads = vec![
        Step::Dawdle(1000),
        Step::Receive(Receive::new(BYTES, 6)),
        Step::ExpectEnd,
    ];
    siblings.talk(&dialogue(from, to, sends, reads))?;
    Ok(String::new())
}

/// One end writes as much as a socket takes and closes, before the other reads at all.
fn late_reader(siblings: &mut Siblings, from: u32, to: u32) -> Result<String> {
    const BYTES: u64 = 200_000;
    let sends = vec![Step::Send(Send::new(BYTES, 4))];
    let reads = vec![
        Step::Dawdle(1500),
        Step::Receive(Receive::new(BYTES, 4)),
        Step::ExpectEnd,
    ];
    siblings.talk(&dialogue(from, to, sends, reads))?;
    Ok(String::new())
}
