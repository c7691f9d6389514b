//! Coverage-guided fuzzing: the programs in `fuzz`, each with its corpus.
//!
//! ```text
//!   fuzz/corpus/T, fuzz/regressions/T ──▶ ┌───────────┐ ──▶ target/fuzz/corpus/T, what is new
//!   target/fuzz/corpus/T, from before ──▶ │ program T │ ──▶ target/fuzz/logs/T.log
//!                                         └───────────┘ ──▶ fuzz/artifacts/T, what fails
//! ```
//!
//! Rust's stable toolchain does: the coverage is LLVM's own, and libFuzzer a crate.

mod build;
mod report;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread::ScopedJoinHandle;
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, bail};

use self::report::Outcome;
use crate::process::{CARGO_DEADLINE, Running, run};
use crate::progress::say;
use crate::project;

/// What to fuzz, and for how long.
pub(crate) struct Plan {
    /// The time for all targets together, in minutes.
    pub(crate) minutes: u64,
    /// One target only.
    pub(crate) target: Option<String>,
    /// Whether what was found becomes part of `fuzz/corpus`.
    pub(crate) keep: bool,
}

/// An input that takes longer than this is one that hangs.
const INPUT_DEADLINE: Duration = Duration::from_secs(25);
/// The most memory a fuzzer may use, in MiB.
const MEMORY_LIMIT: u32 = 4096;
/// What a fuzzer may take beyond its time, to load its corpus and to end.
const GRACE: Duration = Duration::from_secs(5 * 60);

/// Fuzzes. Fails when an input fails, and names it.
pub(crate) fn run_all(plan: &Plan) -> Result<()> {
    let targets = targets(plan.target.as_deref())?;
    let programs = build::programs()?;
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let workers = workers.min(targets.len());
    let time = Duration::from_secs(60 * plan.minutes) * workers as u32 / targets.len() as u32;
    let seconds = time.as_secs();
    say(format!(
        "{} targets, {workers} at a time, {seconds} s each",
        targets.len()
    ));
    let queue = Mutex::new(targets.iter().cloned().collect::<VecDeque<_>>());
    let next = || {
        queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    };
    let work = || -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        while let Some(target) = next() {
            outcomes.push(fuzz(&programs, &target, time)?);
        }
        Ok(outcomes)
    };
    let outcomes = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let joined = workers.into_iter().map(ScopedJoinHandle::join);
        joined
            .map(|outcomes| outcomes.unwrap_or_else(|_| bail!("a worker has panicked")))
            .collect::<Result<Vec<_>>>()
    })?;
    let outcomes = outcomes.concat();
    report::print(&outcomes);
    if plan.keep {
        for target in &targets {
            keep(&programs, target)?;
        }
    }
    report::check(&outcomes)
}

/// The targets there are, or the one that was asked for.
fn targets(wanted: Option<&str>) -> Result<Vec<String>> {
    let directory = project::root().join("fuzz/fuzz_targets");
    let entries =
        fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?;
    let mut targets = Vec::new();
    for entry in entries {
        let path = entry?.path();
        targets.extend(path.file_stem().map(|name| name.to_string_lossy().into()));
    }
    targets.sort();
    match wanted {
        None => Ok(targets),
        Some(name) if targets.iter().any(|target| target == name) => Ok(vec![name.to_owned()]),
        Some(name) => bail!(
            "--target {name}: there is no such target; choose one of {}",
            targets.join(", ")
        ),
    }
}

/// Where the fuzzers of this machine keep what they found.
fn own_corpus(target: &str) -> PathBuf {
    build::directory().join("corpus").join(target)
}

/// What everybody gets.
fn shared(kind: &str, target: &str) -> PathBuf {
    project::root().join("fuzz").join(kind).join(target)
}

fn fuzz(programs: &Path, target: &str, time: Duration) -> Result<Outcome> {
    let logs = build::directory().join("logs");
    let (own, artifacts) = (own_corpus(target), shared("artifacts", target));
    for directory in [&logs, &own, &artifacts] {
        make(directory)?;
    }
    let log = logs.join(format!("{target}.log"));
    let mut command = Command::new(programs.join(target));
    command
        .arg(match time.as_secs() {
            // Without end, if it were said in seconds.
            0 => "-runs=0".to_owned(),
            seconds => format!("-max_total_time={seconds}"),
        })
        .arg(format!("-timeout={}", INPUT_DEADLINE.as_secs()))
        .arg(format!("-rss_limit_mb={MEMORY_LIMIT}"))
        .args(["-print_final_stats=1", "-print_funcs=0"])
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(own)
        .args(["corpus", "regressions"].map(|kind| shared(kind, target)))
        .stdin(std::process::Stdio::null());
    for kind in ["corpus", "regressions"] {
        make(&shared(kind, target))?;
    }
    let status = Running::start(target, &mut command, &log)?.finish(time + GRACE)?;
    Outcome::read(target, time, status.success(), &log)
}

/// Takes over what was found into the shared corpus: as few inputs as reach all that is
/// reached.
fn keep(programs: &Path, target: &str) -> Result<()> {
    let (old, new) = (shared("corpus", target), build::directory().join("kept"));
    let _ = fs::remove_dir_all(&new);
    make(&new)?;
    let mut command = Command::new(programs.join(target));
    command
        .args(["-merge=1", "-set_cover_merge=1", "-print_funcs=0"])
        .args([&new, &old, &own_corpus(target)])
        .stderr(fs::File::create(build::directory().join("logs/merge.log"))?);
    run(&mut command, CARGO_DEADLINE)
        .with_context(|| format!("minimise the corpus of {target}"))?;
    fs::remove_dir_all(&old)?;
    make(&old)?;
    for entry in fs::read_dir(&new)? {
        let entry = entry?;
        fs::copy(entry.path(), old.join(entry.file_name()))?;
    }
    let count = fs::read_dir(&old)?.count();
    say(format!("{target}: {count} inputs in {}", old.display()));
    Ok(())
}

fn make(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))
}
