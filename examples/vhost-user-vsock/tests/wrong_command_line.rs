//! A command line or a file that does not say what to serve is refused in one line, with
//! exit code 2; nothing was created.

#![allow(clippy::unwrap_used)] // Helpers fail the test, too.

mod support;

use std::fs;
use std::process::Command;

use support::refusal::{assert_refusal, refused};
use support::{BINARY, directory, finish, listing};

const VM_3: &str = "guest-cid=3,socket=D/3.sock,uds-path=D/3.vsock";

#[test]
fn refuses_a_command_line_that_does_not_say_what_to_serve() {
    let dir = directory();
    let single = [
        "--guest-cid",
        "3",
        "--socket",
        "D/socket",
        "--uds-path",
        "D/vsock",
    ];
    let table: &[(&[&str], &[&str])] = &[
        (&[], &["no VM", "give --guest-cid"]),
        (
            &single[2..],
            &["--guest-cid", "missing", "add --guest-cid 3"],
        ),
        (&single[..4], &["--uds-path", "missing", "add --uds-path"]),
        (
            &["--guest-cid", "3", "--uds-path", "D/vsock"],
            &["--socket", "missing", "add --socket"],
        ),
        (
            &["--vm", "guest-cid=3"],
            &["--vm guest-cid=3", "missing", "add "],
        ),
        (
            &["--vm", ""],
            &["--vm", "KEY=VALUE", "the keys are guest-cid, socket"],
        ),
        (
            &["--vm", "guest-cid"],
            &["'guest-cid' is not KEY=VALUE", "the keys are"],
        ),
        (
            &["--vm", "cid=3"],
            &["--vm cid=3", "unknown key", "the keys are guest-cid"],
        ),
        (
            &["--vm", "guest-cid=3,guest-cid=4"],
            &["--vm guest-cid=4", "twice", "keep one"],
        ),
        (
            &["--vm", VM_3, "--groups", "a"],
            &["--vm", "combined with --groups", "keep one"],
        ),
        (
            &["--vm", VM_3, "--config", "D/x"],
            &["--config D/x", "combined with --vm", "keep one"],
        ),
        (
            &["check", "D/x", "--vm", VM_3],
            &["'--vm'", "unexpected", "--help"],
        ),
        (&["--vm", VM_3, "check", "D/x"], &["check", "--vm"]),
        (&["check"], &["<FILE|DIR>", "--help"]),
        (
            &["--config", "D/x", "--fd", "3"],
            &["--config D/x", "combined with --fd", "keep one"],
        ),
        (
            &["--socket", "D/s", "--fd", "3"],
            &["--socket D/s", "combined with --fd 3", "keep one"],
        ),
        (
            &["--socket-path", "D/s", "--fd", "3"],
            &["combined with --fd 3", "keep one"],
        ),
        (&["--sokcet", "D/s"], &["--sokcet", "did you mean --socket"]),
        (&["--socket"], &["--socket", "value is required", "--help"]),
        (
            &["--socket", "D/a", "--socket", "D/b"],
            &["--socket", "multiple times", "--help"],
        ),
        (&["3"], &["'3'", "--help"]),
    ];
    for (args, words) in table {
        refused(dir.path(), args, words);
    }
}

#[test]
fn refuses_a_file_that_says_nothing_useful() {
    let dir = directory();
    let table: &[(&str, &[&str])] = &[
        ("", &["vms.toml", "no VM", "add a [[vm]] table"]),
        ("vm = []\n", &["vms.toml", "no VM", "add a [[vm]] table"]),
        (
            "[[vm]]\nguest_cid 3\n",
            &["vms.toml:2: ", "docs/options.md"],
        ),
        (
            "[[vm]]\nguest_cid = 3\nguest-cid = 3\n",
            &["vms.toml:3: ", "unknown field `guest-cid`"],
        ),
        (
            "[[vms]]\n",
            &["vms.toml:1: ", "unknown field `vms`", "expected"],
        ),
        (
            "[[vm]]\nguest_cid = \"3\"\n",
            &["vms.toml:2: ", "\"3\"", "docs/options.md"],
        ),
        (
            "[[vm]]\nguest_cid = -3\n",
            &["vms.toml:2: ", "-3", "docs/options.md"],
        ),
        (
            "[[vm]]\ngroups = \"a+b\"\n",
            &["vms.toml:2: ", "\"a+b\"", "docs/options.md"],
        ),
        (
            "[[vm]]\nguest_cid = 3\nguest_cid = 3\n",
            &["vms.toml:3: ", "duplicate key"],
        ),
        (
            "[[vm]]\nguest_cid = 3\n",
            &["vms.toml:1: [[vm]]", "missing", "add uds_path = \"/run"],
        ),
    ];
    for (text, words) in table {
        fs::write(dir.path().join("vms.toml"), text).unwrap();
        refused(dir.path(), &["--config", "D/vms.toml"], words);
    }
}

#[test]
fn refuses_a_file_that_cannot_be_read() {
    let dir = directory();
    fs::create_dir(dir.path().join("directory")).unwrap();
    fs::write(dir.path().join("binary"), b"\xff\xfe").unwrap();
    fs::create_dir(dir.path().join("directory/a.toml")).unwrap();
    for name in ["missing", "directory", "binary"] {
        let path = format!("D/{name}");
        let setting = format!("vhost-user-vsock: {path}");
        refused(
            dir.path(),
            &["--config", &path],
            &[&setting, "cannot be read", "readable"],
        );
    }
}

#[test]
fn refuses_a_descriptor_that_is_no_vhost_user_socket() {
    let dir = directory();
    for (fd, says) in [
        ("0", "is no UNIX stream socket that listens or is connected"),
        ("999", "is not an open descriptor"),
    ] {
        let args = ["--guest-cid", "3", "--uds-path", "D/vsock", "--fd", fd];
        refused(dir.path(), &args, &[&format!("--fd {fd}"), says]);
    }
}

#[test]
fn refuses_a_log_filter_it_does_not_understand() {
    let dir = directory();
    let mut command = Command::new(BINARY);
    command.args(["--guest-cid", "3"]).env("RUST_LOG", "a=loud");
    for (key, name) in [("--socket", "socket"), ("--uds-path", "vsock")] {
        command.arg(key).arg(dir.path().join(name));
    }
    let output = finish(&mut command);
    assert_refusal(
        &output,
        &["RUST_LOG=a=loud".to_owned(), "write a level".to_owned()],
    );
    assert!(listing(dir.path()).is_empty());
}
