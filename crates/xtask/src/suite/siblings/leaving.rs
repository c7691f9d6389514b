//! Siblings that are stopped or killed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_agent::script::{Failure, Receive, Report, Send, Step, milliseconds};
use rustix::io::Errno;

use super::bulk::{Transfer, Way};
use super::groups::reaches_the_host;
use super::{Case, LEFT, MIDDLE};
use crate::siblings::{Begun, Dialogue, Siblings};

/// How soon a guest knows that its sibling is gone.
pub(super) const NEWS_DEADLINE: Duration = Duration::from_secs(1);
/// How a sender learns it.
const BROKEN_PIPE: i32 = Errno::PIPE.raw_os_error();
/// More than a transfer passes before it is interrupted.
const ENDLESS: u64 = 100_000_000_000;
/// What shows that an endless transfer has begun.
const BEGINNING: u64 = 1 << 20;

pub(super) fn cases() -> Vec<Case<Siblings>> {
    vec![
        Case::new("a stopped sibling's transfers go on with cont", stopped),
        Case::new(
            "a sibling killed in mid-transfer: known at once; the next works",
            killed,
        ),
    ]
}

/// While a guest is stopped, what its sibling sends waits, and all of it arrives when it
/// goes on.
fn stopped(siblings: &mut Siblings) -> Result<String> {
    const BYTES: u64 = 50_000_000;
    let exchange = |sends, receives| {
        vec![Step::Exchange(
            Send::new(BYTES, sends),
            Receive::new(BYTES, receives),
        )]
    };
    let transfer = siblings.begin(&Dialogue {
        from: MIDDLE,
        to: LEFT,
        connections: 1,
        dialler: exchange(1, 2),
        listener: exchange(2, 1),
    })?;
    // One that is stopped takes no new connection.
    transfer_both_ways(siblings, MIDDLE, LEFT).context("while the transfers begin")?;
    siblings.guest(LEFT)?.qemu.execute("stop")?;
    reaches_the_host(siblings, MIDDLE).context("while its sibling is stopped")?;
    siblings.guest(LEFT)?.qemu.execute("cont")?;
    transfer.succeeded()?;
    Ok(String::new())
}

/// With a transfer under way in each direction.
fn killed(siblings: &mut Siblings) -> Result<String> {
    let endless = Endless::begin(siblings, MIDDLE, LEFT)?;
    transfer_both_ways(siblings, MIDDLE, LEFT).context("while the transfers are under way")?;
    let start = Instant::now();
    siblings.kill(LEFT)?;
    endless.dialler_is_interrupted()?;
    let took = start.elapsed();
    ensure!(
        took < NEWS_DEADLINE,
        "{took:?} passed until the sibling knew of it"
    );
    siblings.boot(&[LEFT]).context("boot the next sibling")?;
    transfer_both_ways(siblings, MIDDLE, LEFT).context("with the next sibling")?;
    Ok(format!("{:.0} ms", milliseconds(took)))
}

/// A transfer under way in each direction that does not end by itself.
pub(super) struct Endless {
    sending: Begun,
    receiving: Begun,
}

impl Endless {
    /// One guest connects to the other, twice.
    pub(super) fn begin(siblings: &mut Siblings, from: u32, to: u32) -> Result<Self> {
        Ok(Self {
            sending: begin_endless(siblings, from, to, Way::Forth)?,
            receiving: begin_endless(siblings, from, to, Way::Back)?,
        })
    }

    /// Waits until the guest that has connected knows that its peer is gone.
    pub(super) fn dialler_is_interrupted(self) -> Result<()> {
        let sender = self.sending.dialler.reports()?;
        interrupted(&sender[0], |failure| failure.errno == Some(BROKEN_PIPE))
            .context("the sender")?;
        let receiver = self.receiving.dialler.reports()?;
        // Linux tells a reader of an RST as of an end.
        interrupted(&receiver[0], |failure| failure.errno.is_none()).context("the receiver")
    }
}

fn begin_endless(siblings: &mut Siblings, from: u32, to: u32, way: Way) -> Result<Begun> {
    let sends = [BEGINNING, ENDLESS].map(|bytes| Step::Send(Send::new(bytes, 1)));
    let receives = [BEGINNING, ENDLESS].map(|bytes| Step::Receive(Receive::new(bytes, 1)));
    let (dialler, listener) = match way {
        Way::Forth => (sends.into(), receives.into()),
        _ => (receives.into(), sends.into()),
    };
    siblings.begin(&Dialogue {
        from,
        to,
        connections: 1,
        dialler,
        listener,
    })
}

/// The transfer had begun, and has ended as it does when the peer is gone.
fn interrupted(report: &Report, by_end: fn(&Failure) -> bool) -> Result<()> {
    let Some(failure) = &report.failure else {
        bail!("it has noticed nothing")
    };
    ensure!(by_end(failure), "it failed otherwise: {}", failure.why);
    ensure!(!report.done.is_empty(), "it failed early: {}", failure.why);
    Ok(())
}

/// A few megabytes each way, between two guests.
pub(super) fn transfer_both_ways(siblings: &mut Siblings, from: u32, to: u32) -> Result<()> {
    let transfer = Transfer {
        from,
        to,
        way: Way::Both,
        bytes: 4 << 20,
        write_size: 64 << 10,
    };
    transfer.run(siblings).map(|_| ())
}
