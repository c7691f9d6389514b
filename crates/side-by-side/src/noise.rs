//! What else the machine does while something is measured.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};

/// A tick of `/proc/stat`.
const TICK: Duration = Duration::from_millis(10);
/// More than this part of one core taken by others disturbs a sample. `/proc/stat` counts
/// in ticks, so less could not be told from rounding.
const TOLERATED: f64 = 0.15;

/// A disturbed measurement is taken this often at most; then the least disturbed counts.
const ATTEMPTS: usize = 3;

/// What was measured while little else happened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Undisturbed<T> {
    pub(crate) value: T,
    pub(crate) noise: Noise,
    /// How many disturbed measurements it took before.
    pub(crate) repeated: usize,
}

/// Measures until it is not disturbed, within reason.
pub(crate) fn undisturbed<T>(
    mut measure: impl FnMut() -> Result<(T, Noise)>,
) -> Result<Undisturbed<T>> {
    let (mut value, mut noise) = measure()?;
    let mut repeated = 0;
    while noise.disturbs() && repeated + 1 < ATTEMPTS {
        let again = measure()?;
        repeated += 1;
        if again.1.0 < noise.0 {
            (value, noise) = again;
        }
    }
    Ok(Undisturbed {
        value,
        noise,
        repeated,
    })
}

/// The time of one core, in parts of the sample's time, that others had.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Noise(f64);

impl Noise {
    /// Whether a sample with this noise is to be repeated.
    pub(crate) fn disturbs(self) -> bool {
        self.0 > TOLERATED
    }

    /// The greater of two.
    pub(crate) fn max(self, other: Self) -> Self {
        Self(self.0.max(other.0))
    }
}

/// The counters at the start of a sample.
#[derive(Debug)]
pub(crate) struct Watch {
    start: Instant,
    machine: Duration,
    ourselves: Duration,
}

impl Watch {
    pub(crate) fn start() -> Result<Self> {
        Ok(Self {
            start: Instant::now(),
            machine: machine()?,
            ourselves: ourselves(),
        })
    }

    /// What others had since the start, if `daemon` is what the daemon had.
    pub(crate) fn stop(self, daemon: Duration) -> Result<Noise> {
        let machine = machine()?.saturating_sub(self.machine);
        let measured = ourselves().saturating_sub(self.ourselves) + daemon;
        let others = machine.saturating_sub(measured);
        Ok(Noise(
            others.as_secs_f64() / self.start.elapsed().as_secs_f64(),
        ))
    }
}

fn machine() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let ticks = busy_ticks(&text).context("/proc/stat has no line of all cores")?;
    Ok(TICK * u32::try_from(ticks)?)
}

/// The ticks in which the cores ran something, or were stolen by the hypervisor.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields = line.split_whitespace().map(|field| field.parse().ok());
    let fields: Vec<u64> = fields.collect::<Option<_>>()?;
    let [user, nice, system, _idle, _iowait, irq, softirq, steal] = *fields.first_chunk()?;
    Some(user + nice + system + irq + softirq + steal)
}

fn ourselves() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_disturbed_measurement_counts() {
        let mut noises = [0.9, 0.5, 0.7, 0.0].into_iter().zip(1..);
        let mut measure = || {
            let (noise, value) = noises.next().expect("asked too often");
            Ok((value, Noise(noise)))
        };
        let measured = undisturbed(&mut measure).unwrap();
        assert_eq!((measured.value, measured.repeated), (2, 2));
        assert!(measured.noise.disturbs());
        assert_eq!(undisturbed(&mut measure).unwrap().value, 4);
    }

    #[test]
    fn idle_and_waiting_time_disturb_nobody() {
        let stat = "cpu  1 20 300 4000 50000 600000 7000000 80000000 9 9\ncpu0 1 1 1\n";
        assert_eq!(busy_ticks(stat), Some(87_600_321));
        assert_eq!(busy_ticks("cpu0 1 2 3"), None);
    }
}
