//! The kernel's own benchmark of vsock between two guests, `vsock_perf`.

use anyhow::{Context, Result, ensure};

use super::{Case, LEFT, MIDDLE};
use crate::siblings::{Siblings, once_accepted};

pub(super) fn cases() -> Vec<Case<Siblings>> {
    let mut cases = Vec::new();
    for (receiver, sender) in [(MIDDLE, LEFT), (LEFT, MIDDLE)] {
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
        if sent <= self.window {
            // Too little to tell a speed.
            return Ok(String::new());
        }
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
