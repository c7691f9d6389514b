//! The manual says of the daemon what the daemon says of itself.

#![allow(clippy::unwrap_used)] // Helpers fail the test, too.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use support::run;
use vsock_router::Refusal;

const MANUAL: &str = include_str!("../../../docs/options.md");
const README: &str = include_str!("../../../README.md");
const HYBRID: &str = include_str!("../../../docs/hybrid-vsock.md");
const SIBLINGS: &str = include_str!("../../../docs/siblings.md");
const LIMITS: &str = include_str!("../../../docs/limits.md");
const CONTROL: &str = include_str!("../../../docs/control.md");
const SYSTEMD: &str = include_str!("../../../docs/systemd.md");
const SANDBOX: &str = include_str!("../../../docs/sandbox.md");
const EMBEDDING: &str = include_str!("../../../docs/embedding.md");

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
    let commands = [&[][..], &["ctl"], &["ctl", "add"], &["ctl", "set"]];
    let helps = commands.map(|command| run(command.iter().chain(&["--help"])).stdout);
    let helps = String::from_utf8(helps.concat()).unwrap();
    let mut known = options(&helps);
    let of_cargo = [
        "--release",
        "--workspace",
        "--no-deps",
        "--open",
        "--example",
    ];
    known.extend(of_cargo);
    known.extend(["--unix-socket", "--now"]); // curl's and systemctl's.
    for page in [
        README, HYBRID, SIBLINGS, LIMITS, EMBEDDING, CONTROL, SYSTEMD, SANDBOX,
    ] {
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
    assert_eq!(count, 7, "a quotation was lost or added");
}

/// The examples are right but for the directories, which are not there under these names.
#[test]
fn examples_are_accepted_up_to_their_directory() {
    let dir = support::directory();
    let file = dir.path().join("vms.toml");
    let toml = between(MANUAL, "```toml\n", "```").replace("/run/", "/missing/");
    fs::write(&file, toml).unwrap();
    refuses_only_the_directory(&["--config", file.to_str().unwrap()]);
    let pages = [(MANUAL, 2), (README, 3), (HYBRID, 0), (SIBLINGS, 2)];
    for (page, expected) in pages {
        let commands = commands(page);
        assert_eq!(commands.len(), expected, "{commands:?}");
        for command in commands {
            let command = command.replace("/run/", "/missing/");
            let command = command.replace("/tmp/", "/missing/");
            refuses_only_the_directory(&command.split_whitespace().collect::<Vec<_>>());
        }
    }
}

fn refuses_only_the_directory(args: &[&str]) {
    let said = String::from_utf8(run(args).stderr).unwrap();
    let directory = "its directory /missing cannot be used";
    assert!(said.contains(directory), "{args:?}: {said}");
}

/// The arguments of each command of the daemon in a page's shell examples.
fn commands(page: &str) -> Vec<String> {
    let blocks = page.split("```sh\n").skip(1);
    let lines = blocks.flat_map(|block| {
        let block = block.split("```").next().unwrap_or_default();
        let lines = block.replace("\\\n", " ");
        lines.lines().map(str::to_owned).collect::<Vec<_>>()
    });
    lines
        .filter_map(|line| {
            let (program, args) = line.split_once(' ')?;
            program
                .ends_with("vhost-user-vsock")
                .then(|| args.to_owned())
        })
        .collect()
}

/// An operator finds what the log says in the table of reasons.
#[test]
fn the_page_on_siblings_quotes_the_reasons_for_refusals() {
    for why in [
        Refusal::NoRoute,
        Refusal::NoSharedGroup,
        Refusal::NotUp,
        Refusal::TypeNotSupported,
        Refusal::TooManyConnections,
        Refusal::InUse,
        Refusal::ForgedSource,
    ] {
        assert!(SIBLINGS.contains(&format!("| `{why}` |")), "{why}");
    }
}

/// A link to a page of ours leads to a page, and to a heading in it.
#[test]
fn links_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let docs = root.join("docs");
    let pages = fs::read_dir(&docs)
        .unwrap()
        .map(|page| page.unwrap().path());
    for page in pages.chain([root.join("README.md"), root.join("CHANGELOG.md")]) {
        let text = fs::read_to_string(&page).unwrap();
        let links = text.split("](").skip(1);
        for link in links.map(|rest| rest.split(')').next().unwrap_or_default()) {
            if link.starts_with("https://") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() {
                page.clone()
            } else {
                page.parent().unwrap().join(file)
            };
            assert!(target.exists(), "{}: {link}", page.display());
            let is_there =
                || fs::read_to_string(&target).is_ok_and(|text| anchors(&text).contains(heading));
            assert!(
                heading.is_empty() || is_there(),
                "{}: {link}",
                page.display()
            );
        }
    }
}

/// What links to the headings of a page end with.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let words = line.trim_start_matches('#').trim().to_lowercase();
            words
                .replace(' ', "-")
                .replace(|c: char| !c.is_alphanumeric() && c != '-', "")
        })
        .collect()
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    text.split_once(start)
        .and_then(|(_, rest)| rest.split_once(end))
        .unwrap()
        .0
}
