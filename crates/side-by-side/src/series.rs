//! The samples of one thing, and how they are taken.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::sample::{self, Sample, Traffic};
use crate::statistics::{median, spread};

/// A disturbed sample is taken this often at most; then the least disturbed one counts.
const ATTEMPTS: usize = 3;

/// Samples of one daemon in one scenario, a round each.
#[derive(Default, Debug)]
pub(crate) struct Series {
    samples: Vec<Sample>,
    /// How many samples were disturbed and taken again.
    pub(crate) repeated: usize,
}

impl Series {
    /// Takes the sample of one round.
    pub(crate) fn add(&mut self, program: &Path, traffic: Traffic, time: Duration) -> Result<()> {
        let mut best = sample::take(program, traffic, time)?;
        for _ in 1..ATTEMPTS {
            if !best.noise.disturbs() {
                break;
            }
            self.repeated += 1;
            let again = sample::take(program, traffic, time)?;
            if again.noise.cores() < best.noise.cores() {
                best = again;
            }
        }
        self.samples.push(best);
        Ok(())
    }

    /// How many of the samples that count are disturbed nevertheless.
    pub(crate) fn disturbed(&self) -> usize {
        let disturbed = |sample: &&Sample| sample.noise.disturbs();
        self.samples.iter().filter(disturbed).count()
    }

    pub(crate) fn median(&self) -> Option<f64> {
        median(&self.values())
    }

    pub(crate) fn spread(&self) -> Option<f64> {
        spread(&self.values())
    }

    /// Median of daemon CPU: seconds per byte, connection or round trip.
    pub(crate) fn cpu(&self) -> Option<f64> {
        let cpu: Vec<_> = self.samples.iter().map(|sample| sample.cpu).collect();
        median(&cpu)
    }

    fn values(&self) -> Vec<f64> {
        self.samples.iter().map(|sample| sample.value).collect()
    }
}
