//! Simulations, whose runs a seed says all of.

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs and tells this seed alone.
const SEED: &str = "VSOCK_SIM_SEED";
/// How many are run instead of what is usual.
const COUNT: &str = "VSOCK_SIM_COUNT";

/// What `run` gives for each seed, `count` of them unless `VSOCK_SIM_COUNT` says how many.
/// `None` when `VSOCK_SIM_SEED` names one: that is run, and tells what happens.
///
/// # Panics
///
/// When a run does, with the way to replay it: `test` is what `cargo test` is to be given. And
/// when a variable is no number.
pub fn run_seeds<R>(count: u64, test: &str, run: impl Fn(u64, bool) -> R) -> Option<Vec<R>> {
    if let Some(seed) = variable(SEED) {
        run(seed, true);
        return None;
    }
    let outcome = |seed| {
        catch_unwind(AssertUnwindSafe(|| run(seed, false))).unwrap_or_else(|_| {
            panic!(
                "seed {seed} fails; to replay it: {SEED}={seed} cargo test {test} -- --nocapture"
            )
        })
    };
    let count = variable(COUNT).unwrap_or(count);
    Some((0..count).map(outcome).collect())
}

fn variable(name: &str) -> Option<u64> {
    let value = env::var(name).ok()?;
    let number = value.parse();
    Some(number.unwrap_or_else(|_| panic!("{name}: {value} is no number")))
}
