//! The result as tables: cells of text, and their lines for the terminal.

use crate::outcome::{Line, Outcome, Row};
use crate::sample::{Busy, Sample};
use crate::scenario::Unit;
use crate::series::Series;
use crate::target::{Target, per_gib};

/// A table: the first line is its head.
pub(crate) type Table = Vec<Vec<String>>;

/// The limits of the machine.
pub(crate) fn limits(outcome: &Outcome) -> Table {
    let head = ["limit", "median", "spread", "noisy"].map(str::to_owned);
    let rows = outcome.limits.iter().map(|((limit, placement), series)| {
        vec![
            format!("{}, {}", limit.name(), placement.name()),
            amount(series.median(|&value| Some(value)), limit.unit()),
            percent(series.spread(|&value| Some(value))),
            noisy(series.disturbed, series.repeated),
        ]
    });
    std::iter::once(head.into()).chain(rows).collect()
}

/// Both daemons in all scenarios, a line a target.
pub(crate) fn scenarios(outcome: &Outcome) -> Table {
    let head = [
        "scenario",
        "ours",
        "spread",
        "incumbent",
        "spread",
        "x limit",
        "x incumbent",
        "target",
        "met",
        "CPU ours",
        "CPU incumbent",
        "busy cores",
        "noisy",
    ];
    let lines = outcome.lines();
    let rows = lines.iter().map(|line| match line.is_first {
        true => value(line),
        false => further(line),
    });
    let head = head.map(str::to_owned).into();
    std::iter::once(head).chain(rows).collect()
}

/// The line of a scenario's value.
fn value(line: &Line<'_>) -> Vec<String> {
    let Row {
        scenario,
        ours,
        incumbent,
    } = line.row;
    let unit = scenario.unit();
    let value = |series: &Series<Sample>| match series.hangs() {
        true => "hangs".into(),
        false => amount(series.median(|sample| Some(sample.value)), unit),
    };
    vec![
        scenario.name.clone(),
        value(ours),
        percent(ours.spread(|sample| Some(sample.value))),
        value(incumbent),
        percent(incumbent.spread(|sample| Some(sample.value))),
        number(line.of_limit()),
        number(line.of_incumbent()),
        line.target.to_string(),
        met(line),
        cpu(line.ours.cpu, unit),
        cpu(line.incumbent.cpu, unit),
        busy(ours),
        noisy(
            ours.disturbed + incumbent.disturbed,
            ours.repeated + incumbent.repeated,
        ),
    ]
}

/// The line of another target.
fn further(line: &Line<'_>) -> Vec<String> {
    let nothing = String::new;
    let (what, ours, incumbent) = match line.target {
        Target::CpuAtMost(_) => (
            "daemon CPU",
            cpu(line.ours.cpu, Unit::Rate),
            cpu(line.incumbent.cpu, Unit::Rate),
        ),
        _ => (
            "Jain's index",
            precise(line.ours.fairness),
            precise(line.incumbent.fairness),
        ),
    };
    let target = line.target.to_string();
    [format!("  {what}"), ours, nothing(), incumbent]
        .into_iter()
        .chain([nothing(), nothing(), nothing(), target, met(line)])
        .chain([nothing(), nothing(), nothing(), nothing()])
        .collect()
}

/// Cores that our daemon was busy on, and those that guests and applications were.
fn busy(ours: &Series<Sample>) -> String {
    let cores = |of: fn(Busy) -> f64| ours.median(|sample| sample.busy.map(of));
    match (cores(|busy| busy.daemon), cores(|busy| busy.applications)) {
        (Some(daemon), Some(applications)) => format!("{daemon:.2} + {applications:.2}"),
        _ => "-".into(),
    }
}

fn met(line: &Line<'_>) -> String {
    let met = match line.reached() {
        Some(1.0..) => "yes",
        Some(_) => "NO",
        None if line.row.ours.hangs() => "NO",
        None => "-",
    };
    met.to_owned()
}

/// The table's lines, in columns: the first to the left, the others to the right.
pub(crate) fn render(table: &Table) -> String {
    let columns = table.iter().map(Vec::len).max().unwrap_or(0);
    let widest = |column| {
        let cells = table.iter().filter_map(|row| row.get(column));
        cells.map(String::len).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(widest).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, &width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("  {cell:>width$}"),
        });
        cells.collect::<String>()
    };
    table.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Samples that are disturbed nevertheless, and those taken again.
fn noisy(disturbed: usize, repeated: usize) -> String {
    format!("{disturbed} ({repeated} again)")
}

fn number(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.2}"))
}

fn precise(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.4}"))
}

fn percent(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{:.0} %", value * 100.0))
}

fn amount(value: Option<f64>, unit: Unit) -> String {
    let Some(value) = value else {
        return "-".into();
    };
    match unit {
        Unit::Rate => format!("{:.1} MiB/s", value / f64::from(1 << 20)),
        Unit::Connections => format!("{value:.0} /s"),
        Unit::Seconds => format!("{:.2} us", value * 1e6),
        Unit::Memory => format!("{:.2} KiB", value / 1024.0),
        Unit::Part => format!("{value:.3}"),
    }
}

fn cpu(value: Option<f64>, unit: Unit) -> String {
    let Some(value) = value.filter(|&value| value > 0.0) else {
        return "-".into();
    };
    match unit {
        Unit::Rate => format!("{:.3} s/GiB", per_gib(value)),
        _ => format!("{:.1} us", value * 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_the_units_of_the_targets() {
        assert_eq!(amount(Some(1_048_576.0), Unit::Rate), "1.0 MiB/s");
        assert_eq!(amount(Some(12.5e-6), Unit::Seconds), "12.50 us");
        assert_eq!(amount(Some(2048.0), Unit::Memory), "2.00 KiB");
        assert_eq!(amount(None, Unit::Part), "-");
        assert_eq!(cpu(Some(1e-9), Unit::Rate), "1.074 s/GiB");
        assert_eq!(cpu(Some(3e-6), Unit::Connections), "3.0 us");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).into();
        let table = vec![row(["a", "long"]), row(["bcd", "e"])];
        assert_eq!(render(&table), "a    long\nbcd     e");
    }
}
