//! The scenarios, their limits and their targets.

use crate::driver::RX_BUFFER;
use crate::limits::Limit;
use crate::sample::Traffic;
use vsock_packet::HEADER_LEN;

/// What is to be reached.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// At least this part of the limit.
    AtLeast(f64),
    /// At most this multiple of the limit.
    AtMost(f64),
    /// At least this multiple of what the incumbent does.
    Incumbent(f64),
}

/// In what a scenario is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unit {
    /// Bytes per second.
    Bytes,
    /// Connections per second.
    Connections,
    /// Seconds a round trip.
    Seconds,
}

/// Something to measure.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: String,
    pub(crate) traffic: Traffic,
    /// Their sum is what the machine itself would need or do.
    pub(crate) limits: Vec<Limit>,
    pub(crate) target: Target,
}

/// The most payload that fits an RX buffer beside the header.
const FITTING: u32 = (RX_BUFFER - HEADER_LEN) as u32;

impl Scenario {
    fn new(name: &str, traffic: Traffic, limits: &[Limit], target: Target) -> Self {
        Self {
            name: name.to_owned(),
            traffic,
            limits: limits.to_vec(),
            target,
        }
    }

    /// All scenarios, in the order of the report.
    pub(crate) fn all() -> Vec<Self> {
        use Limit::{CopyInCache, EventfdPingPong, UnixPingPong, UnixStream};
        use Target::{AtLeast, AtMost, Incumbent};
        use Traffic::{
            Connect, ConnectSiblings, RoundTrip, RoundTripSiblings, Siblings, ToGuest, ToHost,
        };
        let unix = [UnixStream(64 << 10)];
        let small = [UnixStream(64)];
        let host = [EventfdPingPong, UnixPingPong];
        let siblings = [EventfdPingPong, EventfdPingPong];
        let all = [
            (
                "guest to host, 64 KiB packets",
                ToHost(64 << 10),
                &unix[..],
                AtLeast(0.85),
            ),
            (
                "guest to host, 4 KiB packets",
                ToHost(4 << 10),
                &unix,
                AtLeast(0.60),
            ),
            (
                "guest to host, 64 B packets",
                ToHost(64),
                &small,
                Incumbent(5.0),
            ),
            (
                "host to guest, 64 KiB writes",
                ToGuest(64 << 10),
                &unix,
                AtLeast(0.70),
            ),
            (
                "host to guest, 64 B writes",
                ToGuest(64),
                &small,
                AtLeast(0.8),
            ),
            (
                "siblings, 64 KiB packets",
                Siblings(64 << 10),
                &[CopyInCache],
                AtLeast(0.30),
            ),
            (
                "siblings, fitting packets",
                Siblings(FITTING),
                &[CopyInCache],
                AtLeast(0.20),
            ),
            ("round trip guest-host, 1 B", RoundTrip, &host, AtMost(1.5)),
            (
                "round trip siblings, 1 B",
                RoundTripSiblings,
                &siblings,
                AtMost(1.6),
            ),
            ("connect and close, one", Connect(1), &[], Incumbent(3.0)),
            (
                "connect and close, sixteen",
                Connect(16),
                &[],
                Incumbent(3.0),
            ),
            (
                "connect siblings, one",
                ConnectSiblings(1),
                &[],
                Incumbent(3.0),
            ),
            (
                "connect siblings, sixteen",
                ConnectSiblings(16),
                &[],
                Incumbent(5.0),
            ),
        ];
        let scenario = |(name, traffic, limits, target)| Self::new(name, traffic, limits, target);
        all.into_iter().map(scenario).collect()
    }

    pub(crate) fn unit(&self) -> Unit {
        match self.traffic {
            Traffic::RoundTrip | Traffic::RoundTripSiblings => Unit::Seconds,
            Traffic::Connect(_) | Traffic::ConnectSiblings(_) => Unit::Connections,
            Traffic::ToHost(_) | Traffic::ToGuest(_) | Traffic::Siblings(_) => Unit::Bytes,
        }
    }
}

impl Target {
    /// Which part of it is reached, one or more when it is met, given the ratios to the
    /// limit and to the incumbent.
    pub(crate) fn reached(self, to_limit: Option<f64>, to_incumbent: Option<f64>) -> Option<f64> {
        match self {
            Self::AtLeast(least) => to_limit.map(|ratio| ratio / least),
            Self::AtMost(most) => to_limit
                .filter(|&ratio| ratio > 0.0)
                .map(|ratio| most / ratio),
            Self::Incumbent(least) => to_incumbent.map(|ratio| ratio / least),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(ratio) => write!(f, ">= {ratio:.2} x limit"),
            Self::AtMost(ratio) => write!(f, "<= {ratio:.2} x limit"),
            Self::Incumbent(ratio) => write!(f, ">= {ratio:.0} x incumbent"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_when_all_of_it_is_reached() {
        assert_eq!(Target::AtLeast(0.5).reached(Some(0.25), None), Some(0.5));
        assert_eq!(Target::AtMost(1.5).reached(Some(3.0), None), Some(0.5));
        assert_eq!(Target::Incumbent(5.0).reached(None, Some(10.0)), Some(2.0));
    }

    #[test]
    fn nothing_is_said_of_a_target_without_its_ratio() {
        assert_eq!(Target::Incumbent(5.0).reached(Some(9.0), None), None);
        assert_eq!(Target::AtMost(1.5).reached(Some(0.0), None), None);
    }
}
