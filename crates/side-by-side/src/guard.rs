//! A coarse guard: a halving of speed is noticed, noise is not.
//!
//! Speeds are taken as parts of the machine's own, which others slow down alike, on one core,
//! where no idle core has to be roused. Of several attempts the best counts, on either side.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::daemon::Program;
use crate::placement::{self, Placement};
use crate::sample;
use crate::scenario::{Scenario, Unit};

/// A scenario, and the least speed in parts of its limit: about half of what is usual.
const BOUNDS: [(&str, f64); 8] = [
    ("guest to host, 64 KiB packets", 0.4),
    ("guest to host, 64 B packets", 2.0),
    ("host to guest, 64 KiB writes", 0.28),
    ("siblings, 64 KiB packets", 0.05),
    ("siblings, packets that fit one buffer", 0.03),
    ("round trip guest-host, one core", 0.3),
    ("round trip siblings, one core", 0.18),
    ("connect and close, guest to host, sixteen", 0.3),
];

const PLACEMENT: Placement = Placement::Together;
/// How long limits and scenarios are watched, each time.
const SAMPLE: Duration = Duration::from_millis(150);
/// Attempts of which the best counts.
const ATTEMPTS: usize = 3;
/// As many are made before a scenario has failed.
const MOST_ATTEMPTS: usize = 12;

/// Fails if a scenario is slower than its bound.
pub(crate) fn check(ours: &Path) -> Result<()> {
    placement::look_around()?;
    let mut slow = Vec::new();
    for (name, least) in BOUNDS {
        let mut all = Scenario::all().into_iter();
        let scenario = all.find(|scenario| scenario.name == name);
        let scenario = scenario.with_context(|| format!("there is no scenario {name:?}"))?;
        let speed = speed(ours, &scenario, least)?;
        println!("{name:45} {speed:6.3} x limit, at least {least}");
        if speed < least {
            slow.push(name);
        }
    }
    if !slow.is_empty() {
        bail!("slower than the guard in crates/side-by-side/src/guard.rs allows: {slow:?}");
    }
    Ok(())
}

/// The best of some attempts, and of more while that is not enough.
fn speed(ours: &Path, scenario: &Scenario, enough: f64) -> Result<f64> {
    let program = Program {
        path: ours,
        placement: PLACEMENT,
    };
    let (mut limit, mut value) = (0.0_f64, 0.0_f64);
    for attempt in 1..=MOST_ATTEMPTS {
        limit = limit.max(limit_speed(scenario)?);
        let (sample, _) = sample::take(program, scenario.subject, SAMPLE)?;
        let seen = sample.map_or(0.0, |sample| sample.value);
        value = value.max(match scenario.unit() {
            Unit::Seconds if seen > 0.0 => 1.0 / seen,
            _ => seen,
        });
        if attempt >= ATTEMPTS && value >= enough * limit {
            break;
        }
    }
    Ok(value / limit)
}

/// The limits' bytes, connections or round trips per second.
fn limit_speed(scenario: &Scenario) -> Result<f64> {
    let mut sum = 0.0;
    for limit in &scenario.limits {
        sum += limit.measure(PLACEMENT, SAMPLE)?;
    }
    Ok(match scenario.unit() {
        Unit::Seconds => 1.0 / sum,
        _ => sum,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_scenarios_that_there_are() {
        for (name, _) in BOUNDS {
            let mut all = Scenario::all().into_iter();
            let found = all.find(|scenario| scenario.name == name);
            let has_limit = found.is_some_and(|scenario| !scenario.limits.is_empty());
            assert!(has_limit, "{name}");
        }
    }
}
