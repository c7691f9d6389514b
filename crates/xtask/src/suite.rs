//! The real-guest suite: what a Linux guest and its host do to each other, on every
//! kernel.
//!
//! One boot serves many cases. A case that fails leaves nothing for the next: its logs
//! are kept, and daemon and guest start afresh.

pub(crate) mod bulk;
mod life;
mod machine;
mod refusals;
mod tools;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::equipment::Equipment;
use crate::kernel::Series;
use crate::lab::Lab;
use crate::progress::{detail, say};
use crate::project;

/// Something that must hold between a guest and its host.
struct Case {
    name: String,
    check: Check,
}

/// Does a case; takes the lab and gives it back if it still works.
type Check = Box<dyn Fn(Lab) -> Result<Passed, Box<Broken>>>;

/// What a passed case leaves.
struct Passed {
    lab: Option<Lab>,
    note: String,
}

/// What a failed case leaves.
struct Broken {
    why: anyhow::Error,
    lab: Option<Lab>,
}

impl Case {
    /// A case that leaves its guest running.
    fn new(name: impl Into<String>, check: impl Fn(&mut Lab) -> Result<String> + 'static) -> Self {
        let check: Check = Box::new(move |mut lab| match check(&mut lab) {
            Ok(note) => Ok(Passed {
                lab: Some(lab),
                note,
            }),
            Err(why) => Err(Box::new(Broken {
                why,
                lab: Some(lab),
            })),
        });
        Self {
            name: name.into(),
            check,
        }
    }

    /// A case that takes its lab apart, and may put it together again.
    fn destructive(
        name: impl Into<String>,
        check: impl Fn(Lab) -> Result<Passed> + 'static,
    ) -> Self {
        let check: Check =
            Box::new(move |lab| check(lab).map_err(|why| Box::new(Broken { why, lab: None })));
        Self {
            name: name.into(),
            check,
        }
    }
}

/// All cases, in their order: what takes the guest apart comes last.
fn cases() -> Vec<Case> {
    let mut cases = bulk::cases();
    cases.extend(life::cases());
    cases.extend(refusals::cases());
    cases.extend(tools::cases());
    cases.extend(machine::cases());
    cases
}

/// How one case went on one kernel.
struct Outcome {
    series: Series,
    name: String,
    passed: bool,
    note: String,
    took: Duration,
}

/// Runs the cases whose name contains `filter`, on each of `kernels`; an error if any
/// fails.
pub(crate) fn run(kernels: &[Series], filter: &str) -> Result<()> {
    let mut outcomes = Vec::new();
    for equipment in Equipment::get(kernels)? {
        outcomes.extend(run_on(&equipment, filter)?);
    }
    summarize(kernels, &outcomes)
}

fn run_on(equipment: &Equipment, filter: &str) -> Result<Vec<Outcome>> {
    let (kernel, accel) = (&equipment.kernel, equipment.accel.name());
    say(format!("Linux {}, {accel}", kernel.release));
    let mut outcomes = Vec::new();
    let mut lab = None;
    for case in cases()
        .into_iter()
        .filter(|case| case.name.contains(filter))
    {
        let fresh = match lab.take() {
            Some(lab) => lab,
            None => Lab::start(equipment).context("start a daemon and a guest")?,
        };
        let start = Instant::now();
        let checked = (case.check)(fresh);
        let took = start.elapsed();
        let (passed, note) = match checked.and_then(still_alive) {
            Ok(passed) => {
                lab = passed.lab;
                (true, passed.note)
            }
            Err(broken) => (false, autopsy(&case.name, kernel.series, &broken)),
        };
        let outcome = Outcome {
            series: kernel.series,
            name: case.name,
            passed,
            note,
            took,
        };
        say(line(&outcome));
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// After each case, daemon and QEMU are still there, unless the case was to end them.
fn still_alive(passed: Passed) -> Result<Passed, Box<Broken>> {
    let Passed {
        lab: Some(mut lab),
        note,
    } = passed
    else {
        return Ok(passed);
    };
    match lab.check() {
        Ok(()) => Ok(Passed {
            lab: Some(lab),
            note,
        }),
        Err(why) => Err(Box::new(Broken {
            why,
            lab: Some(lab),
        })),
    }
}

/// Keeps a failed case's logs and shows their ends; returns what went wrong.
fn autopsy(name: &str, series: Series, broken: &Broken) -> String {
    let why = format!("{:#}", broken.why);
    if let Some(lab) = &broken.lab {
        let directory = logs(name, series);
        match lab.keep_logs(&directory) {
            Ok(daemon) => {
                detail(format!("the end of the daemon's log:\n{daemon}"));
                detail(lab.guest.console_tail());
                detail(format!("all logs: {}", directory.display()));
            }
            Err(error) => detail(format!("the logs are lost: {error:#}")),
        }
    }
    why
}

fn logs(name: &str, series: Series) -> PathBuf {
    let name: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    project::cache().join("logs").join(series.name()).join(name)
}

fn line(outcome: &Outcome) -> String {
    let Outcome {
        name,
        passed,
        note,
        took,
        ..
    } = outcome;
    let verdict = if *passed { "ok  " } else { "FAIL" };
    format!("{verdict} {name:60} {:5.1} s  {note}", took.as_secs_f64())
}

/// Prints the table and the last line.
fn summarize(kernels: &[Series], outcomes: &[Outcome]) -> Result<()> {
    println!();
    print!("{:60}", "case");
    for series in kernels {
        print!("  {:>16}", series.name());
    }
    println!();
    let mut names: Vec<&str> = Vec::new();
    for outcome in outcomes {
        if !names.contains(&outcome.name.as_str()) {
            names.push(&outcome.name);
        }
    }
    for name in names {
        print!("{name:60}");
        for &series in kernels {
            let outcome = outcomes
                .iter()
                .find(|o| o.series == series && o.name == name);
            print!("  {:>16}", outcome.map_or("-".to_owned(), cell));
        }
        println!();
    }
    let failed = outcomes.iter().filter(|outcome| !outcome.passed).count();
    println!(
        "\nreal guests: {} passed, {failed} failed",
        outcomes.len() - failed
    );
    if outcomes.is_empty() {
        bail!("no case has such a name");
    }
    if failed > 0 {
        bail!(
            "{failed} cases failed; their logs are in {}",
            project::cache().join("logs").display()
        );
    }
    Ok(())
}

fn cell(outcome: &Outcome) -> String {
    match outcome.passed {
        true if outcome.note.is_empty() => "ok".to_owned(),
        true => outcome.note.clone(),
        false => "FAILED".to_owned(),
    }
}
