//! The ledger of one connection: what each side has said and heard, and what must hold.

use std::fmt;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::content::Content;
use crate::plan::{ACCEPTOR, Kind, OPENER, Plan};
use crate::random::Random;
use crate::side::{Heard, Outcome, Side};
use crate::vm::Vm;
use crate::wire::Wire;

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) number: u64,
    pub(crate) plan: Plan,
    seed: u64,
    /// `None` until the acceptor has heard the number.
    sides: [Option<Side>; 2],
    /// What was done that entitles both sides to an error.
    pub(crate) disturbed: Option<&'static str>,
    /// When something moved last, or could not move for a good reason.
    pub(crate) touched: Instant,
    /// A refusal would be nobody's fault.
    pub(crate) may_be_refused: bool,
}

impl Connection {
    pub(crate) fn open(seed: u64, number: u64, plan: Plan, wire: Wire, sent: u64) -> Self {
        let mut connection = Self {
            number,
            plan,
            seed,
            sides: [None, None],
            disturbed: None,
            touched: Instant::now(),
            may_be_refused: false,
        };
        connection.add(OPENER, wire);
        if let Some(opener) = &mut connection.sides[OPENER] {
            opener.sent = sent;
        }
        connection
    }

    fn add(&mut self, side: usize, wire: Wire) {
        let says = [
            Content::of_opener(self.seed, self.number),
            Content::of_acceptor(self.seed, self.number),
        ];
        let [part, other] = [&self.plan.parts[side], &self.plan.parts[1 - side]];
        let random = Random::new(self.seed ^ self.number << 1 ^ side as u64);
        let contents = [says[side], says[1 - side]];
        let socket_type = self.plan.socket_type();
        self.sides[side] = Some(Side::new(
            wire,
            [part, other],
            contents,
            socket_type,
            random,
        ));
    }

    /// Somebody has accepted it, and heard this so far.
    pub(crate) fn accept(&mut self, wire: Wire, heard: &[u8]) -> Result<()> {
        ensure!(
            self.sides[ACCEPTOR].is_none(),
            "it was accepted a second time"
        );
        self.add(ACCEPTOR, wire);
        if let Some(acceptor) = &mut self.sides[ACCEPTOR] {
            acceptor.check(heard)?;
        }
        Ok(())
    }

    /// What its guests make of it.
    pub(crate) fn guests_view(&self, vms: &mut [Vm]) -> String {
        let wires = self.sides.iter().flatten().filter_map(Side::wire);
        let views: Vec<_> = wires.map(|wire| wire.view(vms)).collect();
        views.join("")
    }

    pub(crate) fn side(&self, side: usize) -> Option<&Side> {
        self.sides[side].as_ref()
    }

    /// The host's application dies.
    pub(crate) fn kill_application(&mut self) {
        for side in self.sides.iter_mut().flatten() {
            side.die();
        }
    }

    /// Something happens that may end it.
    pub(crate) fn disturb(&mut self, why: &'static str) {
        self.disturbed.get_or_insert(why);
    }

    /// Both sides do what they can. The bytes heard.
    pub(crate) fn turn(&mut self, vms: &mut [Vm], now: Instant) -> Result<u64> {
        let heard = |sides: &[Option<Side>; 2]| -> u64 {
            sides.iter().flatten().map(|side| side.received).sum()
        };
        let before = heard(&self.sides);
        for index in [OPENER, ACCEPTOR] {
            let Some(side) = &mut self.sides[index] else {
                continue;
            };
            let had_heard = side.heard.is_some();
            let had_ended = side.outcome().is_some();
            if side.turn(vms, now)? {
                self.touched = now;
            }
            if !had_heard {
                self.judge_what_was_heard(index)?;
            }
            if !had_ended {
                self.judge_outcome(index)?;
            }
        }
        if !self.may_move(vms) {
            self.touched = now;
        }
        Ok(heard(&self.sides) - before)
    }

