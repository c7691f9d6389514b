//! Every check of the project, one after the other, up to the first that fails.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::bench;
use crate::equipment;
use crate::kernel::Series;
use crate::process::{CARGO_DEADLINE, run};
use crate::progress::elapsed;
use crate::project;
use crate::soak;
use crate::suite;

/// How long simulated guests talk, and what decides what they do: others' changes are not to
/// fail for what is chosen anew each time.
const SOAK: Duration = Duration::from_secs(60);
const SEED: u64 = 11;

/// What to check.
pub(crate) struct Selection {
    /// All that needs no guest.
    pub(crate) without_guests: bool,
    /// The real-guest suite, on these kernels.
    pub(crate) kernels: Vec<Series>,
    /// Only the cases of that suite whose name contains this.
    pub(crate) filter: String,
}

/// Runs the selected checks.
pub(crate) fn run_all(selection: &Selection) -> Result<()> {
    if !selection.kernels.is_empty() {
        // Sooner than after minutes of other checks.
        equipment::check_tools()?;
    }
    let mut steps = Steps::default();
    if selection.without_guests {
        for (name, arguments) in CARGO_STEPS {
            steps.step(name, || run(&mut cargo(arguments), CARGO_DEADLINE))?;
        }
        steps.step("documentation", || {
            let documentation = ["doc", "--workspace", "--no-deps"];
            let mut cargo = cargo(&documentation);
            run(cargo.env("RUSTDOCFLAGS", "-Dwarnings"), CARGO_DEADLINE)
        })?;
        for (name, arguments) in CARGO_TESTS {
            steps.step(name, || run(&mut cargo(arguments), CARGO_DEADLINE))?;
        }
        steps.step("nothing is lost while things go wrong", || {
            soak::run_all(&soak::Plan {
                time: SOAK,
                seed: Some(SEED),
                real_guests: None,
            })
        })?;
        steps.step("the speed is about what it was", bench::guard)?;
    }
    if !selection.kernels.is_empty() {
        steps.step("real guests", || {
            suite::run(&selection.kernels, &selection.filter)
        })?;
    }
    steps.summarize();
    Ok(())
}

const CARGO_STEPS: [(&str, &[&str]); 2] = [
    ("formatting", &["fmt", "--all", "--check"]),
    (
        "clippy",
        &["clippy", "--workspace", "--all-targets", "--", "-Dwarnings"],
    ),
];

const CARGO_TESTS: [(&str, &[&str]); 3] = [
    (
        "unit, property and integration tests, doctests",
        &["test", "--workspace"],
    ),
    (
        "examples and benches compile",
        &["build", "--workspace", "--examples", "--benches"],
    ),
    (
        "benchmarks, in short",
        &["bench", "--package", "vsock-benches", "--", "--quick"],
    ),
];

fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = project::cargo();
    cargo.args(arguments);
    cargo
}

/// Steps with their headings and times.
#[derive(Default)]
struct Steps {
    passed: Vec<(String, f64)>,
}

impl Steps {
    fn step(&mut self, name: &str, step: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("\n==== {name}");
        let start = Instant::now();
        step().with_context(|| format!("`{name}` has failed"))?;
        let took = start.elapsed().as_secs_f64();
        println!("==== {name}: passed in {took:.1} s");
        self.passed.push((name.to_owned(), took));
        Ok(())
    }

    fn summarize(&self) {
        println!("\nAll passed in {:.0} s:", elapsed().as_secs_f64());
        for (name, took) in &self.passed {
            println!("  {name:50} {took:7.1} s");
        }
    }
}
