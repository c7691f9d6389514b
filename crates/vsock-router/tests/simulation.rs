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

use std::time::Instant;

use vsock_testkit::run_seeds;
use world::World;

const DEFAULT_COUNT: u64 = 3000;

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
    let start = Instant::now();
    let test = "-p vsock-router --test simulation";
    let Some(digests) = run_seeds(DEFAULT_COUNT, test, run) else {
        return;
    };
    let count = digests.len();
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
