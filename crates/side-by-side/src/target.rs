//! What is to be reached.

use std::fmt;

/// A target of a scenario.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Target {
    /// At least this part of the limit.
    LimitAtLeast(f64),
    /// At most this multiple of the limit.
    LimitAtMost(f64),
    /// At least this multiple of what the incumbent does.
    Incumbent(f64),
    /// At least this value.
    AtLeast(f64),
    /// At most this value.
    AtMost(f64),
    /// At least this index of Jain's.
    FairAtLeast(f64),
    /// At most so many seconds of the daemon's CPU for each GiB.
    CpuAtMost(f64),
}

/// What a target is held against: medians, each `None` where it was not measured.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Measured {
    pub(crate) value: Option<f64>,
    /// Seconds per byte, connection or round trip.
    pub(crate) cpu: Option<f64>,
    pub(crate) fairness: Option<f64>,
    pub(crate) limit: Option<f64>,
    pub(crate) incumbent: Option<f64>,
}

impl Target {
    /// Which part of it is reached, one or more when it is met.
    pub(crate) fn reached(self, measured: &Measured) -> Option<f64> {
        let Measured {
            value,
            cpu,
            fairness,
            limit,
            incumbent,
        } = *measured;
        match self {
            Self::LimitAtLeast(least) => ratio(ratio(value, limit), Some(least)),
            Self::LimitAtMost(most) => ratio(Some(most), ratio(value, limit)),
            Self::Incumbent(least) => ratio(ratio(value, incumbent), Some(least)),
            Self::AtLeast(least) => ratio(value, Some(least)),
            // Nothing at all is best.
            Self::AtMost(most) => value.map(|value| most / value),
            Self::FairAtLeast(least) => ratio(fairness, Some(least)),
            Self::CpuAtMost(most) => ratio(Some(most), cpu.map(per_gib)),
        }
    }
}

/// Seconds per byte as seconds per GiB.
pub(crate) fn per_gib(seconds: f64) -> f64 {
    seconds * f64::from(1 << 30)
}

/// Nothing is divided by nothing, and nothing by zero.
pub(crate) fn ratio(value: Option<f64>, by: Option<f64>) -> Option<f64> {
    let by = by.filter(|&by| by > 0.0)?;
    value.map(|value| value / by)
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LimitAtLeast(ratio) => write!(f, ">= {ratio:.2} x limit"),
            Self::LimitAtMost(ratio) => write!(f, "<= {ratio:.2} x limit"),
            Self::Incumbent(ratio) => write!(f, ">= {ratio:.0} x incumbent"),
            Self::AtLeast(value) => write!(f, ">= {value:.2}"),
            Self::AtMost(value) if *value >= 1024.0 => write!(f, "<= {} KiB", value / 1024.0),
            Self::AtMost(value) => write!(f, "<= {value:.2}"),
            Self::FairAtLeast(index) => write!(f, ">= {index:.2}"),
            Self::CpuAtMost(seconds) => write!(f, "<= {seconds:.2} s/GiB"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_when_all_of_it_is_reached() {
        let measured = Measured {
            value: Some(30.0),
            cpu: Some(1.0 / f64::from(1 << 30)),
            fairness: Some(0.5),
            limit: Some(10.0),
            incumbent: Some(3.0),
        };
        let reached = |target: Target| target.reached(&measured);
        assert_eq!(reached(Target::LimitAtLeast(6.0)), Some(0.5));
        assert_eq!(reached(Target::LimitAtMost(1.5)), Some(0.5));
        assert_eq!(reached(Target::Incumbent(5.0)), Some(2.0));
        assert_eq!(reached(Target::AtLeast(10.0)), Some(3.0));
        assert_eq!(reached(Target::AtMost(15.0)), Some(0.5));
        assert_eq!(reached(Target::FairAtLeast(1.0)), Some(0.5));
        assert_eq!(reached(Target::CpuAtMost(0.5)), Some(0.5));
    }

    #[test]
    fn nothing_is_said_of_what_was_not_measured() {
        assert_eq!(Target::Incumbent(5.0).reached(&Measured::default()), None);
        assert_eq!(ratio(Some(1.0), Some(0.0)), None);
        assert_eq!(ratio(None, Some(1.0)), None);
    }
}
