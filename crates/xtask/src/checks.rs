//! Checks that need a build of their own: how threads may interleave, and what the
//! interpreter of Rust's memory model says.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{CARGO_DEADLINE, output, run};
use crate::project;

/// The crates without a system call of their own.
const PURE: [&str; 3] = ["vsock-packet", "vsock-connection", "vsock-router"];

/// Tests that move so many bytes, or count so far, that an interpreter is at it for an
/// hour; others do the same with less.
const LONG: [&str; 14] = [
    "a_message_in_tiny_pieces",
    "a_receiver_gets_no_more_packets_than_it_can_hold",
    "a_sender_with_too_much_waiting",
    "a_stream_is_neither_lost_nor_reordered",
    "any_cut_is_read_whole",
    "arrives_whole",
    "counts_across_the_wrap",
    "empty_messages_are_bounded_in_number",
    "gives_out_every_port_once",
    "one_that_does_not_refill_slows_nobody_else",
    "reads_every_layout",
    "small_packets_that_wait_are_joined",
    "what_does_not_fit_waits_and_comes_in_order",
    "writes_every_layout",
];

/// Runs what threads share in many orders.
pub(crate) fn interleavings() -> Result<()> {
    let mut cargo = project::cargo();
    cargo
        .args(["test", "--release", "--package", "vsock-router"])
        .args(["--test", "interleavings", "--target-dir"])
        .arg(project::target().join("shuttle"))
        .env("RUSTFLAGS", "--cfg shuttle");
    run(&mut cargo, CARGO_DEADLINE).context("run threads in many orders")
}

/// Runs the unit tests of the pure crates under Miri.
pub(crate) fn miri() -> Result<()> {
    let mut version = Command::new("cargo");
    if output(version.args(["+nightly", "miri", "--version"])).is_err() {
        bail!(
            "Miri is missing: install it with `rustup toolchain install nightly --component \
             miri --component rust-src`"
        );
    }
    for package in PURE {
        let mut cargo = Command::new("cargo");
        cargo
            .current_dir(project::root())
            .args(["+nightly", "miri", "test", "--package", package, "--lib"])
            .arg("--target-dir")
            .arg(project::target().join("miri"))
            .arg("--")
            .args(LONG.iter().flat_map(|test| ["--skip", test]))
            // Cargo that runs this program has set its own.
            .env_remove("CARGO")
            .env_remove("RUSTC")
            .env_remove("RUSTUP_TOOLCHAIN")
            .env("MIRIFLAGS", "-Zmiri-disable-isolation")
            .env("PROPTEST_CASES", "4");
        run(&mut cargo, CARGO_DEADLINE).with_context(|| format!("run {package} under Miri"))?;
    }
    Ok(())
}
