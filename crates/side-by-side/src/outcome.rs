//! What was measured, and what it comes to.

use std::time::Duration;

use crate::limits::Limit;
use crate::placement::Placement;
use crate::sample::Sample;
use crate::scenario::Scenario;
use crate::series::Series;
use crate::target::{Measured, Target, ratio};

/// All that was measured.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The limits, by the cores that they were measured on.
    pub(crate) limits: Vec<((Limit, Placement), Series<f64>)>,
    pub(crate) rows: Vec<Row>,
    pub(crate) rounds: usize,
    /// How long a sample took.
    pub(crate) sample: Duration,
}

/// One scenario.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) scenario: Scenario,
    pub(crate) ours: Series<Sample>,
    pub(crate) incumbent: Series<Sample>,
}

/// One target of one scenario.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line<'a> {
    pub(crate) row: &'a Row,
    pub(crate) target: Target,
    /// It is the target of the scenario's value.
    pub(crate) is_first: bool,
    pub(crate) ours: Measured,
    pub(crate) incumbent: Measured,
}

impl Outcome {
    /// The targets, in the order of the report.
    pub(crate) fn lines(&self) -> Vec<Line<'_>> {
        self.rows
            .iter()
            .flat_map(|row| self.lines_of(row))
            .collect()
    }

    fn lines_of<'a>(&'a self, row: &'a Row) -> impl Iterator<Item = Line<'a>> {
        let limit = self.limit(&row.scenario);
        let incumbent = row.incumbent.median(|sample| Some(sample.value));
        let measured = move |series: &Series<Sample>| Measured {
            value: series.median(|sample| Some(sample.value)),
            cpu: series.median(|sample| sample.cpu),
            fairness: series.median(|sample| sample.fairness),
            limit,
            incumbent,
        };
        let targets = row.scenario.targets.iter().enumerate();
        targets.map(move |(index, &target)| Line {
            row,
            target,
            is_first: index == 0,
            ours: measured(&row.ours),
            incumbent: measured(&row.incumbent),
        })
    }

    /// The sum of a scenario's limits; `None` of no limits.
    fn limit(&self, scenario: &Scenario) -> Option<f64> {
        let value = |&limit: &Limit| {
            let wanted = (limit, scenario.placement);
            let (_, series) = self.limits.iter().find(|(limit, _)| *limit == wanted)?;
            series.median(|&value| Some(value))
        };
        let sum = scenario.limits.iter().map(value);
        sum.reduce(|sum, next| Some(sum? + next?))?
    }
}

impl Line<'_> {
    /// Which part of the target is reached; more than all of it where the incumbent, to
    /// whom it is held, hangs.
    pub(crate) fn reached(&self) -> Option<f64> {
        let hangs = self.row.incumbent.hangs() && matches!(self.target, Target::Incumbent(_));
        match self.ours.value {
            Some(_) if hangs => Some(f64::INFINITY),
            _ => self.target.reached(&self.ours),
        }
    }

    /// Which part of it the incumbent reaches.
    pub(crate) fn incumbent_reaches(&self) -> Option<f64> {
        self.target.reached(&self.incumbent)
    }

    /// Ours in multiples of the limit.
    pub(crate) fn of_limit(&self) -> Option<f64> {
        ratio(self.ours.value, self.ours.limit)
    }

    /// Ours in multiples of what the incumbent does.
    pub(crate) fn of_incumbent(&self) -> Option<f64> {
        ratio(self.ours.value, self.incumbent.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Noise;
    use crate::placement::Placement::Apart;

    fn series<T: Copy>(value: Option<T>) -> Series<T> {
        let mut series = Series::default();
        series.add(|| Ok((value, Noise::default()))).unwrap();
        series
    }

    fn outcome(name: &str, ours: Option<f64>, incumbent: Option<f64>) -> Outcome {
        let mut all = Scenario::all().into_iter();
        let row = Row {
            scenario: all.find(|scenario| scenario.name == name).unwrap(),
            ours: series(ours.map(Sample::of)),
            incumbent: series(incumbent.map(Sample::of)),
        };
        Outcome {
            limits: vec![
                ((Limit::UnixPingPong, Apart), series(Some(2.0))),
                ((Limit::EventfdPingPong, Apart), series(Some(1.0))),
            ],
            rows: vec![row],
            rounds: 1,
            sample: Duration::ZERO,
        }
    }

    #[test]
    fn a_round_trip_is_held_against_the_sum_of_its_limits() {
        let outcome = outcome("round trip guest-host, apart", Some(6.0), Some(12.0));
        let line = outcome.lines()[0];
        assert_eq!(line.of_limit(), Some(2.0));
        assert_eq!(line.of_incumbent(), Some(0.5));
        assert_eq!(line.reached(), Some(0.75));
        assert_eq!(line.incumbent_reaches(), Some(0.375));
    }

    #[test]
    fn a_daemon_that_hangs_reaches_nothing_and_is_easily_surpassed() {
        let name = "guest to host, 64 B packets";
        let surpassed = outcome(name, Some(1.0), None);
        assert_eq!(surpassed.lines()[0].reached(), Some(f64::INFINITY));
        assert_eq!(surpassed.lines()[0].incumbent_reaches(), None);
        let ours = outcome(name, None, Some(1.0));
        assert_eq!(ours.lines()[0].reached(), None);
    }

    #[test]
    fn each_target_of_a_scenario_has_its_line() {
        let outcome = outcome("echo, 32 guests in pairs", Some(1.0), Some(1.0));
        let firsts: Vec<_> = outcome.lines().iter().map(|line| line.is_first).collect();
        assert_eq!(firsts, [true, false]);
    }
}
