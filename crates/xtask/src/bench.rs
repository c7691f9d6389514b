//! The side-by-side run: our daemon, the incumbent and the limits of the machine.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::daemon;
use crate::process::{CARGO_DEADLINE, run};
use crate::progress::say;
use crate::project;

/// The daemon to compare with, and its version.
const INCUMBENT: (&str, &str) = ("vhost-device-vsock", "0.3.0");

/// A full run with repetitions takes no longer than this.
const DEADLINE: Duration = Duration::from_secs(60 * 60);

/// Builds everything, and hands `options` to the program that measures.
pub(crate) fn run_all(options: &[String]) -> Result<()> {
    let ours = daemon::build()?;
    let incumbent = incumbent()?;
    say("measuring; leave the machine alone");
    let mut program = side_by_side();
    program
        .arg("--ours")
        .arg(ours)
        .arg("--incumbent")
        .arg(incumbent)
        .arg("--report")
        .arg(project::target().join("side-by-side.html"))
        .args(options);
    run(&mut program, DEADLINE).context("measure side by side")
}

/// Fails where our daemon is far slower than it was, measured by what the machine can do.
pub(crate) fn guard() -> Result<()> {
    let ours = daemon::build()?;
    let mut program = side_by_side();
    program.arg("--guard").arg("--ours").arg(ours);
    run(&mut program, CARGO_DEADLINE)
}

/// The program that measures, built if need be.
fn side_by_side() -> Command {
    let package = "side-by-side";
    let mut cargo = project::cargo();
    cargo.args(["run", "--quiet", "--release", "--package", package, "--"]);
    cargo
}

/// Installs the incumbent, unless it is there already.
fn incumbent() -> Result<PathBuf> {
    let (name, version) = INCUMBENT;
    let root = project::target().join("incumbent");
    let program = root.join("bin").join(name);
    if !program.exists() {
        say(format!("installing {name} {version}"));
        let mut cargo = project::cargo();
        cargo
            .args(["install", "--locked", "--version", version, "--root"])
            .arg(&root)
            .arg(name);
        run(&mut cargo, CARGO_DEADLINE).with_context(|| format!("install {name}"))?;
    }
    Ok(program)
}
