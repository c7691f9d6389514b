//! Has simulated guests and host applications talk through the daemon while all kinds of
//! things go wrong, and checks that nothing is lost.
//!
//! ```text
//!                        ┌──────────── World, one thread ───────────┐
//!   Plan ──▶ Connection ─┤ Side ─ Wire ─ guest of the testkit ──────┼─▶ vhost-user ─┐
//!            (ledger)    │ Side ─ Wire ─ host application ──────────┼─▶ AF_UNIX ────┤ daemon
//!                        │ disturb ─ Operator (a thread) ───────────┼─▶ control ────┘
//!                        └──────────────────────────────────────────┘
//! ```
//!
//! The daemon is one built with `--cfg mishaps`, whose system calls go wrong now and then.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a program for the terminal")]

mod connection;
mod content;
mod daemon;
mod disturb;
mod host;
mod operator;
mod plan;
mod quiet;
mod random;
mod side;
mod tally;
mod vm;
mod wire;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use clap::Parser;

use crate::world::World;

/// So long things go wrong, until all is let come to rest.
const PHASE: Duration = Duration::from_secs(9);

/// Has guests and host applications talk through the daemon while things go wrong.
#[derive(Debug, Parser)]
struct Arguments {
    /// The daemon, built with `--cfg mishaps`.
    #[arg(long)]
    daemon: PathBuf,
    /// Where a directory for its sockets is made: a short path.
    #[arg(long)]
    directory: Option<PathBuf>,
    /// For how long.
    #[arg(long, default_value = "60")]
    seconds: u64,
    /// What decides all choices; the time, if it is not given.
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(1, |since| since.as_secs())
    });
    println!("seed {seed}");
    match soak(&arguments, seed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror, with seed {seed}: {}", error.root_cause());
            for context in error.chain().take(error.chain().count() - 1) {
                eprintln!("{context}");
            }
            ExitCode::FAILURE
        }
    }
}

fn soak(arguments: &Arguments, seed: u64) -> Result<()> {
    vsock_testkit::host::raise_file_limit()?;
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix("soak");
    let directory = match &arguments.directory {
        Some(within) => builder.tempdir_in(within)?,
        None => builder.tempdir()?,
    };
    let mut world = World::start(&arguments.daemon, directory.path(), seed)?;
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    let outcome = phases(&mut world, end);
    world.tally.summarize(world.daemon.mishaps);
    if outcome.is_err() {
        println!(
            "\nthe end of the daemon's log:\n{}",
            world.daemon.log_tail()
        );
    }
    outcome?;
    ensure!(
        world.daemon.mishaps > 0,
        "no system call went wrong: the daemon is not built with --cfg mishaps"
    );
    world.end()
}

fn phases(world: &mut World, end: Instant) -> Result<()> {
    // All VMs up, and nothing in use: that is what is compared with later.
    world.come_to_rest()?;
    loop {
        let until = (Instant::now() + PHASE).min(end);
        let mut next = Instant::now();
        while Instant::now() < until {
            world.turn(true)?;
            let now = Instant::now();
            if now >= next {
                next = now + Duration::from_millis(world.random.magnitude(20, 400));
                world.disturb_something(now)?;
            }
        }
        world.come_to_rest()?;
        if Instant::now() >= end {
            return world.has_not_grown();
        }
    }
}
