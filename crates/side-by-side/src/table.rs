//! The result as a table for the terminal.

use crate::Outcome;
use crate::limits::Limit;
use crate::scenario::{Scenario, Unit};
use crate::series::Series;
use crate::statistics::{median, spread};

/// The table of limits, then the table of scenarios.
pub(crate) fn render(outcome: &Outcome) -> String {
    let mut lines = vec![format!("{:<34} {:>12} {:>8}", "limit", "median", "spread")];
    for (limit, values) in &outcome.limits {
        let unit = match limit {
            Limit::UnixPingPong | Limit::EventfdPingPong => Unit::Seconds,
            _ => Unit::Bytes,
        };
        let (name, median) = (limit.name(), amount(median(values), unit));
        lines.push(format!(
            "{name:<34} {median:>12} {:>8}",
            percent(spread(values))
        ));
    }
    lines.push(format!(
        "\n{:<30} {:>12} {:>7} {:>12} {:>7} {:>8} {:>16} {:>4} {:>9} {:>12} {:>12} {:>9}",
        "scenario",
        "ours",
        "spread",
        "incumbent",
        "spread",
        "x limit",
        "target",
        "met",
        "x incumb.",
        "CPU ours",
        "CPU incumb.",
        "noisy"
    ));
    lines.extend(outcome.results.iter().map(|result| row(outcome, result)));
    lines.join("\n")
}

/// A scenario and the series of both daemons.
pub(crate) type Row = (Scenario, [Series; 2]);

fn row(outcome: &Outcome, (scenario, [ours, incumbent]): &Row) -> String {
    let unit = scenario.unit();
    let to_limit = ratio(ours.median(), outcome.limit(&scenario.limits));
    let to_incumbent = ratio(ours.median(), incumbent.median());
    let met = match scenario.target.is_met(to_limit, to_incumbent) {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "-",
    };
    let noisy = format!(
        "{}+{}r",
        ours.disturbed() + incumbent.disturbed(),
        ours.repeated + incumbent.repeated
    );
    format!(
        "{:<30} {:>12} {:>7} {:>12} {:>7} {:>8} {:>16} {:>4} {:>9} {:>12} {:>12} {:>9}",
        scenario.name,
        amount(ours.median(), unit),
        percent(ours.spread()),
        amount(incumbent.median(), unit),
        percent(incumbent.spread()),
        number(to_limit),
        scenario.target.to_string(),
        met,
        number(to_incumbent),
        cpu(ours.cpu(), unit),
        cpu(incumbent.cpu(), unit),
        noisy,
    )
}

/// `None` where there is nothing to divide by.
pub(crate) fn ratio(value: Option<f64>, by: Option<f64>) -> Option<f64> {
    let by = by.filter(|&by| by > 0.0)?;
    value.map(|value| value / by)
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
    fn nothing_is_divided_by_a_daemon_that_hangs() {
        assert_eq!(ratio(Some(1.0), Some(0.0)), None);
        assert_eq!(ratio(Some(1.0), None), None);
        assert_eq!(ratio(Some(1.0), Some(4.0)), Some(0.25));
    }

    #[test]
    fn amounts_have_the_units_of_the_targets() {
        assert_eq!(amount(Some(1_048_576.0), Unit::Bytes), "1.0 MiB/s");
        assert_eq!(amount(Some(12.5e-6), Unit::Seconds), "12.50 us");
        assert_eq!(cpu(Some(1e-9), Unit::Bytes), "1.074 s/GiB");
        assert_eq!(cpu(Some(3e-6), Unit::Connections), "3.0 us");
    }
}
