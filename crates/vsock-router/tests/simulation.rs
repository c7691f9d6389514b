//! A deterministic simulation: guests of all characters around a switch, their schedules,
//! sizes and accidents drawn from a seed, time simulated.
//!
//! It holds, for every seed: what arrives is what was sent, in order and whole, messages
//! with their bounds; no end gets what it did not allow or what makes no sense to it;
//! nobody is reset without a reason; what may be delivered is; bounds hold; everything
//! that can make progress does, beside guests that make none; and nothing is left of
//! connections and guests that have ended.
//!
//! `VSOCK_SIM_SEED` runs and tells one seed; `VSOCK_SIM_COUNT` says how many are run.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test panics where it fails, and a replayed seed tells its story"
)]

#[path = "simulation/character.rs"]
mod character;
#[path = "simulation/guest.rs"]
mod guest;
#[path = "simulation/ledger.rs"]
mod ledger;
#[path = "simulation/mischief.rs"]
mod mischief;
#[path = "simulation/port.rs"]
mod port;
#[path = "simulation/socket.rs"]
mod socket;
#[path = "simulation/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use world::World;

const SEED: &str = "VSOCK_SIM_SEED";
const COUNT: &str = "VSOCK_SIM_COUNT";
const DEFAULT_COUNT: u64 = 3000;

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().expect("a number"))
}

/// Runs a seed to its end; what has happened, as one number.
fn run(seed: u64, tells: bool) -> u64 {
    let mut world = World::new(seed, tells);
    for _ in 0..200 + seed % 300 {
        world.step();
    }
    world.finish();
    world.digest()
}

#[test]
fn every_seed_ends_well() {
    if let Some(seed) = variable(SEED) {
        run(seed, true);
        return;
    }
    let count = variable(COUNT).unwrap_or(DEFAULT_COUNT);
    let start = Instant::now();
    for seed in 0..count {
        if catch_unwind(AssertUnwindSafe(|| run(seed, false))).is_err() {
            panic!(
                "seed {seed} fails; to replay it: {SEED}={seed} cargo test -p vsock-router --test simulation -- --nocapture"
            );
        }
    }
    let took = start.elapsed().as_secs_f64();
    println!(
        "{count} seeds in {took:.1} s: {:.0} a second",
        count as f64 / took
    );
}

#[test]
fn a_seed_says_all_of_a_run() {
    for seed in 0..50 {
        assert_eq!(run(seed, false), run(seed, false), "seed {seed}");
    }
}
