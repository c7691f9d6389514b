//! Measures a vsock device against the limits of the machine and against another device,
//! in one run: `cargo xtask bench` starts it.
//!
//! ```text
//!              ┌─▶ noise
//!  outcome ─▶ series ─▶ limits
//!   │          └──────▶ sample ─┬─▶ traffic, stall, idle ─▶ stage ─┬─▶ daemon
//!   ├─▶ target                  └─▶ lookup                         ├─▶ host, the host's applications
//!   ├─▶ table                                                      └─▶ role, applications in a guest
//!   └─▶ report, plot                                                     └─▶ guest, stream ─▶ driver ─▶ ring, shared
//! ```
//!
//! Both daemons take turns in each scenario, in several rounds. Each sample has a daemon
//! of its own, that nothing happened to before.

#![allow(clippy::print_stdout, reason = "a program for the terminal")]

mod count;
mod daemon;
mod driver;
mod guard;
mod guest;
mod host;
mod idle;
mod limits;
mod lookup;
mod noise;
mod outcome;
mod placement;
mod plot;
mod progress;
mod relay;
mod report;
mod ring;
mod role;
mod run;
mod sample;
mod scenario;
mod series;
mod shared;
mod stage;
mod stall;
mod statistics;
mod stopping;
mod stream;
mod table;
mod target;
mod traffic;
mod warm;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;

use crate::placement::Placement;

/// Measures a vsock device side by side with another and with the limits of the machine.
///
/// Both daemons take turns in each scenario. A sample during which other processes or the
/// hypervisor took more than 15 % of a core is taken again, twice at most. Each scenario
/// fixes the cores that daemon and applications run on.
#[derive(Debug, Parser)]
pub(crate) struct Arguments {
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
    /// Only the scenarios whose name contains this, and the limits they need.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    filter: String,
    /// Runs everything like this, limits included, whatever the scenario says.
    #[arg(long)]
    placement: Option<Placement>,
    /// Measures nothing but a few scenarios, ours alone, for a fraction of a minute, and
    /// fails where one is far from what it was.
    #[arg(long, conflicts_with_all = ["incumbent", "report"])]
    guard: bool,
    /// Where to write a report with a plot, as HTML.
    #[arg(long, value_name = "FILE", overrides_with = "report")]
    report: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    stopping::clean_up_on_signals()?;
    // A thousand connections.
    vsock_testkit::host::raise_file_limit()?;
    if arguments.guard {
        return guard::check(&arguments.ours);
    }
    let outcome = run::measure(&arguments)?;
    let tables = [table::scenarios(&outcome), table::limits(&outcome)];
    for table in &tables {
        println!("\n{}", table::render(table));
    }
    println!("\n{}", report::summary(&outcome));
    if let Some(path) = &arguments.report {
        report::write(path, &outcome, &tables)?;
        println!("The report is {}", path.display());
    }
    Ok(())
}

impl Arguments {
    fn sample(&self) -> Duration {
        Duration::from_millis(self.sample)
    }
}
