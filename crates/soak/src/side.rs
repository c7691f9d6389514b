//! One side of a connection: how far it got in its part, and how it ended.

use std::time::Instant;

use anyhow::{Result, ensure};
use vsock_packet::SocketType;

use crate::content::Content;
use crate::plan::Part;
use crate::random::Random;
use crate::vm::Vm;
use crate::wire::{Given, Opening, Taken, Wire};

/// The bytes one side moves in one turn, either way.
const TURN: u64 = 256 << 10;

/// How a side ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// It said and heard everything.
    Complete,
    /// It closed in the middle, as planned or because its application died.
    Quit,
    /// It saw an error, or an end too soon.
    Failed(String),
    /// Its guest is gone.
    Vanished,
    /// It was not let in.
    Refused,
}

/// Where a side is.
#[derive(Debug)]
enum Phase {
    Opening(Wire),
    Open(Wire),
    /// It has closed, and waits until the device says so.
    Closing(Wire, Outcome),
    Over(Outcome),
}

/// What ended the hearing of a side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Heard {
    /// The other side's end, in order.
    End,
    Error(String),
}

/// A side.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) part: Part,
    socket_type: SocketType,
    says: Content,
    hears: Content,
    /// What the other side says in all.
    expects: u64,
    /// The most the other side says at once.
    longest: u64,
    phase: Phase,
    /// Bytes said.
    pub(crate) sent: u64,
    /// Of these, the ones the device has told a guest to have passed on.
    pub(crate) acknowledged: u64,
    /// Bytes heard: they were the right ones.
    pub(crate) received: u64,
    /// It has said that it says no more.
    half_closed: bool,
    pub(crate) heard: Option<Heard>,
    rests_until: Option<Instant>,
    random: Random,
    pub(crate) is_guest: bool,
}

impl Side {
    /// A side that opens a connection, or has accepted one.
    pub(crate) fn new(
        wire: Wire,
        [part, other]: [&Part; 2],
        [says, hears]: [Content; 2],
        socket_type: SocketType,
        random: Random,
    ) -> Self {
        Self {
            part: part.clone(),
            socket_type,
            says,
            hears,
            expects: other.total,
            longest: other.write,
            is_guest: matches!(wire, Wire::Guest { .. }),
            phase: Phase::Opening(wire),
            sent: 0,
            acknowledged: 0,
            received: 0,
            half_closed: false,
            heard: None,
            rests_until: None,
            random,
        }
    }

