//! The fuzzers' programs.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::process::{CARGO_DEADLINE, run};
use crate::progress::say;
use crate::project;

/// Coverage of edges and of compared values, as libFuzzer reads them, and checks of every
/// access to memory.
const FLAGS: [&str; 7] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Zsanitizer=address",
];

/// Where all is that fuzzing leaves behind.
pub(super) fn directory() -> PathBuf {
    project::target().join("fuzz")
}

/// Builds the programs. Returns the directory they are in.
pub(super) fn programs() -> Result<PathBuf> {
    say("building the fuzzers");
    // Named, so that what runs while building is built without the flags.
    let platform = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let mut cargo = project::cargo();
    cargo
        .args(["build", "--quiet", "--release"])
        .args(["--manifest-path", "fuzz/Cargo.toml", "--target", &platform])
        .arg("--target-dir")
        .arg(directory())
        .env("RUSTFLAGS", FLAGS.join(" "))
        // Sanitizers come with the stable compiler, but it wants to be asked like this.
        .env("RUSTC_BOOTSTRAP", "1");
    run(&mut cargo, CARGO_DEADLINE).context("build the fuzzers")?;
    Ok(directory().join(platform).join("release"))
}
