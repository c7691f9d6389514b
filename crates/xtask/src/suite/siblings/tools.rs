//! The tools people use, as they come from Debian, from guest to guest.

use anyhow::{Context, Result};

use super::{Case, LEFT, MIDDLE};
use crate::siblings::{Siblings, once_accepted};

const BYTES: u64 = 4_000_000;
const SEED: u64 = 9;
const SENT: &str = "/tmp/sent";
const RECEIVED: &str = "/tmp/received";

/// A tool's name, and its commands for a port.
#[derive(Clone, Copy)]
struct Tool {
    name: &'static str,
    sends: fn(cid: u32, port: u32) -> String,
    receives: fn(port: u32) -> String,
}

const SOCAT: Tool = Tool {
    name: "socat",
    sends: |cid, port| format!("socat -u OPEN:{SENT} VSOCK-CONNECT:{cid}:{port}"),
    receives: |port| format!("socat -u VSOCK-LISTEN:{port} CREATE:{RECEIVED}"),
};

const NCAT: Tool = Tool {
    name: "ncat",
    sends: |cid, port| format!("ncat --vsock --send-only {cid} {port} < {SENT}"),
    receives: |port| format!("ncat --vsock --listen --recv-only {port} > {RECEIVED}"),
};

pub(super) fn cases() -> Vec<Case<Siblings>> {
    let pairs = [
        (SOCAT, SOCAT, MIDDLE, LEFT),
        (NCAT, NCAT, MIDDLE, LEFT),
        (SOCAT, NCAT, LEFT, MIDDLE),
        (NCAT, SOCAT, LEFT, MIDDLE),
    ];
    let case = |(client, server, from, to): (Tool, Tool, u32, u32)| {
        let (sends, receives) = (client.name, server.name);
        let name = format!("{sends} in guest {from} sends to {receives} in guest {to}");
        Case::new(name, move |siblings| {
            sends_file(siblings, (from, client), (to, server))
        })
    };
    pairs.map(case).into()
}

fn sends_file(
    siblings: &mut Siblings,
    (from, client): (u32, Tool),
    (to, server): (u32, Tool),
) -> Result<String> {
    let port = siblings.port();
    siblings.guest(from)?.write_file(SENT, BYTES, SEED)?;
    let receives = (server.receives)(port);
    let receiving = siblings.guest(to)?.run(&["sh", "-c", &receives])?;
    let sends = once_accepted(&(client.sends)(to, port));
    let sending = siblings.guest(from)?.run(&["sh", "-c", &sends])?;
    sending.success().context("the sender")?;
    receiving.success().context("the receiver")?;
    siblings.guest(to)?.verify_file(RECEIVED, BYTES, SEED)?;
    Ok(String::new())
}
