//! What the fuzzers did, read from their logs.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// What became of a target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Outcome {
    target: String,
    time: Duration,
    executions: u64,
    /// Edges of the control flow that were reached.
    edges: u64,
    /// The same, with how often each was.
    features: u64,
    /// Inputs in the corpus.
    inputs: u64,
    /// The file with the input that failed, or where to look for it.
    failed: Option<String>,
}

impl Outcome {
    /// Reads the log of a fuzzer that ran for this time.
    pub(super) fn read(target: &str, time: Duration, success: bool, log: &Path) -> Result<Self> {
        let text = fs::read(log).with_context(|| format!("read {}", log.display()))?;
        let mut outcome = Self::of(target, time, &String::from_utf8_lossy(&text));
        if success {
            outcome.failed = None;
        } else if outcome.failed.is_none() {
            outcome.failed = Some(format!("unknown; see {}", log.display()));
        }
        Ok(outcome)
    }

    fn of(target: &str, time: Duration, text: &str) -> Self {
        let last = text
            .lines()
            .rfind(|line| line.contains("\tcov: ") || line.contains(" cov: "));
        let number = |name| last.and_then(|line| after(line, name)).unwrap_or(0);
        let executions = text
            .lines()
            .find_map(|line| after(line, "stat::number_of_executed_units:"));
        let failed = text
            .lines()
            .find_map(|line| line.split_once("Test unit written to "))
            .map(|(_, path)| path.to_owned());
        Self {
            target: target.to_owned(),
            time,
            executions: executions.unwrap_or(0),
            edges: number("cov:"),
            features: number("ft:"),
            inputs: number("corp:"),
            failed,
        }
    }
}

/// The number behind a word.
fn after(line: &str, word: &str) -> Option<u64> {
    let (_, rest) = line.split_once(word)?;
    let digits = rest
        .trim_start()
        .split(|c: char| !c.is_ascii_digit())
        .next();
    digits.and_then(|digits| digits.parse().ok())
}

/// Prints a table of what was done.
pub(super) fn print(outcomes: &[Outcome]) {
    println!("\n| target | executions | edges | features | inputs | time | |");
    println!("|---|--:|--:|--:|--:|--:|---|");
    for outcome in outcomes {
        println!(
            "| {} | {} | {} | {} | {} | {} s | {} |",
            outcome.target,
            outcome.executions,
            outcome.edges,
            outcome.features,
            outcome.inputs,
            outcome.time.as_secs(),
            if outcome.failed.is_some() {
                "FAILED"
            } else {
                "clean"
            },
        );
    }
    println!();
}

/// Fails when an input failed.
pub(super) fn check(outcomes: &[Outcome]) -> Result<()> {
    let failed: Vec<String> = outcomes
        .iter()
        .filter_map(|outcome| Some(format!("{}: {}", outcome.target, outcome.failed.as_ref()?)))
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    bail!(
        "inputs fail:\n  {}\nCopy each to fuzz/regressions/<target>, and \
         `cargo test -p fuzz-targets` shows it; see docs/fuzzing.md",
        failed.join("\n  ")
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: &str = "\
#2\tINITED cov: 17 ft: 18 corp: 1/1b exec/s: 0 rss: 30Mb
#332319\tDONE   cov: 2477 ft: 13106 corp: 1112/150Kb lim: 493 exec/s: 5447 rss: 389Mb
Done 332319 runs in 61 second(s)
stat::number_of_executed_units: 332319
";

    #[test]
    fn reads_what_a_fuzzer_did() {
        let outcome = Outcome::of("switch", Duration::from_secs(61), CLEAN);
        assert_eq!(
            outcome,
            Outcome {
                target: "switch".to_owned(),
                time: Duration::from_secs(61),
                executions: 332_319,
                edges: 2477,
                features: 13106,
                inputs: 1112,
                failed: None,
            }
        );
        assert!(check(&[outcome]).is_ok());
    }

    #[test]
    fn names_the_input_that_failed() {
        let text = format!(
            "{CLEAN}artifact_prefix='a/'; Test unit written to a/crash-0123\nBase64: AA==\n"
        );
        let outcome = Outcome::of("switch", Duration::ZERO, &text);
        let error = check(&[outcome]).unwrap_err().to_string();
        assert!(error.contains("switch: a/crash-0123"), "{error}");
    }
}
