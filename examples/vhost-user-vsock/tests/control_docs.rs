//! docs/control.md shows what happens: each command in it is run, and prints what the page
//! says.

#![allow(clippy::unwrap_used)] // Helpers fail the test, too.

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use support::http::Control;
use support::{BINARY, Daemon, directory, finish};

const PAGE: &str = include_str!("../../../docs/control.md");

/// The page's console blocks: commands, each with what it prints.
fn blocks() -> Vec<Vec<(String, String)>> {
    let blocks = PAGE.split("```console\n").skip(1);
    let commands = |block: &str| {
        let mut commands: Vec<(String, String)> = Vec::new();
        for line in block.split("```").next().unwrap_or_default().lines() {
            match (line.strip_prefix("$ "), commands.last_mut()) {
                (Some(command), _) => commands.push((command.to_owned(), String::new())),
                (None, Some((_, output))) => *output += &format!("{line}\n"),
                (None, None) => panic!("{line} is printed by nothing"),
            }
        }
        commands
    };
    blocks.map(commands).collect()
}

/// Runs one command of the page, in the directory `dir` instead of `/run`.
fn output_of(command: &str, preamble: &str, dir: &Path) -> String {
    let dir = dir.to_str().unwrap();
    let script = format!("shopt -s expand_aliases\n{preamble}{command}\n");
    let ctl = format!("{BINARY} ctl --control {dir}/control.sock");
    let script = script
        .replace("vhost-user-vsock ctl", &ctl)
        .replace("/run/vhost-user-vsock/", &format!("{dir}/"))
        .replace("/run/", &format!("{dir}/"));
    let output = finish(Command::new("bash").args(["-c", &script]));
    String::from_utf8(output.stdout)
        .unwrap()
        .replace(dir, "/run")
}

/// Whether `text` is `pattern`, in which `...` stands for anything, and a number of spaces
/// for any number of them.
fn is_like(pattern: &str, text: &str) -> bool {
    let squeeze = |text: &str| {
        let lines = text.lines().map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            words.join(" ")
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    let (pattern, text) = (squeeze(pattern), squeeze(text));
    let mut parts = pattern.split("...");
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        let found = if parts.peek().is_none() && !part.is_empty() {
            rest.ends_with(part).then(|| rest.len() - part.len())
        } else if parts.peek().is_none() {
            Some(rest.len())
        } else {
            rest.find(part)
        };
        let Some(at) = found else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty()
}

#[test]
fn commands_print_what_the_page_says() {
    let blocks = blocks();
    assert_eq!(blocks.len(), 2, "a block was lost or added");
    for block in blocks {
        let dir = directory();
        let _daemon = Daemon::start([Path::new("--control"), &dir.path().join("control.sock")]);
        let mut preamble = String::new();
        for (command, expected) in block {
            if command.starts_with("alias ") {
                preamble = format!("{command}\n");
                continue;
            }
            let printed = output_of(&command, &preamble, dir.path());
            assert!(is_like(&expected, &printed), "{command} printed\n{printed}");
        }
    }
}

#[test]
fn knows_what_is_left_out() {
    assert!(is_like("a...c...e", "abcde"));
    assert!(is_like("...", "anything"));
    assert!(is_like("a  b", "a b"));
    for (pattern, text) in [("a...c", "abd"), ("a", "ab"), ("", "a"), ("...a...", "b")] {
        assert!(!is_like(pattern, text), "{pattern} {text}");
    }
}

#[test]
fn the_page_has_exactly_the_counters_of_a_vm() {
    let section = PAGE.split("\n## Counters\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let names = rows.flat_map(|row| row.split(" | ").next().unwrap_or_default().split(", "));
    let told: BTreeSet<_> = names
        .map(|name| name.trim_matches('`').to_owned())
        .collect();
    let dir = directory();
    let control = Control(dir.path().join("control"));
    let _daemon = Daemon::start([Path::new("--control"), &control.0]);
    let vm = control.add(dir.path(), 3, "");
    let counters: BTreeSet<_> = vm["counters"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    assert_eq!(told, counters);
}
