//! The scenarios, their limits and their targets.

use crate::driver::FITTING;
use crate::idle::Idle;
use crate::limits::Limit::{
    self, CopyInCache, EventfdPingPong, HostRelay, SiblingRelay, UnixConnect, UnixPingPong,
    UnixStream, UnixStreamBack,
};
use crate::lookup::Lookup;
use crate::placement::Placement::{self, Apart, Together};
use crate::sample::Subject::{self, Beside, Memory};
use crate::stall::Stalled;
use crate::target::Target::{
    self, AtLeast, AtMost, CpuAtMost, FairAtLeast, Incumbent, LimitAtLeast, LimitAtMost,
};
use crate::traffic::{Stream, Traffic};

/// In what a scenario is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unit {
    /// Bytes per second.
    Rate,
    /// Connections per second.
    Connections,
    /// Seconds a round trip.
    Seconds,
    /// Bytes of memory.
    Memory,
    /// A part of something.
    Part,
}

/// Something to measure.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: String,
    pub(crate) subject: Subject,
    pub(crate) placement: Placement,
    /// Their sum is what the machine itself would need or do.
    pub(crate) limits: Vec<Limit>,
    /// What it takes with a device that does nothing, to be known beside it.
    pub(crate) floor: Option<Limit>,
    /// The first is the value's.
    pub(crate) targets: Vec<Target>,
}

/// Bytes of an echo, over many connections or between guests: what fits an RX buffer.
const ECHO: u32 = FITTING;
const KIB: usize = 1 << 10;

impl Scenario {
    fn new(name: &str, subject: Subject, limits: &[Limit], targets: &[Target]) -> Self {
        Self {
            name: name.to_owned(),
            subject,
            placement: Apart,
            limits: limits.to_vec(),
            floor: None,
            targets: targets.to_vec(),
        }
    }

    /// All scenarios, in the order of the report.
    pub(crate) fn all() -> Vec<Self> {
        [
            streams(),
            round_trips(Apart),
            round_trips(Together),
            connections(),
            echoes(),
            beside(),
            memory(),
            lookups(),
        ]
        .concat()
    }

    pub(crate) fn unit(&self) -> Unit {
        match self.subject {
            Subject::Traffic(traffic) => match traffic {
                Traffic::RoundTrip | Traffic::RoundTripBeside(_) | Traffic::RoundTripSiblings => {
                    Unit::Seconds
                }
                Traffic::Connect(_) | Traffic::ConnectSiblings(_) => Unit::Connections,
                _ => Unit::Rate,
            },
            Beside(_) | Subject::Lookup(_) => Unit::Part,
            Memory(_) => Unit::Memory,
        }
    }
}

fn streams() -> Vec<Scenario> {
    use Traffic::{Siblings, ToGuest, ToHost};
    let (unix, small) = (&[UnixStream(64 * KIB)], &[UnixStream(64)]);
    let (unix_back, small_back) = (&[UnixStreamBack(64 * KIB)], &[UnixStreamBack(64)]);
    let stream = |name, traffic, limits: &[Limit], targets: &[Target]| {
        Scenario::new(name, Subject::Traffic(traffic), limits, targets)
    };
    vec![
        stream(
            "guest to host, 64 KiB packets",
            ToHost(64 << 10),
            unix,
            &[LimitAtLeast(0.85)],
        ),
        stream(
            "guest to host, 4 KiB packets",
            ToHost(4 << 10),
            unix,
            &[LimitAtLeast(0.60)],
        ),
        stream(
            "guest to host, 64 B packets",
            ToHost(64),
            small,
            &[Incumbent(5.0)],
        ),
        stream(
            "host to guest, 64 KiB writes",
            ToGuest(64 * KIB),
            unix_back,
            &[LimitAtLeast(0.70)],
        ),
        stream(
            "host to guest, 64 B writes",
            ToGuest(64),
            small_back,
            &[LimitAtLeast(0.80)],
        ),
        stream(
            "siblings, 64 KiB packets",
            Siblings(64 << 10),
            &[CopyInCache],
            &[LimitAtLeast(0.30), CpuAtMost(0.15)],
        ),
        stream(
            "siblings, packets that fit one buffer",
            Siblings(FITTING),
            &[CopyInCache],
            &[LimitAtLeast(0.20)],
        ),
    ]
}

