//! The soak: guests and host applications that talk while things go wrong.
//!
//! ```text
//!   cargo build --cfg mishaps ──▶ daemon ◀── simulated guests: the program `soak`
//!    (target/mishaps)                    ◀── real guests: the cases of `suite`
//! ```

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::daemon::{self, Mishaps};
use crate::kernel::Series;
use crate::process::{CARGO_DEADLINE, Scratch, run};
use crate::progress::say;
use crate::{project, suite};

/// What it may take beyond its time, to come to rest and to end.
const GRACE: Duration = Duration::from_secs(3 * 60);

/// How to soak.
pub(crate) struct Plan {
    /// How long the simulated guests talk.
    pub(crate) time: Duration,
    /// What decides their choices, and what goes wrong.
    pub(crate) seed: Option<u64>,
    /// For how long the cases of real guests are done over and over, and by which kernel;
    /// once at least.
    pub(crate) real_guests: Option<(Series, Duration)>,
}

/// Soaks.
pub(crate) fn run_all(plan: &Plan) -> Result<()> {
    let program = build()?;
    let seed = plan.seed.unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(1, |since| since.as_secs())
    });
    simulated(&program, plan.time, seed)?;
    if let Some((kernel, time)) = plan.real_guests {
        daemon::replace(program, Mishaps { seed });
        let end = Instant::now() + time;
        loop {
            say("the cases of real guests, while system calls go wrong");
            suite::run(&[kernel], "")?;
            if Instant::now() >= end {
                break;
            }
        }
    }
    Ok(())
}

/// Builds the daemon whose system calls go wrong, in a directory of its own.
fn build() -> Result<PathBuf> {
    let (package, target) = ("vhost-user-vsock", project::target().join("mishaps"));
    let mut cargo = project::cargo();
    cargo
        .args(["build", "--release", "--package", package, "--target-dir"])
        .arg(&target)
        .env("RUSTFLAGS", "--cfg mishaps");
    run(&mut cargo, CARGO_DEADLINE).context("build a daemon whose system calls go wrong")?;
    Ok(target.join("release").join(package))
}

fn simulated(daemon: &PathBuf, time: Duration, seed: u64) -> Result<()> {
    let mut cargo = project::cargo();
    let build = ["build", "--quiet", "--release", "--package", "soak"];
    run(cargo.args(build), CARGO_DEADLINE).context("build the soak")?;
    let scratch = Scratch::new()?;
    let mut soak = Command::new(project::target().join("release/soak"));
    soak.arg("--daemon")
        .arg(daemon)
        .arg("--directory")
        .arg(scratch.path())
        .args(["--seconds", &time.as_secs().to_string()])
        .args(["--seed", &seed.to_string()]);
    run(&mut soak, time + GRACE).with_context(|| {
        format!("soak with `cargo xtask soak --seed {seed}`, which chooses the same again")
    })
}
