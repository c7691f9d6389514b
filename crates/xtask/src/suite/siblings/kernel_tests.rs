//! The kernel's own tests of vsock between two guests, and its benchmark.
//!
//! The two halves of `vsock_test` agree on each case over TCP, for which the guests have
//! an Ethernet cable. A case that fails ends both, so that the later ones do not run.

use anyhow::{Context, Result, bail, ensure};

use super::{Case, LEFT, MIDDLE};
use crate::guest::Ongoing;
use crate::progress::detail;
use crate::siblings::{Siblings, once_accepted};

/// The TCP port over which the two halves agree.
const CONTROL_PORT: u16 = 1234;

pub(super) fn cases() -> Vec<Case<Siblings>> {
    let roles = [(MIDDLE, LEFT), (LEFT, MIDDLE)];
    let tests = roles.map(|(server, client)| {
        let name = format!("the kernel's vsock_test, guest {server} serves guest {client}");
        Case::new(name, move |siblings| tests(siblings, server, client))
    });
    let mut cases: Vec<_> = tests.into();
    for (receiver, sender) in roles {
        for benchmark in BENCHMARKS {
            let name = format!(
                "the kernel's vsock_perf, guest {sender} to {receiver}, {}",
                benchmark.name
            );
            cases.push(Case::new(name, move |siblings| {
                benchmark.run(siblings, receiver, sender)
            }));
        }
    }
    cases
}

/// The benchmark with some options.
#[derive(Clone, Copy)]
struct Benchmark {
    name: &'static str,
    bytes: u64,
    /// The window that the receiver grants in the end.
    window: u64,
    sender: &'static str,
    receiver: &'static str,
}

const BENCHMARKS: [Benchmark; 4] = [
    Benchmark {
        name: "all defaults",
        bytes: 64 << 10,
        window: 256 << 10,
        sender: "",
        receiver: "",
    },
    Benchmark {
        name: "default buffers",
        bytes: 128 << 20,
        window: 256 << 10,
        sender: "--bytes 128M",
        receiver: "",
    },
    Benchmark {
        name: "64 KiB buffers",
        bytes: 128 << 20,
        window: 256 << 10,
        sender: "--bytes 128M --buf-size 64K",
        receiver: "--buf-size 64K",
    },
    Benchmark {
        name: "1 MiB buffers",
        bytes: 128 << 20,
        window: 1 << 20,
        sender: "--bytes 128M --buf-size 1M",
        receiver: "--buf-size 1M --vsk-size 1M",
    },
];

impl Benchmark {
    fn run(&self, siblings: &mut Siblings, receiver: u32, sender: u32) -> Result<String> {
        let port = siblings.port();
        let receive = format!("vsock_perf --port {port} {}", self.receiver);
        let send = format!(
            "vsock_perf --sender {receiver} --port {port} {}",
            self.sender
        );
        let receiving = siblings.guest(receiver)?.run(&["sh", "-c", &receive])?;
        let send = once_accepted(&send);
        let sending = siblings.guest(sender)?.run(&["sh", "-c", &send])?;
        let sent = sending.success().context("the sender")?;
        let received = receiving.success().context("the receiver")?;
        let sent: u64 = value(&sent, "total bytes sent: ")?.parse()?;
        ensure!(sent == self.bytes, "{sent} bytes were sent");
        // The receiver stops reading when it sees that the sender has closed: it may leave
        // a window's content behind.
        let arrived: u64 = value(&received, "total bytes received: ")?.parse()?;
        let all = arrived <= sent && arrived + self.window >= sent;
        ensure!(all, "{arrived} of {sent} bytes were received");
        let gigabits: f64 = value(&received, "rx performance: ")?.parse()?;
        Ok(format!("{:.0} MB/s", gigabits * 1000.0 / 8.0))
    }
}

/// The word after `key` in a program's output.
fn value<'a>(output: &'a str, key: &str) -> Result<&'a str> {
    let mut lines = output.lines().filter_map(|line| line.strip_prefix(key));
    let word = lines
        .next_back()
        .and_then(|rest| rest.split_whitespace().next());
    word.with_context(|| format!("no {key:?} in the output: {output}"))
}

fn tests(siblings: &mut Siblings, server: u32, client: u32) -> Result<String> {
    let expected = names(&listed(siblings, server)?);
    for cid in [server, client] {
        let up = format!("ifconfig eth0 {} up", address(cid));
        siblings.guest(cid)?.run(&["sh", "-c", &up])?.success()?;
    }
    let serving = half(
        siblings,
        server,
        &format!("--mode server --peer-cid {client}"),
    )?;
    let listens =
        format!("until grep -q ':{CONTROL_PORT:04X} .* 0A ' /proc/net/tcp; do usleep 20000; done");
    let waiting = siblings.guest(server)?.run(&["sh", "-c", &listens])?;
    waiting.success().context("await the server")?;
    let options = format!(
        "--mode client --peer-cid {server} --control-host {}",
        address(server)
    );
    let calling = half(siblings, client, &options)?;
    let ends = [("client", calling.success()), ("server", serving.success())];
    let failures: Vec<_> = ends
        .iter()
        .filter_map(|(end, output)| Some(format!("{end}: {:#}", output.as_ref().err()?)))
        .collect();
    if !failures.is_empty() {
        bail!(failures.join("\n"));
    }
    for (end, output) in ends {
        let passed = passed(&output?);
        ensure!(
            passed == expected,
            "the {end} has passed {passed:?}, not {expected:?}"
        );
    }
    for (number, name) in expected.iter().enumerate() {
        detail(format!("{number:2} {name:60} ok"));
    }
    Ok(format!("{} of {}", expected.len(), expected.len()))
}

fn address(cid: u32) -> String {
    format!("10.0.0.{cid}")
}

fn half(siblings: &mut Siblings, cid: u32, options: &str) -> Result<Ongoing> {
    let command = format!("exec vsock_test --control-port {CONTROL_PORT} {options}");
    siblings.guest(cid)?.run(&["sh", "-c", &command])
}

/// What `vsock_test --list` prints; it ends with a failure.
fn listed(siblings: &mut Siblings, cid: u32) -> Result<String> {
    let list = siblings
        .guest(cid)?
        .run(&["sh", "-c", "vsock_test --list || true"])?;
    list.success()
}

/// The names in a list of tests: lines of a number, a tab, and a name.
fn names(list: &str) -> Vec<String> {
    let numbered = list.lines().filter_map(|line| line.split_once('\t'));
    let named = numbered.filter(|(number, _)| number.parse::<usize>().is_ok());
    named.map(|(_, name)| name.to_owned()).collect()
}

/// The names of the tests that have passed: `3 - name...ok`.
fn passed(output: &str) -> Vec<String> {
    let numbered = output.lines().filter_map(|line| line.split_once(" - "));
    let passed = numbered.filter_map(|(_, rest)| rest.strip_suffix("...ok"));
    passed.map(str::to_owned).collect()
}
