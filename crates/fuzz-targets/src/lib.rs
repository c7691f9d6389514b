//! What the fuzzers run. Each target takes any bytes, makes a scenario of them, and panics
//! when something happens that must not.
//!
//! ```text
//!   fuzz/fuzz_targets/*  (libFuzzer) ──▶ ┌────────┐ ──▶ steps ──▶ the code under test
//!   tests/replay.rs  (cargo test)    ──▶ │ Target │              and a model beside it
//!                                        └────────┘
//! ```
//!
//! `cargo xtask fuzz` looks for new inputs; the test replays those that were kept, in
//! `fuzz/corpus` and `fuzz/regressions`, so a defect that was found once is looked for
//! by every `cargo test`.
//!
//! With `VSOCK_FUZZ_TRACE` set, the steps of an input are printed as they are taken.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    reason = "a target panics where something is wrong"
)]
#![allow(
    clippy::expect_used,
    reason = "a target panics where something is wrong"
)]
#![allow(clippy::print_stderr, reason = "a trace is for the terminal")]

use std::sync::{Mutex, MutexGuard, PoisonError};

mod chain;
mod connect_line;
mod connection;
mod control;
mod packets;
mod session;
mod steps;
mod switch;
mod table;

/// Held by an input that looks at the threads or the files of the process, or has some.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something to fuzz.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: of its binary, and of the directory of its inputs.
    pub name: &'static str,
    /// Runs one input. Panics when something is wrong.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target {
        name: "chain",
        run: chain::run,
    },
    Target {
        name: "connect_line",
        run: connect_line::run,
    },
    Target {
        name: "connection",
        run: connection::run,
    },
    Target {
        name: "control",
        run: control::run,
    },
    Target {
        name: "session",
        run: session::run,
    },
    Target {
        name: "switch",
        run: switch::run,
    },
    Target {
        name: "table",
        run: table::run,
    },
];

/// Runs an input of the target with this name.
///
/// # Panics
///
/// When something is wrong, or there is no such target.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target of this name").run)(data);
}
