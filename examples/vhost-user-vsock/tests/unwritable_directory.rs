//! A directory that refuses new entries is told like any other mistake.
//!
//! This test is alone in its file: it runs a binary it has just written, which fails
//! while another thread's new process still holds the file open.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use support::refusal::assert_refusal;
use support::{BINARY, directory, finish};

#[test]
fn refuses_a_directory_it_may_not_write_to() {
    let dir = directory();
    let daemon = dir.path().join("daemon");
    fs::copy(BINARY, &daemon).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let socket = dir.path().join("socket");
    let mut command = Command::new(&daemon);
    command
        .arg("--guest-cid=3")
        .arg("--uds-path=/tmp/vsock")
        .arg("--socket")
        .arg(&socket);
    if rustix::process::geteuid().is_root() {
        command.uid(65534); // Root may write anywhere.
    }
    let output = finish(&mut command);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let setting = format!("--socket {}: its directory", socket.display());
    let remedy = "allow it or choose another".to_owned();
    assert_refusal(&output, &[setting, "not writable".to_owned(), remedy]);
}