fn round_trips(placement: Placement) -> Vec<Scenario> {
    let host = [EventfdPingPong, UnixPingPong];
    let siblings = [EventfdPingPong, EventfdPingPong];
    let all = [
        ("guest-host", Traffic::RoundTrip, host, 1.5),
        ("siblings", Traffic::RoundTripSiblings, siblings, 1.6),
        (
            "beside a stream to the host",
            Traffic::RoundTripBeside(Stream::ToHost),
            host,
            2.0,
        ),
        (
            "beside a stream to the guest",
            Traffic::RoundTripBeside(Stream::ToGuest),
            host,
            2.0,
        ),
    ];
    let scenario = |(what, traffic, limits, most): (&str, _, [Limit; 2], _)| Scenario {
        placement,
        floor: Some(match traffic {
            Traffic::RoundTripSiblings => SiblingRelay,
            _ => HostRelay,
        }),
        ..Scenario::new(
            &format!("round trip {what}, {}", placement.name()),
            Subject::Traffic(traffic),
            &limits,
            &[LimitAtMost(most)],
        )
    };
    all.into_iter().map(scenario).collect()
}

fn connections() -> Vec<Scenario> {
    use Traffic::{Connect, ConnectSiblings};
    let all = [
        ("guest to host, one", Connect(1), &[UnixConnect][..], 3.0),
        ("guest to host, sixteen", Connect(16), &[UnixConnect], 3.0),
        ("siblings, one", ConnectSiblings(1), &[], 3.0),
        ("siblings, sixteen", ConnectSiblings(16), &[], 5.0),
    ];
    let scenario = |(what, traffic, limits, least)| {
        let name = format!("connect and close, {what}");
        Scenario::new(
            &name,
            Subject::Traffic(traffic),
            limits,
            &[Incumbent(least)],
        )
    };
    all.into_iter().map(scenario).collect()
}

fn echoes() -> Vec<Scenario> {
    let connections = Traffic::Echo {
        connections: 1000,
        len: ECHO,
    };
    let pairs = Traffic::EchoPairs {
        pairs: 16,
        len: ECHO,
    };
    let targets = [Incumbent(8.0), FairAtLeast(0.99)];
    let scenario = |name, traffic| Scenario::new(name, Subject::Traffic(traffic), &[], &targets);
    vec![
        scenario("echo over 1,000 connections", connections),
        scenario("echo, 32 guests in pairs", pairs),
    ]
}

fn beside() -> Vec<Scenario> {
    let all = [
        ("sibling", Stalled::Sibling),
        ("host reader", Stalled::HostReader),
        ("guest", Stalled::Guest),
    ];
    let scenario = |(who, stalled)| {
        let name = format!("throughput beside a stalled {who}");
        Scenario::new(&name, Beside(stalled), &[], &[AtLeast(0.95)])
    };
    all.into_iter().map(scenario).collect()
}

fn memory() -> Vec<Scenario> {
    let all = [
        ("connection", Idle::Connections(1000), 2 * KIB),
        ("guest", Idle::Guests(32), 256 * KIB),
    ];
    let scenario = |(what, idle, most)| {
        let name = format!("memory per idle {what}");
        Scenario::new(&name, Memory(idle), &[], &[AtMost(most as f64)])
    };
    all.into_iter().map(scenario).collect()
}

fn lookups() -> Vec<Scenario> {
    let all = [
        ("connections of a pass", Lookup::Connections),
        ("connection by itself", Lookup::Connection),
        ("flows of a pass", Lookup::Flows),
        ("flow by itself", Lookup::Flow),
    ];
    let scenario = |(what, lookup)| {
        let name = format!("{what}, among 100,000 or 10");
        Scenario::new(&name, Subject::Lookup(lookup), &[], &[AtMost(1.5)])
    };
    all.into_iter().map(scenario).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scenario_has_a_name_of_its_own_and_a_target() {
        let all = Scenario::all();
        for (index, scenario) in all.iter().enumerate() {
            assert!(!scenario.targets.is_empty(), "{}", scenario.name);
            let same = |other: &Scenario| other.name == scenario.name;
            assert_eq!(all.iter().position(same), Some(index));
        }
    }
}
