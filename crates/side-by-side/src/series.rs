//! What was measured of one thing, a round each.

use anyhow::Result;

use crate::noise::{Noise, undisturbed};
use crate::statistics::{median, spread};

/// Samples of one thing.
#[derive(Debug)]
pub(crate) struct Series<T> {
    samples: Vec<T>,
    /// How often there was none, since the daemon hung.
    pub(crate) hung: usize,
    /// How many disturbed measurements were taken again.
    pub(crate) repeated: usize,
    /// How many samples are disturbed nevertheless.
    pub(crate) disturbed: usize,
}

impl<T> Default for Series<T> {
    fn default() -> Self {
        Self {
            samples: Vec::new(),
            hung: 0,
            repeated: 0,
            disturbed: 0,
        }
    }
}

impl<T> Series<T> {
    /// Takes the sample of one round.
    pub(crate) fn add(
        &mut self,
        measure: impl FnMut() -> Result<(Option<T>, Noise)>,
    ) -> Result<()> {
        let measured = undisturbed(measure)?;
        self.hung += usize::from(measured.value.is_none());
        self.samples.extend(measured.value);
        self.repeated += measured.repeated;
        self.disturbed += usize::from(measured.noise.disturbs());
        Ok(())
    }

    /// Whether it hung more often than not: then what it did else says nothing.
    pub(crate) fn hangs(&self) -> bool {
        self.hung > self.samples.len()
    }

    /// The median of what `number` takes of each sample.
    pub(crate) fn median(&self, number: impl Fn(&T) -> Option<f64>) -> Option<f64> {
        median(&self.numbers(number))
    }

    /// Its spread.
    pub(crate) fn spread(&self, number: impl Fn(&T) -> Option<f64>) -> Option<f64> {
        spread(&self.numbers(number))
    }

    fn numbers(&self, number: impl Fn(&T) -> Option<f64>) -> Vec<f64> {
        if self.hangs() {
            return Vec::new();
        }
        self.samples.iter().filter_map(number).collect()
    }
}
