//! The tools people use, as they come from Debian.

use anyhow::{Context, Result, bail};
use guest_agent::script::{Connected, Failure, Receive, Report, Send, Step, run_all};

use super::Case;
use crate::guest::Ongoing;
use crate::hybrid::{self, Listener};
use crate::lab::{HOST_CID, Lab};

const BYTES: u64 = 4_000_000;
const SEED: u64 = 9;
const SENT: &str = "/tmp/sent";
const RECEIVED: &str = "/tmp/received";

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("socat in the guest sends, as a client", |lab| {
            client_sends(lab, |port| {
                format!("socat -u OPEN:{SENT} VSOCK-CONNECT:{HOST_CID}:{port}")
            })
        }),
        Case::new("socat in the guest receives, as a server", |lab| {
            server_receives(lab, |port| {
                format!("socat -u VSOCK-LISTEN:{port} CREATE:{RECEIVED}")
            })
        }),
        Case::new("socat in the guest echoes, as a server", |lab| {
            server_echoes(lab, |port| format!("socat VSOCK-LISTEN:{port} EXEC:cat"))
        }),
        Case::new("ncat in the guest sends, as a client", |lab| {
            client_sends(lab, |port| {
                format!("ncat --vsock --send-only {HOST_CID} {port} < {SENT}")
            })
        }),
        Case::new("ncat in the guest receives, as a server", |lab| {
            server_receives(lab, |port| {
                format!("ncat --vsock --listen --recv-only {port} > {RECEIVED}")
            })
        }),
        Case::new("ncat in the guest echoes, as a server", |lab| {
            server_echoes(lab, |port| {
                format!("ncat --vsock --listen {port} --exec /bin/cat")
            })
        }),
    ]
}

fn client_sends(lab: &mut Lab, command: fn(u32) -> String) -> Result<String> {
    lab.guest.write_file(SENT, BYTES, SEED)?;
    let port = lab.port();
    let listener = Listener::bind(lab.uds(), port)?;
    let tool = shell(lab, &command(port))?;
    let receive = [Step::Receive(Receive::new(BYTES, SEED)), Step::ExpectEnd];
    finish(host_end(listener.accept(), &receive), &tool)
}

fn server_receives(lab: &mut Lab, command: fn(u32) -> String) -> Result<String> {
    let port = lab.port();
    let tool = shell(lab, &command(port))?;
    let dialled = hybrid::dial_until_accepted(lab.uds(), port)?;
    finish(
        host_end(
            Ok(dialled.connection),
            &[Step::Send(Send::new(BYTES, SEED))],
        ),
        &tool,
    )?;
    lab.guest.verify_file(RECEIVED, BYTES, SEED)?;
    Ok(String::new())
}

/// In turns, each smaller than a pipe: ncat writes to its program while that writes to
/// it, and neither would read.
fn server_echoes(lab: &mut Lab, command: fn(u32) -> String) -> Result<String> {
    const TURN: u64 = 32 << 10;
    const TURNS: u64 = 50;
    let port = lab.port();
    let tool = shell(lab, &command(port))?;
    let dialled = hybrid::dial_until_accepted(lab.uds(), port)?;
    let turn = |seed| {
        [
            Step::Send(Send::new(TURN, seed)),
            Step::Receive(Receive::new(TURN, seed)),
        ]
    };
    let mut script: Vec<_> = (0..TURNS).flat_map(turn).collect();
    script.extend([Step::FinishSending, Step::ExpectEnd]);
    finish(host_end(Ok(dialled.connection), &script), &tool)
}

fn shell(lab: &mut Lab, command: &str) -> Result<Ongoing> {
    lab.guest.run(&["sh", "-c", command])
}

fn host_end(connection: Result<Connected, Failure>, script: &[Step]) -> Report {
    run_all(vec![connection], script).remove(0)
}

/// Both the host's end and the tool have to succeed.
fn finish(host: Report, tool: &Ongoing) -> Result<String> {
    if let Some(failure) = host.failure {
        let tool = match tool.success() {
            Ok(output) => format!("the tool succeeded: {output}"),
            Err(error) => format!("{error:#}"),
        };
        bail!("host: {}; {tool}", failure.why);
    }
    tool.success().context("the host's end succeeded")?;
    Ok(String::new())
}
