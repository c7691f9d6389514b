//! The example runs and says where everything went.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::process::Command;

#[test]
fn says_what_it_routed_where() {
    let output = Command::new(env!("CARGO_BIN_EXE_embed-router"))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    for line in [
        "3:50000 asks for 2:7: to the echo service",
        "200000 bytes sent, the same came back: true",
        "3:50001 asks for 4:1000: to the guest with CID 4",
        "200000 bytes sent, the same arrived: true",
        "3:50002 asks for 2:80: refused, since nothing has this address",
        "5:50000 asks for 4:1000: refused, since the guests share no group",
        "its sibling's connection was reset",
        "3:50004 asks for 4:1000: refused, since nothing has this address",
    ] {
        assert!(said.contains(line), "no `{line}` in:\n{said}");
    }
}
