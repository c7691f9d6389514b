//! The manual says of the daemon what the daemon says of itself.

#![allow(clippy::unwrap_used)] // Helpers fail the test, too.

mod support;

use std::collections::BTreeSet;

use support::run;

const MANUAL: &str = include_str!("../../../docs/options.md");
const README: &str = include_str!("../../../README.md");
const HYBRID: &str = include_str!("../../../docs/hybrid-vsock.md");

/// Every `--option` in a text.
fn options(text: &str) -> BTreeSet<&str> {
    let is_name = |c: char| c.is_ascii_lowercase() || c == '-';
    text.split(|c: char| !is_name(c))
        .filter(|word| word.starts_with("--") && word.trim_matches('-') == &word[2..])
        .filter(|word| word.len() > 2)
        .collect()
}

#[test]
fn the_manual_has_exactly_the_options_of_the_help() {
    let help = String::from_utf8(run(["--help"]).stdout).unwrap();
    assert_eq!(options(MANUAL), options(&help));
}

#[test]
fn other_pages_use_only_options_that_exist() {
    let help = String::from_utf8(run(["--help"]).stdout).unwrap();
    let mut known = options(&help);
    known.extend(["--release", "--workspace"]); // Cargo's.
    for page in [README, HYBRID] {
        let unknown: Vec<_> = options(page).difference(&known).copied().collect();
        assert_eq!(unknown, Vec::<&str>::new());
    }
}

/// Each command after a `$` prints the line below it.
#[test]
fn the_manual_quotes_refusals_word_by_word() {
    let mut lines = MANUAL.lines();
    let mut count = 0;
    while let Some(line) = lines.next() {
        let Some(args) = line.strip_prefix("$ vhost-user-vsock ") else {
            continue;
        };
        let output = run(args.split(' '));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.trim_end(), lines.next().unwrap(), "{args}");
        assert_eq!(output.status.code(), Some(2));
        count += 1;
    }
    assert_eq!(count, 6, "a quotation was lost or added");
}

/// The manual's file and its `--vm` options are right but for the directory, which is not
/// there under this name.
#[test]
fn the_manuals_examples_are_accepted_up_to_their_directory() {
    let toml = between(MANUAL, "```toml\n", "```").replace("/run/", "/missing/");
    let dir = support::directory();
    let file = dir.path().join("vms.toml");
    std::fs::write(&file, toml).unwrap();
    let file = file.to_str().unwrap();
    let vms = between(MANUAL, "```sh\nvhost-user-vsock \\\n", "```").replace("/run/", "/missing/");
    let vms: Vec<_> = vms
        .split_whitespace()
        .filter(|word| *word != "\\")
        .collect();
    for args in [vec!["--config", file], vms] {
        let said = String::from_utf8(run(&args).stderr).unwrap();
        assert!(
            said.contains("its directory /missing cannot be used"),
            "{said}"
        );
    }
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    text.split_once(start)
        .and_then(|(_, rest)| rest.split_once(end))
        .unwrap()
        .0
}