    /// How it ended, if it did.
    pub(crate) fn outcome(&self) -> Option<&Outcome> {
        match &self.phase {
            Phase::Over(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Its end of the connection, if it is open.
    pub(crate) fn wire(&self) -> Option<&Wire> {
        match &self.phase {
            Phase::Opening(wire) | Phase::Open(wire) | Phase::Closing(wire, _) => Some(wire),
            Phase::Over(_) => None,
        }
    }

    /// Whether it is connected, and has not begun to close.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open(_))
    }

    /// Whether it says nothing more, ever.
    pub(crate) fn has_finished(&self) -> bool {
        self.half_closed || matches!(self.phase, Phase::Closing(..) | Phase::Over(_))
    }

    /// Whether it has begun to close in the middle.
    pub(crate) fn has_quit(&self) -> bool {
        matches!(
            self.phase,
            Phase::Closing(_, Outcome::Quit | Outcome::Failed(_))
        )
    }

    /// Closes at once, as an application that dies.
    pub(crate) fn die(&mut self) {
        if let Some(Wire::Host(_)) = self.wire() {
            self.phase = Phase::Over(Outcome::Quit);
        }
    }

    /// Does what can be done without waiting. `true` when something was.
    pub(crate) fn turn(&mut self, vms: &mut [Vm], now: Instant) -> Result<bool> {
        let phase = std::mem::replace(&mut self.phase, Phase::Over(Outcome::Vanished));
        let (phase, moved) = match phase {
            Phase::Over(outcome) => (Phase::Over(outcome), false),
            Phase::Opening(wire) | Phase::Open(wire) | Phase::Closing(wire, _)
                if wire.has_vanished(vms) =>
            {
                (Phase::Over(Outcome::Vanished), true)
            }
            phase => self.work(phase, vms, now)?,
        };
        self.phase = phase;
        Ok(moved)
    }

    fn work(&mut self, phase: Phase, vms: &mut [Vm], now: Instant) -> Result<(Phase, bool)> {
        match phase {
            Phase::Over(_) => Ok((phase, false)),
            Phase::Opening(ref wire) | Phase::Open(ref wire) | Phase::Closing(ref wire, _)
                if !wire.is_served(vms) =>
            {
                Ok((phase, false))
            }
            Phase::Opening(mut wire) => Ok(match wire.opening(vms) {
                Opening::Waits => (Phase::Opening(wire), false),
                Opening::Done => (Phase::Open(wire), true),
                Opening::Refused => {
                    wire.close(vms)?;
                    (Phase::Over(Outcome::Refused), true)
                }
            }),
            Phase::Closing(mut wire, outcome) => {
                let is_over = wire.close(vms)?;
                Ok((Self::closed(wire, outcome, is_over), is_over))
            }
            Phase::Open(mut wire) => {
                let mut moved = self.hear(&mut wire, vms, now)?;
                let broken = self.say(&mut wire, vms, &mut moved)?;
                if let Some(acknowledged) = wire.acknowledged(vms) {
                    ensure!(
                        acknowledged <= self.sent,
                        "the device acknowledges {acknowledged} of {} bytes",
                        self.sent
                    );
                    self.acknowledged = acknowledged;
                }
                match self.conclusion(broken) {
                    None => Ok((Phase::Open(wire), moved)),
                    Some(outcome) => {
                        let is_over = wire.close(vms)?;
                        Ok((Self::closed(wire, outcome, is_over), true))
                    }
                }
            }
        }
    }

    fn closed(wire: Wire, outcome: Outcome, is_over: bool) -> Phase {
        if is_over {
            Phase::Over(outcome)
        } else {
            Phase::Closing(wire, outcome)
        }
    }

    /// Reads, and checks what came.
    fn hear(&mut self, wire: &mut Wire, vms: &mut [Vm], now: Instant) -> Result<bool> {
        let rests = |until: Option<Instant>| until.is_some_and(|until| until > now);
        if self.heard.is_some() {
            return Ok(false);
        }
        let mut left = TURN;
        while self.heard.is_none() && left > 0 && !rests(self.rests_until) {
            match wire.read(vms, self.part.read)? {
                Given::Nothing => break,
                Given::End => self.heard = Some(Heard::End),
                Given::Error(error) => self.heard = Some(Heard::Error(error)),
                Given::Bytes(bytes) => {
                    self.check(&bytes)?;
                    left = left.saturating_sub(bytes.len() as u64);
                    let (one_in, time) = self.part.rests;
                    self.rests_until = self.random.one_in(one_in).then(|| now + time);
                }
            }
        }
        Ok(left < TURN || self.heard.is_some() || rests(self.rests_until))
    }

    /// Takes bytes that are those the other side says next, or fails.
    pub(crate) fn check(&mut self, bytes: &[u8]) -> Result<()> {
        let (from, len) = (self.received, bytes.len() as u64);
        if let Some(wrong) = self.hears.first_wrong(from, bytes) {
            anyhow::bail!("byte {wrong} is not the one that was sent (read from {from}, {len})");
        }
        ensure!(
            from + len <= self.expects,
            "{len} bytes came after {from}, though only {} are said in all",
            self.expects
        );
        if self.socket_type == SocketType::Seqpacket {
            let message = self.hears.message_len(from, self.longest);
            let expected = message.min(self.expects - from);
            ensure!(
                len == expected,
                "a message of {expected} bytes from {from} on came with {len}"
            );
        }
        self.received += len;
        Ok(())
    }

    /// Writes. The error that shows that nothing more is taken.
    fn say(&mut self, wire: &mut Wire, vms: &mut [Vm], moved: &mut bool) -> Result<Option<String>> {
        let mut left = TURN;
        while self.sent < self.part.total && left > 0 {
            let most = self.part.write;
            let len = match self.socket_type {
                SocketType::Stream => most,
                SocketType::Seqpacket => self.says.message_len(self.sent, most),
            };
            let len = len.min(self.part.total - self.sent);
            let bytes = self.says.bytes(self.sent, len as usize);
            match wire.write(vms, &bytes)? {
                Taken::Bytes(0) => break,
                Taken::Error(error) => return Ok(Some(error)),
                Taken::Bytes(count) => {
                    *moved = true;
                    self.sent += count as u64;
                    left = left.saturating_sub(count as u64);
                }
            }
        }
        let waits_to_close = self.part.closes_at_once || self.part.quits_at.is_some();
        if self.sent == self.part.total && !self.half_closed && !waits_to_close {
            wire.half_close(vms)?;
            self.half_closed = true;
            *moved = true;
        }
        Ok(None)
    }

    /// How it ends, if it does now.
    fn conclusion(&self, broken: Option<String>) -> Option<Outcome> {
        let quits = |at| self.sent + self.received >= at && self.sent >= 8.min(self.part.total);
        let has_all = self.received == self.expects;
        let said_all = self.sent == self.part.total;
        match &self.heard {
            Some(Heard::Error(error)) => Some(Outcome::Failed(error.clone())),
            Some(Heard::End) if has_all && said_all => Some(Outcome::Complete),
            Some(Heard::End) if !has_all => Some(Outcome::Failed("an early end".to_owned())),
            _ if has_all && said_all && self.part.closes_at_once => Some(Outcome::Complete),
            _ if self.part.quits_at.is_some_and(quits) => Some(Outcome::Quit),
            // What the other side said before may still be on its way.
            Some(Heard::End) => broken.map(Outcome::Failed),
            None => None,
        }
    }

    /// What it does, for whoever looks for the reason that it does not go on.
    pub(crate) fn describe(&self, name: &str) -> String {
        let phase = match &self.phase {
            Phase::Opening(_) => "opening".to_owned(),
            Phase::Open(_) => "open".to_owned(),
            Phase::Closing(_, outcome) => format!("closing, {outcome:?}"),
            Phase::Over(outcome) => format!("{outcome:?}"),
        };
        format!(
            "  {name}: {phase}; sent {} of {} ({} acknowledged), received {} of {}, \
             half closed: {}, heard: {:?}\n    {:?}\n    {:?}",
            self.sent,
            self.part.total,
            self.acknowledged,
            self.received,
            self.expects,
            self.half_closed,
            self.heard,
            self.wire(),
            self.part,
        )
    }
}
