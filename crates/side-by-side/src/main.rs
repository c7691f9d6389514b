//! Measures a vsock device against the limits of the machine and against another device,
//! in one run: `cargo xtask bench` starts it.
//!
//! ```text
//!  limits ────────────────────────────────────────────────┐
//!                                                         ▼
//!  scenario ─▶ series ─▶ sample ─┬─▶ daemon            statistics ─▶ table
//!                noise ◀─┘       ├─▶ host, the host's applications
//!                                └─▶ role, an application in a guest
//!                                      └─▶ guest, stream ─▶ driver ─▶ ring, shared
//! ```
//!
//! Both daemons take turns in each scenario, in several rounds. Each sample has a daemon
//! of its own, that nothing happened to before.

#![allow(clippy::print_stdout, reason = "a program for the terminal")]

mod daemon;
mod driver;
mod guest;
mod host;
mod limits;
mod noise;
mod ring;
mod role;
mod sample;
mod scenario;
mod series;
mod shared;
mod statistics;
mod stream;
mod table;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;

use crate::limits::Limit;
use crate::scenario::Scenario;
use crate::series::Series;
use crate::statistics::median;
use crate::table::Row;

/// Measures a vsock device side by side with another.
#[derive(Debug, Parser)]
struct Arguments {
    /// The daemon under measurement.
    #[arg(long, value_name = "PROGRAM")]
    ours: PathBuf,
    /// The daemon to compare it with; without one, ours is measured alone.
    #[arg(long, value_name = "PROGRAM")]
    incumbent: Option<PathBuf>,
    /// How often each daemon's turn comes in each scenario.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long a sample takes, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 500)]
    sample: u64,
    /// Only the scenarios whose name contains this.
    #[arg(long, default_value = "", hide_default_value = true)]
    filter: String,
}

/// What was measured.
#[derive(Debug)]
pub(crate) struct Outcome {
    limits: Vec<(Limit, Vec<f64>)>,
    results: Vec<Row>,
}

impl Outcome {
    /// The sum of these limits; `None` of no limits.
    pub(crate) fn limit(&self, limits: &[Limit]) -> Option<f64> {
        let value = |wanted: &Limit| {
            let (_, values) = self.limits.iter().find(|(limit, _)| limit == wanted)?;
            median(values)
        };
        limits
            .iter()
            .map(value)
            .reduce(|sum, next| Some(sum? + next?))?
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let outcome = measure(&arguments)?;
    println!("\n{}", table::render(&outcome));
    Ok(())
}

fn measure(arguments: &Arguments) -> Result<Outcome> {
    let time = Duration::from_millis(arguments.sample);
    let mut outcome = Outcome {
        limits: Limit::ALL.map(|limit| (limit, Vec::new())).into(),
        results: Scenario::all()
            .into_iter()
            .filter(|scenario| scenario.name.contains(&arguments.filter))
            .map(|scenario| (scenario, <[Series; 2]>::default()))
            .collect(),
    };
    for round in 1..=arguments.rounds {
        progress(&format!("round {round} of {}", arguments.rounds))?;
        for (limit, values) in &mut outcome.limits {
            let measured = limit.measure(time);
            values.push(measured.with_context(|| format!("measure {}", limit.name()))?);
        }
        for (scenario, [ours, incumbent]) in &mut outcome.results {
            progress(".")?;
            let of = |daemon| format!("measure {daemon}: {}", scenario.name);
            let traffic = scenario.traffic;
            let taken = ours.add(&arguments.ours, traffic, time);
            taken.with_context(|| of("our daemon"))?;
            if let Some(program) = &arguments.incumbent {
                let taken = incumbent.add(program, traffic, time);
                taken.with_context(|| of("the incumbent"))?;
            }
        }
        println!();
    }
    Ok(outcome)
}

fn progress(text: &str) -> Result<()> {
    print!("{text}");
    std::io::stdout().flush().context("write to the terminal")
}
