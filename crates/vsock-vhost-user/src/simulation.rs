//! A deterministic simulation of whole devices: guests with their workers and rings, host
//! applications at real sockets, siblings at a switch, and chance, which a seed says all of.
//! One thread runs it all, and time is what the simulation says.
//!
//! ```text
//!   Guest (testkit) ─ rings in memory ─▶ Device: Worker ◀─ AF_UNIX ─▶ application
//!        ▲                                  │ switch                       ▲
//!        └───────────── Talk: what either end has said, and heard ─────────┘
//! ```
//!
//! The reference is a [`talk::Talk`] for each connection: what one end says the other hears,
//! once, in order and to its end, unless something happened that excuses it. Each packet is
//! held to the specification by the testkit's guest. In the end nothing is left: no
//! connection, no timer, no port, no promise; and what was counted is what was said.
//!
//! `VSOCK_SIM_SEED` runs and tells one seed; `VSOCK_SIM_COUNT` says how many are run.

mod application;
mod device;
mod mischief;
mod newcomer;
mod scene;
mod talk;
mod trickle;
mod world;

use vsock_testkit::run_seeds;

use self::world::World;

const DEFAULT_COUNT: u64 = 60;

/// What came of a seed.
#[derive(Clone, Copy, Default)]
struct Outcome {
    talks: usize,
    /// Those that nothing excused from being heard to their end.
    whole: usize,
    /// Bytes that were heard.
    bytes: u64,
}

fn run(seed: u64, tells: bool) -> Outcome {
    let mut world = World::new(seed, tells);
    for _ in 0..100 + seed % 600 {
        world.step();
    }
    world.finish()
}

#[test]
fn every_seed_ends_well() {
    let test = "-p vsock-vhost-user --lib simulation";
    let Some(outcomes) = run_seeds(DEFAULT_COUNT, test, run) else {
        return;
    };
    let mut all = Outcome::default();
    for outcome in &outcomes {
        all.talks += outcome.talks;
        all.whole += outcome.whole;
        all.bytes += outcome.bytes;
    }
    let count = outcomes.len();
    let Outcome {
        talks,
        whole,
        bytes,
    } = all;
    eprintln!("{count} seeds: {talks} connections, {whole} of them whole, {bytes} bytes");
    // The longer a world lasts, the more of its talks a guest's end is the end of.
    assert!(
        3 * whole > talks,
        "too much is excused: {whole} whole of {talks}"
    );
}
