//! Who reaches whom: refusals at once, and isolation by groups.

use anyhow::{Context, Result, anyhow, ensure};
use guest_agent::protocol::Endpoint;
use guest_agent::script::{Receive, Send, Step, run_all};

use super::{ALONE, Case, LEFT, MIDDLE, RIGHT};
use crate::hybrid::{self, Listener};
use crate::lab::HOST_CID;
use crate::siblings::Siblings;
use crate::suite::refusals::refused_at_once;
use crate::talk::{self, succeeded};

/// A CID that no guest has.
const NOBODY: u32 = 4321;

pub(super) fn cases() -> Vec<Case<Siblings>> {
    let refused = [
        ("a port of a sibling where nobody listens", LEFT),
        ("an unknown CID", NOBODY),
        ("a sibling that is not up", RIGHT),
    ];
    let mut cases: Vec<_> = refused
        .into_iter()
        .map(|(what, cid)| {
            let name = format!("refuses a guest at once: {what}");
            Case::new(name, move |siblings: &mut Siblings| {
                let port = siblings.port();
                refused_at_once(siblings.guest(MIDDLE)?, cid, port)
            })
        })
        .collect();
    cases.push(Case::new(
        "an absent sibling, dialled until it has booted, answers",
        first_boot,
    ));
    cases.push(Case::new(
        "guests that share no group are refused at once",
        isolated_by_group,
    ));
    cases.push(Case::new(
        "a guest without a group reaches the host only",
        host_only,
    ));
    cases
}

/// From before it boots for the first time, its sibling dials it: each call is refused,
/// until it listens.
fn first_boot(siblings: &mut Siblings) -> Result<String> {
    ensure!(!siblings.is_up(RIGHT), "the guest is up already");
    let port = siblings.port();
    let endpoint = Endpoint::Redial { cid: RIGHT, port };
    let asks = vec![
        Step::Send(Send::new(1000, 1)),
        Step::Receive(Receive::new(1000, 1)),
    ];
    let dialling = siblings.guest(MIDDLE)?.converse(endpoint, 1, asks)?;
    siblings.boot(&[RIGHT])?;
    let listening =
        siblings
            .guest(RIGHT)?
            .converse(Endpoint::Listen { port }, 1, vec![Step::Echo])?;
    let (dialler, listener) = (dialling.reports()?, listening.reports()?);
    talk::all_succeeded(&[("dialler", &dialler), ("listener", &listener)])?;
    let seconds = dialler[0].connected_ms / 1000.0;
    Ok(format!("after {seconds:.1} s"))
}

/// Left and right are refused by each other while they listen to the middle, which then
/// reaches both.
fn isolated_by_group(siblings: &mut Siblings) -> Result<String> {
    if !siblings.is_up(RIGHT) {
        siblings.boot(&[RIGHT])?;
    }
    for (cid, stranger) in [(LEFT, RIGHT), (RIGHT, LEFT)] {
        refused_while_it_listens(siblings, cid, stranger)?;
    }
    Ok(String::new())
}

fn host_only(siblings: &mut Siblings) -> Result<String> {
    siblings.boot(&[ALONE])?;
    let port = siblings.port();
    for cid in [MIDDLE, LEFT] {
        refused_at_once(siblings.guest(ALONE)?, cid, port)
            .with_context(|| format!("guest {ALONE} to {cid}"))?;
        refused_at_once(siblings.guest(cid)?, ALONE, port)
            .with_context(|| format!("guest {cid} to {ALONE}"))?;
    }
    refused_while_it_listens(siblings, MIDDLE, ALONE)?;
    reaches_the_host(siblings, ALONE)?;
    siblings.kill(ALONE)?;
    Ok(String::new())
}

/// A guest listens: a stranger is refused at once, somebody of its group is not.
fn refused_while_it_listens(siblings: &mut Siblings, cid: u32, stranger: u32) -> Result<()> {
    let friend = if cid == MIDDLE { LEFT } else { MIDDLE };
    let port = siblings.port();
    let listener = siblings
        .guest(cid)?
        .converse(Endpoint::Listen { port }, 1, vec![Step::Echo])?;
    refused_at_once(siblings.guest(stranger)?, cid, port)
        .with_context(|| format!("guest {stranger} to {cid}"))?;
    let asks = vec![
        Step::Send(Send::new(1000, 2)),
        Step::Receive(Receive::new(1000, 2)),
    ];
    let endpoint = Endpoint::Connect { cid, port };
    let dialler = siblings.guest(friend)?.converse(endpoint, 1, asks)?;
    let (dialler, listener) = (dialler.reports()?, listener.reports()?);
    talk::all_succeeded(&[("dialler", &dialler), ("listener", &listener)])
        .with_context(|| format!("guest {friend} to {cid}"))
}

/// Both ways, with a little data each.
pub(super) fn reaches_the_host(siblings: &mut Siblings, cid: u32) -> Result<()> {
    let turn = [
        Step::Send(Send::new(1000, 3)),
        Step::Receive(Receive::new(1000, 3)),
    ];
    let (port, uds) = (siblings.port(), siblings.vm(cid)?.uds.clone());
    let host = Listener::bind(&uds, port)?;
    let guest = siblings.guest(cid)?;
    let endpoint = Endpoint::Connect {
        cid: HOST_CID,
        port,
    };
    let echoing = guest.converse(endpoint, 1, vec![Step::Echo])?;
    let accepted = host.accept().map_err(|failure| anyhow!(failure.why))?;
    succeeded(&run_all(vec![Ok(accepted)], &turn).remove(0)).context("guest to host")?;
    succeeded(&echoing.reports()?[0]).context("guest to host")?;

    let echoing = guest.converse(Endpoint::Listen { port }, 1, vec![Step::Echo])?;
    let dialled = hybrid::dial_open(&uds, port)?;
    succeeded(&run_all(vec![Ok(dialled)], &turn).remove(0)).context("host to guest")?;
    succeeded(&echoing.reports()?[0]).context("host to guest")
}
