//! The project's tasks, run as `cargo xtask`.
//!
//! ```text
//!   bench ───▶ daemon, and the program side-by-side
//!   demo ──┐                     ┌─▶ equipment ─▶ kernel, kernel_tests, initramfs, accel ─▶ apt, cpio
//!   test ──┼─▶ lab (talk) ───────┼─▶ daemon
//!    suite ┘                     ├─▶ guest ─▶ qemu ─▶ qmp
//!                                └─▶ hybrid, the host's sockets
//!   fuzz ───▶ the programs in `fuzz`
//!   soak ───▶ the program soak, and `suite`, on a daemon whose system calls go wrong
//! ```

#![allow(clippy::print_stdout, reason = "a program for the terminal")]

mod accel;
mod apt;
mod bench;
mod checks;
mod cpio;
mod ctl;
mod daemon;
mod demo;
mod equipment;
mod fuzz;
mod guest;
mod hybrid;
mod initramfs;
mod kernel;
mod kernel_tests;
mod lab;
mod process;
mod progress;
mod project;
mod qemu;
mod qmp;
mod siblings;
mod soak;
mod suite;
mod talk;
mod test;
mod wait;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::kernel::Series;
use crate::test::Selection;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "The project's tasks")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Measures the daemon beside the incumbent and the limits of the machine.
    Bench {
        /// Options of the program that measures, after `--`; `-- --help` lists them.
        #[arg(last = true, value_name = "OPTION")]
        options: Vec<String>,
    },
    /// Boots two guests and shows how they talk to their host and to each other.
    Demo {
        /// Leaves guests and daemon running, with commands to play with them.
        #[arg(long)]
        keep: bool,
        /// The guests' kernel.
        #[arg(long, value_enum, default_value = "6.1")]
        kernel: Series,
    },
    /// Looks for inputs that make something go wrong.
    Fuzz {
        /// The time for all targets together.
        #[arg(long, default_value = "10")]
        minutes: u64,
        /// Takes one target only.
        #[arg(long, value_name = "NAME")]
        target: Option<String>,
        /// Takes over what was found into fuzz/corpus, minimised.
        #[arg(long)]
        keep: bool,
    },
    /// Runs what the guests' workers share in many orders of their steps.
    Interleavings,
    /// Runs the crates without system calls under Miri, with a nightly toolchain.
    Miri,
    /// Has guests and host applications talk for long, while all kinds of things go wrong.
    Soak {
        /// How long the simulated guests talk.
        #[arg(long, default_value = "10", conflicts_with = "seconds")]
        minutes: u64,
        /// The same, in seconds.
        #[arg(long)]
        seconds: Option<u64>,
        /// What decides all choices; another for each run, if it is not given.
        #[arg(long)]
        seed: Option<u64>,
        /// Does the cases of real guests afterwards, over and over for so many minutes.
        #[arg(long, value_name = "MINUTES")]
        real_guests: Option<u64>,
        /// The real guests' kernel.
        #[arg(long, value_enum, default_value = "6.1")]
        kernel: Series,
    },
    /// Runs every check and test, with real guests at the end.
    Test {
        /// Leaves the real guests out.
        #[arg(long, conflicts_with = "only_guests")]
        skip_guests: bool,
        /// Runs nothing but the real guests.
        #[arg(long)]
        only_guests: bool,
        /// Takes one kernel only for the real guests.
        #[arg(long, value_enum)]
        kernel: Option<Series>,
        /// Runs only the cases with real guests whose name contains this.
        #[arg(
            long,
            value_name = "NAME",
            default_value = "",
            hide_default_value = true
        )]
        filter: String,
    },
}

fn main() -> ExitCode {
    let Arguments { task } = Arguments::parse();
    progress::elapsed();
    match perform(task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<()> {
    process::clean_up_on_signals()?;
    match task {
        Task::Bench { options } => bench::run_all(&options),
        Task::Demo { keep, kernel } => demo::run(kernel, keep),
        Task::Fuzz {
            minutes,
            target,
            keep,
        } => fuzz::run_all(&fuzz::Plan {
            minutes,
            target,
            keep,
        }),
        Task::Interleavings => checks::interleavings(),
        Task::Miri => checks::miri(),
        Task::Soak {
            minutes,
            seconds,
            seed,
            real_guests,
            kernel,
        } => soak::run_all(&soak::Plan {
            time: Duration::from_secs(seconds.unwrap_or(60 * minutes)),
            seed,
            real_guests: real_guests.map(|minutes| (kernel, Duration::from_secs(60 * minutes))),
        }),
        Task::Test {
            skip_guests,
            only_guests,
            kernel,
            filter,
        } => {
            let kernels = match (skip_guests, kernel) {
                (true, _) => Vec::new(),
                (false, Some(kernel)) => vec![kernel],
                (false, None) => Series::ALL.to_vec(),
            };
            test::run_all(&Selection {
                without_guests: !only_guests,
                kernels,
                filter,
            })
        }
    }
}
