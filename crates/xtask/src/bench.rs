//! The side-by-side run: our daemon, the incumbent and the limits of the machine.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::daemon;
use crate::process::{CARGO_DEADLINE, run};
use crate::progress::say;
use crate::project;

/// The daemon to compare with, and its version.
const INCUMBENT: (&str, &str) = ("vhost-device-vsock", "0.3.0");

/// Builds everything, and hands `options` to the program that measures.
pub(crate) fn run_all(options: &[String]) -> Result<()> {
    let ours = daemon::build()?;
    let incumbent = incumbent()?;
    say("measuring; leave the machine alone");
    let package = "side-by-side";
    let mut cargo = project::cargo();
    cargo
        .args(["run", "--quiet", "--release", "--package", package, "--"])
        .arg("--ours")
        .arg(ours)
        .arg("--incumbent")
        .arg(incumbent)
        .args(options);
    run(&mut cargo, CARGO_DEADLINE).context("measure side by side")
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
