//! What cannot be connected is refused at once: nobody waits for a timeout.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_agent::protocol::Endpoint;
use guest_agent::script::{Failure, milliseconds};
use socket2::{Domain, SockAddr, Socket, Type};

use super::Case;
use crate::guest::Guest;
use crate::hybrid;
use crate::lab::{HOST_CID, Lab};

/// A refusal that takes longer isn't one.
const AT_ONCE: Duration = Duration::from_millis(100);

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "refuses a guest at once: no socket on the host",
            |lab: &mut Lab| {
                let port = lab.port();
                refused_at_once(&mut lab.guest, HOST_CID, port)
            },
        ),
        Case::new(
            "refuses a guest at once: a dead socket on the host",
            dead_socket,
        ),
        Case::new(
            "refuses a guest at once: a full backlog on the host",
            full_backlog,
        ),
        Case::new(
            "refuses the host at once: no listener in the guest",
            no_listener_in_guest,
        ),
    ]
}

fn dead_socket(lab: &mut Lab) -> Result<String> {
    let port = lab.port();
    let path = hybrid::port_path(lab.uds(), port);
    // The socket closes at once; its file stays.
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(&path)?)?;
    drop(socket);
    refused_at_once(&mut lab.guest, HOST_CID, port)
}

fn full_backlog(lab: &mut Lab) -> Result<String> {
    let port = lab.port();
    let address = SockAddr::unix(hybrid::port_path(lab.uds(), port))?;
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    listener.bind(&address)?;
    listener.listen(0)?;
    let mut waiting = Vec::new();
    loop {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        if socket.connect(&address).is_err() {
            break;
        }
        waiting.push(socket);
    }
    refused_at_once(&mut lab.guest, HOST_CID, port)
}

/// Has a guest connect, and expects it to be refused at once.
pub(super) fn refused_at_once(guest: &mut Guest, cid: u32, port: u32) -> Result<String> {
    const ECONNRESET: i32 = rustix::io::Errno::CONNRESET.raw_os_error();
    let endpoint = Endpoint::Connect { cid, port };
    at_once(|| {
        let reports = guest.converse(endpoint, 1, Vec::new())?.reports()?;
        match &reports[0].failure {
            Some(Failure {
                errno: Some(ECONNRESET),
                after_ms,
                ..
            }) => Ok(*after_ms),
            Some(failure) => bail!("not refused, but: {failure:?}"),
            None => bail!("the connection was not refused"),
        }
    })
}

fn no_listener_in_guest(lab: &mut Lab) -> Result<String> {
    let port = lab.port();
    at_once(|| {
        let start = Instant::now();
        let refused = hybrid::dial(lab.uds(), port)
            .context("await the refusal")?
            .is_none();
        ensure!(refused, "the connection was not refused");
        Ok(milliseconds(start.elapsed()))
    })
}

/// Expects a refusal that takes so many milliseconds to be quick. A host that is busy with
/// other things may delay any of them, but a device that waits for something delays all.
fn at_once(mut refusal: impl FnMut() -> Result<f64>) -> Result<String> {
    const TRIES: usize = 5;
    let mut quickest = f64::INFINITY;
    for _ in 0..TRIES {
        quickest = quickest.min(refusal()?);
        if quickest < milliseconds(AT_ONCE) {
            return Ok(format!("{quickest:.1} ms"));
        }
    }
    bail!("the quickest of {TRIES} took {quickest:.1} ms, more than {AT_ONCE:?}");
}
