//! A conversation: what both ends do on some connections, and how it went.

use std::path::Path;
use std::thread::{self, JoinHandle};

use anyhow::{Result, anyhow, bail};
use guest_agent::protocol::Endpoint;
use guest_agent::script::{Failure, Report, Step, run_all};

use crate::guest::{Guest, Ongoing};
use crate::hybrid::{self, Listener};
use crate::lab::HOST_CID;

/// Who makes the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Initiator {
    /// The guest connects to a socket of the host.
    Guest,
    /// The host connects to a port of the guest, with CONNECT.
    Host,
}

impl Initiator {
    pub(crate) const BOTH: [Self; 2] = [Self::Guest, Self::Host];

    /// As the names of cases have it.
    pub(crate) fn connects(self) -> &'static str {
        match self {
            Self::Guest => "guest connects",
            Self::Host => "host connects",
        }
    }
}

/// Where the bytes of a transfer go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Direction {
    /// From the guest to the host.
    ToHost,
    /// From the host to the guest.
    ToGuest,
}

impl Direction {
    pub(crate) const BOTH: [Self; 2] = [Self::ToHost, Self::ToGuest];

    /// As the names of cases have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ToHost => "guest to host",
            Self::ToGuest => "host to guest",
        }
    }

    /// What belongs to guest and host, given what belongs to the sender and the receiver.
    pub(crate) fn assign<T>(self, sender: T, receiver: T) -> (T, T) {
        match self {
            Self::ToHost => (sender, receiver),
            Self::ToGuest => (receiver, sender),
        }
    }
}

/// What both ends do on a number of connections.
#[derive(Clone, Debug)]
pub(crate) struct Talk {
    /// Who makes the connections.
    pub(crate) initiator: Initiator,
    /// How many there are, all at once.
    pub(crate) connections: usize,
    /// What the guest does on each.
    pub(crate) guest: Vec<Step>,
    /// What the host does on each.
    pub(crate) host: Vec<Step>,
}

impl Talk {
    /// Makes the connections to or from `port` of a guest whose hybrid vsock socket is
    /// `uds`, and has both ends begin with their scripts.
    pub(crate) fn begin(&self, guest: &mut Guest, uds: &Path, port: u32) -> Result<Begun> {
        let connections = self.connections;
        let (guest, connected) = match self.initiator {
            Initiator::Guest => {
                let listener = Listener::bind(uds, port)?;
                let endpoint = Endpoint::Connect {
                    cid: HOST_CID,
                    port,
                };
                let guest = guest.converse(endpoint, connections, self.guest.clone())?;
                let accepted = (0..connections).map(|_| listener.accept());
                (guest, accepted.collect::<Result<Vec<_>, _>>())
            }
            Initiator::Host => {
                let endpoint = Endpoint::Listen { port };
                let guest = guest.converse(endpoint, connections, self.guest.clone())?;
                let dialled = (0..connections).map(|_| hybrid::dial_open(uds, port));
                (guest, Ok(dialled.collect::<Result<Vec<_>>>()?))
            }
        };
        let script = self.host.clone();
        let host = thread::spawn(move || match connected {
            Ok(connected) => run_all(connected.into_iter().map(Ok).collect(), &script),
            Err(failure) => vec![Report::unconnected(failure)],
        });
        Ok(Begun { guest, host })
    }
}

/// A conversation that is going on.
#[derive(Debug)]
pub(crate) struct Begun {
    /// The guest's end.
    pub(crate) guest: Ongoing,
    /// The host's end.
    pub(crate) host: JoinHandle<Vec<Report>>,
}

impl Begun {
    /// Waits for both ends to come to the end of their scripts.
    pub(crate) fn finish(self) -> Result<Ends> {
        let host = self
            .host
            .join()
            .map_err(|_| anyhow!("the host's end has panicked"))?;
        Ok(Ends {
            guest: self.guest.reports()?,
            host,
        })
    }
}

/// How a conversation went at both ends.
#[derive(Debug)]
pub(crate) struct Ends {
    /// The guest's reports.
    pub(crate) guest: Vec<Report>,
    /// The host's reports.
    pub(crate) host: Vec<Report>,
}

impl Ends {
    /// An error that tells what failed at each end, if anything did.
    pub(crate) fn succeeded(&self) -> Result<()> {
        all_succeeded(&[("guest", &self.guest), ("host", &self.host)])
    }
}

/// An error that tells what failed at each of some ends, if anything did.
pub(crate) fn all_succeeded(ends: &[(&str, &[Report])]) -> Result<()> {
    let failures = ends.iter();
    let failures: Vec<_> = failures
        .filter_map(|(end, reports)| failure(end, reports))
        .collect();
    if failures.is_empty() {
        Ok(())
    } else {
        bail!(failures.join("; "))
    }
}

/// The first failure at one end, and how many there are.
fn failure(end: &str, reports: &[Report]) -> Option<String> {
    let mut failures = reports.iter().filter_map(|report| report.failure.as_ref());
    let Failure { why, .. } = failures.next()?;
    Some(match reports.len() {
        1 => format!("{end}: {why}"),
        all => format!("{end} ({} of {all}): {why}", 1 + failures.count()),
    })
}

/// An error that tells why a script ended early, if it did.
pub(crate) fn succeeded(report: &Report) -> Result<()> {
    match &report.failure {
        Some(failure) => bail!("{}", failure.why),
        None => Ok(()),
    }
}