    /// Whether nobody who has a part in it is prevented from doing something.
    fn may_move(&self, vms: &[Vm]) -> bool {
        let siblings = matches!(self.plan.kind, Kind::Siblings(_));
        vms[self.plan.vm].is_up() && (!siblings || vms[self.plan.peer].is_up())
    }

    /// Whether both sides have ended, or the one that there is and no other will come.
    pub(crate) fn is_over(&self) -> bool {
        let ended = |index: usize| self.sides[index].as_ref().map(Side::outcome);
        match [ended(OPENER), ended(ACCEPTOR)] {
            [Some(Some(_)), Some(Some(_))] => true,
            [
                Some(Some(Outcome::Refused | Outcome::Failed(_) | Outcome::Vanished)),
                None,
            ] => true,
            [Some(Some(_)), None] => self.disturbed.is_some(),
            _ => false,
        }
    }

    /// Whether it was refused.
    pub(crate) fn was_refused(&self) -> bool {
        let opener = self.sides[OPENER].as_ref();
        opener.and_then(Side::outcome) == Some(&Outcome::Refused)
    }

    /// Whether both sides said and heard everything.
    pub(crate) fn is_complete(&self) -> bool {
        let complete = |side: &Side| side.outcome() == Some(&Outcome::Complete);
        self.sides
            .iter()
            .flatten()
            .filter(|side| complete(side))
            .count()
            == 2
    }

    /// What may hold when a side hears the end, or an error.
    fn judge_what_was_heard(&self, index: usize) -> Result<()> {
        let (Some(side), other) = (&self.sides[index], &self.sides[1 - index]) else {
            return Ok(());
        };
        let Some(heard) = &side.heard else {
            return Ok(());
        };
        // One that never appeared, and whose server has died, has finished.
        let absent = (0, 0, self.disturbed.is_some());
        let (sent, acknowledged, finished) = other.as_ref().map_or(absent, |other| {
            (other.sent, other.acknowledged, other.has_finished())
        });
        let received = side.received;
        ensure!(
            received <= sent,
            "it heard {received} bytes of {sent} that were sent"
        );
        let is_guest = side.is_guest;
        // For a host application an end is all that shows an error.
        let is_clean = *heard == Heard::End && (is_guest || self.disturbed.is_none());
        if is_clean {
            ensure!(
                received == sent && finished,
                "it heard the end after {received} bytes of {sent} that were sent (the sender \
                 has finished: {finished})"
            );
        }
        if !is_guest || *heard == Heard::End {
            ensure!(
                received >= acknowledged,
                "it heard {received} bytes, then {heard:?}, though {acknowledged} were acknowledged"
            );
        }
        Ok(())
    }

    /// What may hold when a side ends.
    fn judge_outcome(&self, index: usize) -> Result<()> {
        let (Some(side), other) = (&self.sides[index], &self.sides[1 - index]) else {
            return Ok(());
        };
        let other_gave_up = other
            .as_ref()
            .and_then(Side::outcome)
            .is_some_and(|outcome| {
                matches!(
                    outcome,
                    Outcome::Quit | Outcome::Failed(_) | Outcome::Vanished
                )
            });
        let other_quits = other.as_ref().is_some_and(Side::has_quit);
        if let Some(Outcome::Failed(why)) = side.outcome() {
            ensure!(
                self.disturbed.is_some() || other_gave_up || other_quits,
                "it failed ({why}), though nobody disturbed it"
            );
        }
        Ok(())
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { kind, vm, peer, .. } = &self.plan;
        writeln!(
            f,
            "connection {} ({kind:?}, VM {}{}), disturbed: {:?}",
            self.number,
            vm + 3,
            match kind {
                Kind::Siblings(_) => format!(" to VM {}", peer + 3),
                _ => String::new(),
            },
            self.disturbed,
        )?;
        for (side, name) in self.sides.iter().zip(["opener", "acceptor"]) {
            match side {
                Some(side) => writeln!(f, "{}", side.describe(name))?,
                None => writeln!(f, "  {name}: has not appeared")?,
            }
        }
        Ok(())
    }
}
