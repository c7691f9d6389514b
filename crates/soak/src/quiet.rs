//! When all is quiet: nothing is left in the daemon of what was.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::world::{PATIENCE, World};

/// What the daemon may take to let go of what is over: longer than its own deadlines.
const SETTLING: Duration = Duration::from_secs(30);
/// After so long it is told what is still going on.
const SLOW: Duration = Duration::from_secs(8);
/// How long it is watched doing nothing, and what of that it may run.
const WATCHED: Duration = Duration::from_millis(200);
const MAY_RUN: Duration = Duration::from_millis(20);
/// What its memory may grow from the first quiet moment after some traffic to the last, in
/// KiB: what allocators keep varies.
const MEMORY: u64 = 6 * 1024;
/// Of refusals that nothing explains, there may be one in so many connections: one call in
/// 64 that opens something fails, and some connections take several.
const UNEXPLAINED: u64 = 12;

impl World {
    /// Lets all that is open come to its end, and looks for what is left.
    pub(crate) fn come_to_rest(&mut self) -> Result<()> {
        let start = Instant::now() - self.stood_still;
        let deadline = |world: &Self| start + world.stood_still + PATIENCE + SETTLING;
        let mut told_at = Some(Instant::now() + SLOW);
        while !self.is_quiet() {
            self.turn(false)?;
            if told_at.is_some_and(|at| Instant::now() > at) {
                told_at = None;
                println!("it takes long to come to rest: {}", self.unrest());
            }
            ensure!(
                Instant::now() < deadline(self),
                "it does not come to rest: {}",
                self.unrest()
            );
        }
        let usage = loop {
            match self.what_is_left() {
                Ok(usage) => break usage,
                Err(error) if Instant::now() > deadline(self) => return Err(error),
                Err(_) => {
                    for _ in 0..20 {
                        self.turn(false)?;
                    }
                }
            }
        };
        self.tally.quiet.push(usage);
        Ok(())
    }

    fn what_is_left(&mut self) -> Result<crate::daemon::Usage> {
        let list = self.operator.get("/connections")?;
        let left = list["connections"].as_array().context("connections")?;
        if !left.is_empty() {
            bail!("the daemon still has connections: {left:?}");
        }
        sleep(WATCHED);
        let before = self.daemon.time_run();
        sleep(WATCHED);
        let run = self.daemon.time_run().saturating_sub(before);
        let usage = self.daemon.usage()?;
        if let Some(first) = self.tally.quiet.first() {
            ensure!(
                usage.descriptors == first.descriptors && usage.threads <= first.threads,
                "the daemon had {first:?}, and has {usage:?} now: {:?}",
                self.daemon.descriptors()
            );
        }
        ensure!(
            run <= MAY_RUN,
            "the daemon ran {run:?} of {WATCHED:?} with nothing to do"
        );
        Ok(usage)
    }

    /// The daemon has no more memory than after the first phase, and what was refused had
    /// reasons.
    pub(crate) fn has_not_grown(&self) -> Result<()> {
        let tally = &self.tally;
        if let [_, early, .., last] = tally.quiet.as_slice() {
            ensure!(
                last.memory <= early.memory + MEMORY,
                "the daemon's memory has grown over the run: {:?} KiB when all was quiet",
                tally
                    .quiet
                    .iter()
                    .map(|usage| usage.memory)
                    .collect::<Vec<_>>()
            );
        }
        ensure!(
            tally.refused_unasked <= 10 + tally.opened / UNEXPLAINED,
            "{} of {} connections were refused for no reason",
            tally.refused_unasked,
            tally.opened
        );
        ensure!(
            tally.complete > tally.opened / 4,
            "only {} of {} connections came to their proper end",
            tally.complete,
            tally.opened
        );
        Ok(())
    }

    /// Ends the daemon in order.
    pub(crate) fn end(self) -> Result<()> {
        self.daemon.end()
    }
}
