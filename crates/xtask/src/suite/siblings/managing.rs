//! VMs that an operator adds, changes and removes while the others run.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest_agent::protocol::Endpoint;
use guest_agent::script::{Step, milliseconds};

use super::groups::reaches_the_host;
use super::leaving::{Endless, NEWS_DEADLINE, transfer_both_ways};
use super::{Case, LEFT, MIDDLE, NEWCOMER};
use crate::ctl::Ctl;
use crate::siblings::Siblings;
use crate::suite::refusals::refused_at_once;
use crate::wait;

/// The group that the newcomer shares with the others.
const SHARED: &str = "left";
/// A group that nobody else is in.
const APART: &str = "apart";
/// How long the client may take to have a busy VM removed: a second for the daemon, and as
/// much for starting the client beside busy guests.
const REMOVAL_DEADLINE: Duration = Duration::from_secs(2);

pub(super) fn cases() -> Vec<Case<Siblings>> {
    vec![
        Case::new("a VM that is added boots and talks to a sibling", added),
        Case::new(
            "other groups reset a connection and refuse the next",
            regrouped,
        ),
        Case::new("a VM removed under load leaves, and comes back", removed),
    ]
}

fn added(siblings: &mut Siblings) -> Result<String> {
    let vm = siblings.newcomer(NEWCOMER, SHARED);
    let start = Instant::now();
    siblings.add(vm)?;
    let took = milliseconds(start.elapsed());
    let list = siblings.ctl.run(&["list".into()])?;
    let line = list.lines().find(|line| line.starts_with('7'));
    let line = line.with_context(|| format!("it is not listed:\n{list}"))?;
    ensure!(line.contains("waiting"), "it should be waiting: {line}");
    siblings.boot(&[NEWCOMER])?;
    talks(siblings)?;
    Ok(format!("added in {took:.0} ms"))
}

/// The newcomer and its sibling, both ways; and its host.
fn talks(siblings: &mut Siblings) -> Result<()> {
    transfer_both_ways(siblings, NEWCOMER, LEFT).context("the newcomer to its sibling")?;
    transfer_both_ways(siblings, LEFT, NEWCOMER).context("its sibling to the newcomer")?;
    reaches_the_host(siblings, NEWCOMER)
}

fn is_there(siblings: &mut Siblings) -> Result<()> {
    if !siblings.has(NEWCOMER) {
        let vm = siblings.newcomer(NEWCOMER, SHARED);
        siblings.add(vm)?;
    }
    if !siblings.is_up(NEWCOMER) {
        siblings.boot(&[NEWCOMER])?;
    }
    Ok(())
}

fn regroup(siblings: &Siblings, groups: &str) -> Result<()> {
    siblings.ctl.run(&Ctl::regrouping(NEWCOMER, groups))?;
    Ok(())
}

fn regrouped(siblings: &mut Siblings) -> Result<String> {
    is_there(siblings)?;
    let endless = Endless::begin(siblings, LEFT, NEWCOMER)?;
    transfer_both_ways(siblings, LEFT, NEWCOMER).context("while the transfers are under way")?;
    let start = Instant::now();
    regroup(siblings, APART)?;
    endless.dialler_is_interrupted()?;
    let took = start.elapsed();
    ensure!(took < NEWS_DEADLINE, "the reset took {took:?}");

    let port = siblings.port();
    let endpoint = Endpoint::Listen { port };
    let listener = siblings
        .guest(NEWCOMER)?
        .converse(endpoint, 1, vec![Step::Echo])?;
    refused_at_once(siblings.guest(LEFT)?, NEWCOMER, port)?;
    transfer_both_ways(siblings, MIDDLE, LEFT).context("those whose groups stay")?;

    regroup(siblings, SHARED)?;
    let endpoint = Endpoint::Connect {
        cid: NEWCOMER,
        port,
    };
    let dialler = siblings.guest(LEFT)?.converse(endpoint, 1, Vec::new())?;
    dialler.reports()?;
    listener.reports()?;
    talks(siblings)?;
    Ok(format!("{:.0} ms", milliseconds(took)))
}

fn removed(siblings: &mut Siblings) -> Result<String> {
    is_there(siblings)?;
    let endless = Endless::begin(siblings, LEFT, NEWCOMER)?;
    transfer_both_ways(siblings, LEFT, NEWCOMER).context("while the transfers are under way")?;
    let vm = siblings.vm(NEWCOMER)?.clone();
    ensure!(siblings.guest(NEWCOMER)?.qemu.has_device()?);
    let start = Instant::now();
    siblings.remove(NEWCOMER)?;
    let took = start.elapsed();
    ensure!(took < REMOVAL_DEADLINE, "the removal took {took:?}");
    endless.dialler_is_interrupted()?;
    ensure!(
        !vm.socket.exists() && !vm.uds.exists(),
        "a socket of it is still there"
    );
    let guest = siblings.guest(NEWCOMER)?;
    wait::until("QEMU to see its socket close", NEWS_DEADLINE, || {
        Ok((!guest.qemu.has_device()?).then_some(()))
    })?;
    transfer_both_ways(siblings, MIDDLE, LEFT).context("those that stay")?;
    siblings.kill(NEWCOMER)?;

    is_there(siblings)?;
    talks(siblings).context("with the same CID again")?;
    siblings.kill(NEWCOMER)?;
    siblings.remove(NEWCOMER)?;
    Ok(format!("{:.0} ms", milliseconds(took)))
}
