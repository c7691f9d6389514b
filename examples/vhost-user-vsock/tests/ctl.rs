//! `ctl`: what people read, what scripts read, and what the exit code tells.

#![allow(clippy::unwrap_used)] // Helpers fail the test, too.

mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{BINARY, Daemon, directory, finish, listing, run};

/// A daemon, and its client in its directory.
struct Stage {
    dir: tempfile::TempDir,
    daemon: Daemon,
}

impl Stage {
    fn new() -> Self {
        let dir = directory();
        let daemon = Daemon::start([Path::new("--control"), &dir.path().join("control")]);
        Self { dir, daemon }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(["ctl", "--control", "control"]).args(args);
        command.current_dir(self.dir.path());
        command
    }

    fn ctl(&self, args: &[&str]) -> Output {
        finish(&mut self.command(args))
    }

    /// What it prints when it succeeds.
    #[track_caller]
    fn prints(&self, args: &[&str]) -> String {
        let output = self.ctl(args);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Its one line of complaint.
    #[track_caller]
    fn fails(&self, args: &[&str], code: i32) -> String {
        let output = self.ctl(args);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(line.matches('\n').count(), 1, "{line}");
        line
    }
}

/// Relative paths are the client's.
const ADD: [&str; 6] = ["add", "3", "--socket", "3.sock", "--uds-path", "./3.vsock"];

#[test]
fn manages_vms() {
    let stage = Stage::new();
    assert_eq!(stage.prints(&[&ADD[..], &["--groups", "a+b"]].concat()), "");
    let list = stage.prints(&["list"]);
    let mut lines = list.lines();
    assert!(
        lines
            .next()
            .unwrap()
            .starts_with("CID  STATE    CONNECTIONS  GROUPS")
    );
    let row: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    let socket = stage.dir.path().join("3.sock");
    assert_eq!(
        row[..5],
        ["3", "waiting", "0", "a+b", socket.to_str().unwrap()]
    );
    assert_eq!(lines.next(), None);
    stage.prints(&[
        "set",
        "3",
        "--no-groups",
        "--host-cids",
        "7+8",
        "--max-connections=5",
    ]);
    let shown = stage.prints(&["show", "3"]);
    for (name, value) in [
        ("groups", "none"),
        ("host-cids", "7+8"),
        ("max-connections", "5"),
    ] {
        let line = shown
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")))
            .unwrap();
        assert_eq!(line.split_whitespace().collect::<Vec<_>>(), [name, value]);
    }
    assert!(
        stage
            .prints(&["connections"])
            .starts_with("ID  FROM  TO  KIND")
    );
    stage.prints(&["remove", "3"]);
    assert_eq!(stage.prints(&["list"]).lines().count(), 1);
    let version = format!("vhost-user-vsock {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(stage.prints(&["version"]), version);
}

#[test]
fn prints_json_for_scripts() {
    let stage = Stage::new();
    let json = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
    assert_eq!(
        json(&stage.prints(&[&["--json"], &ADD[..]].concat()))["cid"],
        3
    );
    assert_eq!(json(&stage.prints(&["list", "--json"]))["vms"][0]["cid"], 3);
    assert_eq!(stage.prints(&["remove", "3", "--json"]), "");
    assert_eq!(
        json(&stage.fails(&["remove", "3", "--json"], 3))["code"],
        "no_such_vm"
    );
}

#[test]
fn exit_codes_tell_what_was_wrong() {
    let stage = Stage::new();
    stage.prints(&ADD);
    for (args, code, words) in [
        (
            &["add", "2", "--socket", "a", "--uds-path", "b"][..],
            2,
            "is reserved",
        ),
        (
            &["add", "4", "--socket", "none/a", "--uds-path", "b"],
            2,
            "create it",
        ),
        (&["add", "4", "--socket", "a"], 2, "--uds-path"),
        (
            &["add", "four", "--socket", "a", "--uds-path", "b"],
            2,
            "CID four: is not a number",
        ),
        (&["kill", "+7"], 2, "ID +7: is not a number"),
        (&["set", "3"], 2, "nothing to change"),
        (
            &["set", "3", "--groups", "a", "--no-groups"],
            2,
            "cannot be used with",
        ),
        (&["set", "3", "--max-backlog", "1M"], 2, "is not a number"),
        (&["set", "3", "--max-backlog", "1"], 2, "choose from"),
        (&["frobnicate"], 2, "frobnicate"),
        (&["show", "4"], 3, "no VM has CID 4"),
        (&["set", "4", "--groups", "a"], 3, "no VM has CID 4"),
        (&["connections", "4"], 3, "no VM has CID 4"),
        (&["kill", "7"], 3, "no connection 7"),
        (&ADD, 4, "is another VM's CID"),
        (
            &["add", "4", "--socket", "3.sock", "--uds-path", "b"],
            4,
            "is also the path",
        ),
        (&["reload"], 4, "start the daemon with --config"),
        (&["--control", "none", "list"], 5, "--control none"),
    ] {
        // The last --control is the one that counts, so give it alone.
        let line = if args[0] == "--control" {
            let output = run([&["ctl"], args].concat());
            assert_eq!(output.status.code(), Some(code));
            String::from_utf8(output.stderr).unwrap()
        } else {
            stage.fails(args, code)
        };
        assert!(line.starts_with("vhost-user-vsock: "), "{line}");
        assert!(line.contains(words), "no '{words}' in: {line}");
    }
}

#[test]
fn follows_events_until_the_daemon_ends() {
    let stage = Stage::new();
    let mut child = stage
        .command(&["events"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // It is there when it sees what is done over and over.
    let first = loop {
        stage.prints(&ADD);
        stage.prints(&["remove", "3"]);
        if let Ok(Some(line)) = lines.next().transpose() {
            break line;
        }
    };
    assert!(first.contains("Z VM 3 "), "{first}");
    assert_eq!(stage.daemon.end(Signal::TERM), Some(0));
    for line in lines {
        assert!(line.unwrap().contains("Z VM 3 "));
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(listing(stage.dir.path()).is_empty());
}

#[test]
fn says_nothing_when_its_reader_has_read_enough() {
    let stage = Stage::new();
    let mut child = stage
        .command(&["list"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{output:?}");
    // The daemon doesn't mind a client that is killed either.
    let mut child = stage
        .command(&["events"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
    stage.prints(&["list"]);
}

#[test]
fn completions_are_what_their_shells_understand() {
    let dir = directory();
    for (shell, check) in [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")] {
        let output = run(["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let script = String::from_utf8(output.stdout.clone()).unwrap();
        for word in ["ctl", "connections", "no-host-cids"] {
            assert!(script.contains(word), "no {word} for {shell}");
        }
        let file = dir.path().join(shell);
        std::fs::write(&file, output.stdout).unwrap();
        if Command::new(shell).arg("--version").output().is_err() {
            continue; // It is not installed here.
        }
        let output = finish(Command::new(shell).arg(check).arg(&file));
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
    }
}
