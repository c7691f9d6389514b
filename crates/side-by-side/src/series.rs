//! What was measured of one thing, a round each.

use anyhow::Result;

use crate::noise::{Noise, undisturbed};
use crate::statistics::{median, spread};

/// Samples of one thing.
#[derive(Debug)]
pub(crate) struct Series<T> {
    samples: Vec<T>,
    /// How many disturbed measurements were taken again.
    pub(crate) repeated: usize,
    /// How many samples are disturbed nevertheless.
    pub(crate) disturbed: usize,
}

impl<T> Default for Series<T> {
    fn default() -> Self {
        Self {
            samples: Vec::new(),
            repeated: 0,
            disturbed: 0,
        }
    }
}

impl<T> Series<T> {
    /// Takes the sample of one round.
    pub(crate) fn add(&mut self, measure: impl FnMut() -> Result<(T, Noise)>) -> Result<()> {
        let measured = undisturbed(measure)?;
        self.samples.push(measured.value);
        self.repeated += measured.repeated;
        self.disturbed += usize::from(measured.noise.disturbs());
        Ok(())
    }

    /// The median of what `number` takes of each sample.
    pub(crate) fn median(&self, number: impl Fn(&T) -> f64) -> Option<f64> {
        median(&self.numbers(number))
    }

    /// Its spread.
    pub(crate) fn spread(&self, number: impl Fn(&T) -> f64) -> Option<f64> {
        spread(&self.numbers(number))
    }

    fn numbers(&self, number: impl Fn(&T) -> f64) -> Vec<f64> {
        self.samples.iter().map(number).collect()
    }
}
