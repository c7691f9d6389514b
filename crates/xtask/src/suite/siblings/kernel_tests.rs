//! The kernel's own tests of vsock between two guests.
//!
//! The two halves of `vsock_test` agree on each case over TCP, for which the guests have
//! an Ethernet cable. A case that fails ends both, so that the later ones do not run.

use anyhow::{Context, Result, bail, ensure};

use super::{Case, LEFT, MIDDLE};
use crate::guest::Ongoing;
use crate::progress::detail;
use crate::siblings::Siblings;

/// No kernel's suite has fewer cases.
const FEWEST: usize = 11;
/// The TCP port over which the two halves agree.
const CONTROL_PORT: u16 = 1234;

pub(super) fn cases() -> Vec<Case<Siblings>> {
    let roles = [(MIDDLE, LEFT), (LEFT, MIDDLE)];
    let tests = roles.map(|(server, client)| {
        let name = format!("the kernel's vsock_test, guest {server} serves guest {client}");
        Case::new(name, move |siblings| run(siblings, server, client))
    });
    tests.into()
}

fn run(siblings: &mut Siblings, server: u32, client: u32) -> Result<String> {
    let expected = listed(siblings, server)?;
    let count = expected.len();
    ensure!(count >= FEWEST, "vsock_test lists {count} cases only");
    for cid in [server, client] {
        shell(siblings, cid, &format!("ifconfig eth0 {} up", address(cid)))?.success()?;
    }
    let test = format!("exec vsock_test --control-port {CONTROL_PORT}");
    let serve = format!("{test} --mode server --peer-cid {client}");
    let host = address(server);
    let call = format!("{test} --mode client --peer-cid {server} --control-host {host}");
    let serving = shell(siblings, server, &serve)?;
    await_listener(siblings, server)?;
    let calling = shell(siblings, client, &call)?;
    let ends = [("client", calling.success()), ("server", serving.success())];
    for (end, passed) in all_passed(ends)? {
        ensure!(
            passed == expected,
            "the {end} has passed {passed:?}, not {expected:?}"
        );
    }
    for (number, name) in expected.iter().enumerate() {
        detail(format!("{number:2} {name:60} ok"));
    }
    Ok(format!("{count} of {count}"))
}

fn address(cid: u32) -> String {
    format!("10.0.0.{cid}")
}

fn shell(siblings: &mut Siblings, cid: u32, command: &str) -> Result<Ongoing> {
    siblings.guest(cid)?.run(&["sh", "-c", command])
}

/// Waits until somebody in a guest listens on the control port: the client tries once.
fn await_listener(siblings: &mut Siblings, cid: u32) -> Result<()> {
    let listens = format!("grep -q ':{CONTROL_PORT:04X} .* 0A ' /proc/net/tcp");
    let wait = format!("until {listens}; do usleep 20000; done");
    let waiting = shell(siblings, cid, &wait)?;
    waiting.success().context("await the server").map(|_| ())
}

/// The tests that each end has passed; an error with both ends' words if one has failed.
fn all_passed(ends: [(&str, Result<String>); 2]) -> Result<Vec<(&str, Vec<String>)>> {
    let failure = |(end, output): &(&str, Result<String>)| {
        let why = output.as_ref().err()?;
        Some(format!("{end}: {why:#}"))
    };
    let failures: Vec<_> = ends.iter().filter_map(failure).collect();
    if !failures.is_empty() {
        bail!(failures.join("\n"));
    }
    let passed = ends
        .into_iter()
        .map(|(end, output)| Ok((end, passed(&output?))));
    passed.collect()
}

/// All tests there are. `vsock_test --list` ends with a failure.
fn listed(siblings: &mut Siblings, cid: u32) -> Result<Vec<String>> {
    let list = shell(siblings, cid, "vsock_test --list || true")?;
    Ok(names(&list.success()?))
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

#[cfg(test)]
mod tests {
    #[test]
    fn understands_the_list_and_the_output_of_vsock_test() {
        let list = "ID\tTest name\n0\tSOCK_STREAM bind only\n1\tSOCK_STREAM MSG_PEEK\n";
        let output = "Control socket connected.\n0 - SOCK_STREAM bind only...ok\n\
                      1 - SOCK_STREAM MSG_PEEK...skipped\nAll tests have been executed...ok\n";
        let names = super::names(list);
        assert_eq!(names, ["SOCK_STREAM bind only", "SOCK_STREAM MSG_PEEK"]);
        assert_eq!(super::passed(output), names[..1]);
    }
}
