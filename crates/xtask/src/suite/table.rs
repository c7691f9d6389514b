//! How the cases went, as a line each and as one table.

use std::time::Duration;

use crate::kernel::Series;

/// How one case went on one kernel.
pub(super) struct Outcome {
    /// The kernel.
    pub(super) series: Series,
    /// The case.
    pub(super) name: String,
    /// Whether it held.
    pub(super) passed: bool,
    /// A word on how it went, or why it failed.
    pub(super) note: String,
    /// How long it took.
    pub(super) took: Duration,
}

impl Outcome {
    /// All of it in one line.
    pub(super) fn line(&self) -> String {
        let Self { name, note, .. } = self;
        let verdict = if self.passed { "ok  " } else { "FAIL" };
        format!(
            "{verdict} {name:60} {:5.1} s  {note}",
            self.took.as_secs_f64()
        )
    }

    /// Little enough for a table.
    fn cell(&self) -> String {
        match self.passed {
            true if self.note.is_empty() => "ok".to_owned(),
            true => self.note.clone(),
            false => "FAILED".to_owned(),
        }
    }
}

/// Prints a row for each case and a column for each kernel.
pub(super) fn print(kernels: &[Series], outcomes: &[Outcome]) {
    let headings = kernels.iter().map(|series| series.name().to_owned());
    println!("\n{}", row("case", headings));
    let mut names: Vec<&str> = Vec::new();
    for Outcome { name, .. } in outcomes {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    for name in names {
        let cells = kernels.iter().map(|&series| {
            let outcome = outcomes
                .iter()
                .find(|o| o.series == series && o.name == name);
            outcome.map_or("-".to_owned(), Outcome::cell)
        });
        println!("{}", row(name, cells));
    }
}

fn row(name: &str, cells: impl Iterator<Item = String>) -> String {
    let cells: String = cells.map(|cell| format!("  {cell:>16}")).collect();
    format!("{name:60}{cells}")
}
