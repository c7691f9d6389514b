//! Measures a vsock device against the limits of the machine and against another device,
//! in one run: `cargo xtask bench` starts it.
//!
//! ```text
//!              ┌─▶ noise
//!  outcome ─▶ series ─▶ limits
//!   │          └──────▶ sample ─┬─▶ daemon
//!   ├─▶ table                   ├─▶ host, the host's applications
//!   └─▶ report, plot            └─▶ role, an application in a guest
//!                                     └─▶ guest, stream ─▶ driver ─▶ ring, shared
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
mod outcome;
mod plot;
mod report;
mod ring;
mod role;
mod sample;
mod scenario;
mod series;
mod shared;
mod statistics;
mod stopping;
mod stream;
mod table;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;

use crate::limits::Limit;
use crate::outcome::{Outcome, Row};
use crate::scenario::Scenario;
use crate::series::Series;

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
    /// Where to write a report, as HTML.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    stopping::clean_up_on_signals()?;
    let outcome = measure(&arguments)?;
    let tables = [table::limits(&outcome), table::scenarios(&outcome)];
    for table in &tables {
        println!("\n{}", table::render(table));
    }
    if let Some(path) = &arguments.report {
        report::write(path, &outcome, &tables)?;
        println!("\nThe report is {}", path.display());
    }
    Ok(())
}

fn measure(arguments: &Arguments) -> Result<Outcome> {
    let time = Duration::from_millis(arguments.sample);
    let row = |scenario| Row {
        scenario,
        ours: Series::default(),
        incumbent: Series::default(),
    };
    let chosen = |scenario: &Scenario| scenario.name.contains(&arguments.filter);
    let scenarios: Vec<_> = Scenario::all().into_iter().filter(chosen).collect();
    let of_use = |limit: &Limit| {
        let uses = |scenario: &Scenario| scenario.limits.contains(limit);
        arguments.filter.is_empty() || scenarios.iter().any(uses)
    };
    let limits = Limit::ALL.into_iter().filter(of_use);
    let mut outcome = Outcome {
        limits: limits.map(|limit| (limit, Series::default())).collect(),
        rows: scenarios.into_iter().map(row).collect(),
    };
    for round in 1..=arguments.rounds {
        progress(&format!("round {round} of {} ", arguments.rounds))?;
        for (limit, series) in &mut outcome.limits {
            let measured = series.add(|| limit.measure_watched(time));
            measured.with_context(|| format!("measure {}", limit.name()))?;
        }
        for row in &mut outcome.rows {
            progress(".")?;
            take_turns(arguments, row, time)?;
        }
        println!();
    }
    Ok(outcome)
}

fn take_turns(arguments: &Arguments, row: &mut Row, time: Duration) -> Result<()> {
    let Row {
        scenario,
        ours,
        incumbent,
    } = row;
    let daemons = [
        (ours, Some(&arguments.ours)),
        (incumbent, arguments.incumbent.as_ref()),
    ];
    for (series, program) in daemons {
        if let Some(program) = program {
            let taken = series.add(|| sample::take(program, scenario.traffic, time));
            taken.with_context(|| format!("measure {}: {}", program.display(), scenario.name))?;
        }
    }
    Ok(())
}

fn progress(text: &str) -> Result<()> {
    print!("{text}");
    std::io::stdout().flush().context("write to the terminal")
}
