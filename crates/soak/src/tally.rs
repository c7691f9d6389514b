//! What happened so far, and how it is told.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::daemon::{Daemon, Usage};

/// Counts of everything.
#[derive(Debug)]
pub(crate) struct Tally {
    start: Instant,
    told: Instant,
    /// Connections by what became of them.
    pub(crate) opened: u64,
    pub(crate) complete: u64,
    pub(crate) cut: u64,
    pub(crate) refused: u64,
    /// Refusals that nothing explains but the system calls that go wrong.
    pub(crate) refused_unasked: u64,
    /// Bytes that were the right ones.
    pub(crate) bytes: u64,
    /// Things done to the daemon and its VMs, by name.
    pub(crate) disturbances: BTreeMap<&'static str, u64>,
    /// What the process had each time all was quiet.
    pub(crate) quiet: Vec<Usage>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self {
            start: now,
            told: now,
            opened: 0,
            complete: 0,
            cut: 0,
            refused: 0,
            refused_unasked: 0,
            bytes: 0,
            disturbances: BTreeMap::new(),
            quiet: Vec::new(),
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    pub(crate) fn disturbed(&mut self, how: &'static str) {
        *self.disturbances.entry(how).or_default() += 1;
    }

    /// Tells how it goes, every few seconds.
    pub(crate) fn tell(&mut self, now: Instant, open: usize, daemon: &Daemon) -> Result<()> {
        const PAUSE: Duration = Duration::from_secs(3);
        if now.duration_since(self.told) < PAUSE {
            return Ok(());
        }
        self.told = now;
        let (usage, mishaps) = (daemon.usage()?, daemon.mishaps);
        println!(
            "[{:6.1} s] {} connections ({open} open), {} MB right, {} disturbances, \
             {mishaps} calls gone wrong; daemon: {:.1} MiB, {} fds",
            self.elapsed().as_secs_f64(),
            self.opened,
            self.bytes / 1_000_000,
            self.disturbances.values().sum::<u64>(),
            usage.memory as f64 / 1024.0,
            usage.descriptors,
        );
        Ok(())
    }

    /// Tells what it came to.
    pub(crate) fn summarize(&self, mishaps: u64) {
        println!("\n{:40} {:>12}", "connections", self.opened);
        println!("{:40} {:>12}", "  complete at both ends", self.complete);
        println!("{:40} {:>12}", "  cut short at both ends", self.cut);
        println!("{:40} {:>12}", "  refused", self.refused);
        println!(
            "{:40} {:>12}",
            "bytes received, each the right one", self.bytes
        );
        println!("{:40} {mishaps:>12}", "system calls that went wrong");
        println!("disturbances");
        for (how, count) in &self.disturbances {
            println!("  {how:38} {count:>12}");
        }
        if let [first, .., last] = self.quiet.as_slice() {
            println!("the daemon when all was quiet             first        last");
            println!(
                "  {:32} {:>12} {:>12}",
                "memory, KiB", first.memory, last.memory
            );
            println!(
                "  {:32} {:>12} {:>12}",
                "descriptors", first.descriptors, last.descriptors
            );
            println!(
                "  {:32} {:>12} {:>12}",
                "threads", first.threads, last.threads
            );
        }
    }
}
