//! The result as tables: cells of text, and their lines for the terminal.

use crate::limits::Limit;
use crate::outcome::{Outcome, Row};
use crate::scenario::Unit;

/// A table: the first line is its head.
pub(crate) type Table = Vec<Vec<String>>;

/// The limits of the machine.
pub(crate) fn limits(outcome: &Outcome) -> Table {
    let head = ["limit", "median", "spread", "noisy"].map(str::to_owned);
    let rows = outcome.limits.iter().map(|(limit, series)| {
        let unit = match limit {
            Limit::UnixPingPong | Limit::EventfdPingPong => Unit::Seconds,
            _ => Unit::Bytes,
        };
        vec![
            limit.name(),
            amount(series.median(|&value| value), unit),
            percent(series.spread(|&value| value)),
            noisy(series.disturbed, series.repeated),
        ]
    });
    std::iter::once(head.into()).chain(rows).collect()
}

/// Both daemons in all scenarios.
pub(crate) fn scenarios(outcome: &Outcome) -> Table {
    let head = [
        "scenario",
        "ours",
        "spread",
        "incumbent",
        "spread",
        "x limit",
        "target",
        "met",
        "x incumbent",
        "CPU ours",
        "CPU incumbent",
        "noisy",
    ];
    let rows = outcome.rows.iter().map(|row| cells(outcome, row));
    let head = head.map(str::to_owned).into();
    std::iter::once(head).chain(rows).collect()
}

fn cells(outcome: &Outcome, row: &Row) -> Vec<String> {
    let unit = row.scenario.unit();
    let ratios = outcome.ratios(row);
    let met = match ratios.reached {
        Some(1.0..) => "yes",
        Some(_) => "NO",
        None => "-",
    };
    let Row {
        scenario,
        ours,
        incumbent,
    } = row;
    vec![
        scenario.name.clone(),
        amount(ours.median(|sample| sample.value), unit),
        percent(ours.spread(|sample| sample.value)),
        amount(incumbent.median(|sample| sample.value), unit),
        percent(incumbent.spread(|sample| sample.value)),
        number(ratios.to_limit),
        scenario.target.to_string(),
        met.to_owned(),
        number(ratios.to_incumbent),
        cpu(ours.median(|sample| sample.cpu), unit),
        cpu(incumbent.median(|sample| sample.cpu), unit),
        noisy(
            ours.disturbed + incumbent.disturbed,
            ours.repeated + incumbent.repeated,
        ),
    ]
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

fn percent(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{:.0} %", value * 100.0))
}

fn amount(value: Option<f64>, unit: Unit) -> String {
    let Some(value) = value else {
        return "-".into();
    };
    match unit {
        Unit::Bytes => format!("{:.1} MiB/s", value / f64::from(1 << 20)),
        Unit::Connections => format!("{value:.0} /s"),
        Unit::Seconds => format!("{:.2} us", value * 1e6),
    }
}

fn cpu(value: Option<f64>, unit: Unit) -> String {
    let Some(value) = value.filter(|&value| value > 0.0) else {
        return "-".into();
    };
    match unit {
        Unit::Bytes => format!("{:.3} s/GiB", value * f64::from(1 << 30)),
        Unit::Connections | Unit::Seconds => format!("{:.1} us", value * 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_the_units_of_the_targets() {
        assert_eq!(amount(Some(1_048_576.0), Unit::Bytes), "1.0 MiB/s");
        assert_eq!(amount(Some(12.5e-6), Unit::Seconds), "12.50 us");
        assert_eq!(cpu(Some(1e-9), Unit::Bytes), "1.074 s/GiB");
        assert_eq!(cpu(Some(3e-6), Unit::Connections), "3.0 us");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).into();
        let table = vec![row(["a", "long"]), row(["bcd", "e"])];
        assert_eq!(render(&table), "a    long\nbcd     e");
    }
}
