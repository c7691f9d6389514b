//! What was measured, and the ratios it comes to.

use crate::limits::Limit;
use crate::sample::Sample;
use crate::scenario::Scenario;
use crate::series::Series;

/// All that was measured.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) limits: Vec<(Limit, Series<f64>)>,
    pub(crate) rows: Vec<Row>,
}

/// One scenario.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) scenario: Scenario,
    pub(crate) ours: Series<Sample>,
    pub(crate) incumbent: Series<Sample>,
}

/// The ratios of one scenario, each `None` where there is nothing to divide by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ratios {
    pub(crate) to_limit: Option<f64>,
    pub(crate) to_incumbent: Option<f64>,
    /// Which part of the target ours reaches, and the incumbent.
    pub(crate) reached: Option<f64>,
    pub(crate) incumbent_reaches: Option<f64>,
}

impl Outcome {
    pub(crate) fn ratios(&self, row: &Row) -> Ratios {
        let limit = self.limit(&row.scenario.limits);
        let target = row.scenario.target;
        let ours = row.ours.median(|sample| sample.value);
        let incumbent = row.incumbent.median(|sample| sample.value);
        let (to_limit, to_incumbent) = (ratio(ours, limit), ratio(ours, incumbent));
        Ratios {
            to_limit,
            to_incumbent,
            reached: target.reached(to_limit, to_incumbent),
            incumbent_reaches: target.reached(ratio(incumbent, limit), ratio(incumbent, incumbent)),
        }
    }

    /// The sum of these limits; `None` of no limits.
    fn limit(&self, limits: &[Limit]) -> Option<f64> {
        let value = |wanted: &Limit| {
            let (_, series) = self.limits.iter().find(|(limit, _)| limit == wanted)?;
            series.median(|&value| value)
        };
        let sum = limits.iter().map(value);
        sum.reduce(|sum, next| Some(sum? + next?))?
    }
}

fn ratio(value: Option<f64>, by: Option<f64>) -> Option<f64> {
    let by = by.filter(|&by| by > 0.0)?;
    value.map(|value| value / by)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Noise;

    fn series<T: Copy>(value: T) -> Series<T> {
        let mut series = Series::default();
        series.add(|| Ok((value, Noise::default()))).unwrap();
        series
    }

    fn sample(value: f64) -> Series<Sample> {
        series(Sample { value, cpu: 0.0 })
    }

    #[test]
    fn nothing_is_divided_by_a_daemon_that_hangs() {
        assert_eq!(ratio(Some(1.0), Some(0.0)), None);
        assert_eq!(ratio(Some(1.0), None), None);
        assert_eq!(ratio(Some(1.0), Some(4.0)), Some(0.25));
    }

    #[test]
    fn a_round_trip_is_held_against_the_sum_of_its_limits() {
        let outcome = Outcome {
            limits: vec![
                (Limit::UnixPingPong, series(2.0)),
                (Limit::EventfdPingPong, series(1.0)),
            ],
            rows: Vec::new(),
        };
        let mut all = Scenario::all().into_iter();
        let scenario = all.find(|scenario| scenario.limits.len() == 2).unwrap();
        let (ours, incumbent) = (sample(6.0), sample(12.0));
        let ratios = outcome.ratios(&Row {
            scenario,
            ours,
            incumbent,
        });
        assert_eq!(ratios.to_limit, Some(2.0));
        assert_eq!(ratios.to_incumbent, Some(0.5));
        assert_eq!(ratios.reached, Some(0.75));
        assert_eq!(ratios.incumbent_reaches, Some(0.375));
    }
}
