//! The real-guest suite: what a Linux guest and its host do to each other, and what two
//! guests do, on every kernel.
//!
//! One boot serves many cases. A case that fails leaves nothing for the next: its logs
//! are kept, and daemon and guests start afresh.

pub(crate) mod bulk;
mod life;
mod machine;
mod refusals;
pub(crate) mod siblings;
mod table;
mod tools;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::equipment::Equipment;
use crate::kernel::Series;
use crate::lab::Lab;
use crate::progress::{detail, say};
use crate::project;
use crate::suite::table::Outcome;

/// What cases are done with: a daemon and its guests.
trait Setting: Sized + 'static {
    /// What it consists of, in messages.
    const NAME: &'static str;

    /// Starts the daemon and boots the guests.
    fn start(equipment: &Equipment) -> Result<Self>;

    /// Fails if the daemon or a guest has ended.
    fn check(&mut self) -> Result<()>;

    /// Copies the logs to a directory that stays.
    fn keep_logs(&self, directory: &Path) -> Result<()>;

    /// The ends of the logs.
    fn log_tails(&self) -> String;
}

/// Something that must hold between a guest and its host, or between guests.
struct Case<S = Lab> {
    name: String,
    check: Check<S>,
}

/// Does a case, and returns a word on how it went. It finds a lab in its bench, and may
/// leave it without one.
type Check<S> = Box<dyn Fn(&mut Bench<S>) -> Result<String>>;

/// Where a lab stands, or stood.
type Bench<S = Lab> = Option<S>;

impl<S: Setting> Case<S> {
    /// A case that leaves its lab as it was.
    fn new(name: impl Into<String>, check: impl Fn(&mut S) -> Result<String> + 'static) -> Self {
        Self::destructive(name, move |bench| check(bench.as_mut().context(NO_LAB)?))
    }

    /// A case that takes its lab apart, and may put it together again.
    fn destructive(
        name: impl Into<String>,
        check: impl Fn(&mut Bench<S>) -> Result<String> + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            check: Box::new(check),
        }
    }
}

/// A mistake in the suite, not in what it tests.
const NO_LAB: &str = "a case began without a lab";

/// All cases, in their order: what takes the guest apart comes last.
fn cases() -> Vec<Case> {
    let mut cases = bulk::cases();
    cases.extend(life::cases());
    cases.extend(refusals::cases());
    cases.extend(tools::cases());
    cases.extend(machine::cases());
    cases
}

/// Runs the cases whose name contains `filter`, on each of `kernels`; an error if any
/// fails.
pub(crate) fn run(kernels: &[Series], filter: &str) -> Result<()> {
    let mut outcomes = Vec::new();
    for equipment in Equipment::get(kernels)? {
        outcomes.extend(run_on(&equipment, filter)?);
    }
    table::print(kernels, &outcomes);
    let failed = outcomes.iter().filter(|outcome| !outcome.passed).count();
    println!(
        "\nreal guests: {} passed, {failed} failed",
        outcomes.len() - failed
    );
    if outcomes.is_empty() {
        bail!("no case has {filter:?} in its name");
    }
    if failed > 0 {
        bail!(
            "{failed} cases failed; their logs are in {}",
            logs().display()
        );
    }
    Ok(())
}

fn run_on(equipment: &Equipment, filter: &str) -> Result<Vec<Outcome>> {
    let (kernel, accel) = (&equipment.kernel, equipment.accel.name());
    say(format!("Linux {}, {accel}", kernel.release));
    let mut outcomes = run_cases(cases(), equipment, filter)?;
    outcomes.extend(run_cases(siblings::cases(), equipment, filter)?);
    Ok(outcomes)
}

fn run_cases<S: Setting>(
    cases: Vec<Case<S>>,
    equipment: &Equipment,
    filter: &str,
) -> Result<Vec<Outcome>> {
    let series = equipment.kernel.series;
    let mut outcomes = Vec::new();
    let mut bench: Bench<S> = None;
    for case in cases.into_iter().filter(|case| case.name.contains(filter)) {
        if bench.is_none() {
            let start = S::start(equipment).with_context(|| format!("start {}", S::NAME))?;
            bench = Some(start);
        }
        let start = Instant::now();
        let checked = (case.check)(&mut bench).and_then(|note| {
            // Daemon and QEMU are still there, unless the case was to end them.
            bench.as_mut().map_or(Ok(()), S::check)?;
            Ok(note)
        });
        let took = start.elapsed();
        let passed = checked.is_ok();
        let note = checked.unwrap_or_else(|why| {
            keep_logs(&case.name, series, bench.take().as_ref());
            format!("{why:#}")
        });
        let outcome = Outcome {
            series,
            name: case.name,
            passed,
            note,
            took,
        };
        say(outcome.line());
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// Keeps a failed case's logs, if its setting still stands, and shows their ends.
fn keep_logs<S: Setting>(name: &str, series: Series, setting: Option<&S>) {
    let Some(setting) = setting else { return };
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let directory = logs()
        .join(series.name())
        .join(name.chars().map(plain).collect::<String>());
    detail(setting.log_tails());
    match setting.keep_logs(&directory) {
        Ok(()) => detail(format!("all logs: {}", directory.display())),
        Err(error) => detail(format!("the logs are lost: {error:#}")),
    }
}

impl Setting for Lab {
    const NAME: &'static str = "a daemon and a guest";

    fn start(equipment: &Equipment) -> Result<Self> {
        Self::start(equipment)
    }

    fn check(&mut self) -> Result<()> {
        self.check()
    }

    fn keep_logs(&self, directory: &Path) -> Result<()> {
        self.keep_logs(directory)
    }

    fn log_tails(&self) -> String {
        self.log_tails()
    }
}

fn logs() -> PathBuf {
    project::cache().join("logs")
}
