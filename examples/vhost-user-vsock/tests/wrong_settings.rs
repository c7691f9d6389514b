//! A wrong setting is told in one line that names the option, the value and the remedy,
//! with exit code 2, however it was written; nothing was created and nothing is removed.

#![allow(clippy::unwrap_used)] // Helpers fail the test, too.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use support::directory;
use support::refusal::refused;

/// A setting of the single VM that is wrong, and what the refusal says; the table below
/// holds for all three ways to write it.
struct WrongSetting {
    key: &'static str,
    value: &'static str,
    words: &'static [&'static str],
}

const fn wrong(
    key: &'static str,
    value: &'static str,
    words: &'static [&'static str],
) -> WrongSetting {
    WrongSetting { key, value, words }
}

const WRONG_SETTINGS: &[WrongSetting] = &[
    wrong("guest-cid", "0", &["reserved", "3 to 4294967294"]),
    wrong("guest-cid", "1", &["reserved", "3 to 4294967294"]),
    wrong("guest-cid", "2", &["reserved", "3 to 4294967294"]),
    wrong("guest-cid", "4294967295", &["reserved", "3 to 4294967294"]),
    wrong("guest-cid", "4294967296", &["too large", "3 to 4294967294"]),
    wrong("queue-size", "0", &["power of two up to 1024"]),
    wrong("queue-size", "100", &["power of two up to 1024"]),
    wrong("queue-size", "2048", &["power of two up to 1024"]),
    wrong("queue-size", "65537", &["power of two up to 1024"]),
    wrong("tx-buffer-size", "0", &["4096 to"]),
    wrong("tx-buffer-size", "4294967295", &["choose from"]),
    wrong("max-connections", "0", &["choose from 1 to 65536"]),
    wrong("max-connections", "65537", &["choose from 1 to 65536"]),
    wrong("max-backlog", "65535", &["choose from 65536 to"]),
    wrong("max-backlog", "1073741825", &["to 1073741824 bytes"]),
    wrong("max-buffered", "262143", &["choose from 262144 to"]),
    wrong("max-buffered", "68719476737", &["to 68719476736 bytes"]),
    wrong("max-handshakes", "0", &["choose from 1 to 4096"]),
    wrong("max-handshakes", "4097", &["choose from 1 to 4096"]),
    wrong(
        "max-bytes-per-second",
        "65535",
        &["choose from 65536 to", "or 0 for any amount"],
    ),
    wrong(
        "max-bytes-per-second",
        "1099511627777",
        &["to 1099511627776 bytes"],
    ),
    wrong("max-requests-per-second", "1000001", &["from 1 to 1000000"]),
    wrong("host-cids", "0", &["0 is reserved", "from 3 to"]),
    wrong(
        "host-cids",
        "4+2",
        &["2 is reserved", "always means the host"],
    ),
    wrong("host-cids", "4294967295", &["reserved", "from 3 to"]),
    wrong("host-cids", "4+4294967296", &["too large", "from 3 to"]),
    wrong("host-cids", "4+3", &["3 is the guest's own CID", "another"]),
    wrong(
        "socket",
        "D/missing/socket",
        &["D/missing", "No such file", "create it"],
    ),
    wrong("socket", "D/file/socket", &["D/file", "Not a directory"]),
    wrong(
        "socket",
        "D/file",
        &["regular file", "never removed", "choose another path"],
    ),
    wrong(
        "socket",
        "D/directory",
        &["a directory", "choose another path"],
    ),
    wrong(
        "socket",
        "D/link",
        &["symbolic link", "choose another path"],
    ),
    wrong(
        "socket",
        "D/live",
        &["in use", "stop that program or choose another path"],
    ),
    wrong(
        "socket",
        "D/vsock",
        &["is also the path of", "give each socket its own"],
    ),
    wrong(
        "socket",
        "D/./vsock",
        &["is also the path of", "give each socket its own"],
    ),
    wrong("socket", "D/vsock_1024", &["port 1024", "choose a path"]),
    wrong(
        "uds-path",
        "D/missing/vsock",
        &["D/missing", "No such file", "create it"],
    ),
    wrong("uds-path", "D/file", &["regular file", "never removed"]),
    wrong("uds-path", "D/live", &["in use"]),
    wrong("groups", "", &["'' is no group's name", "letters"]),
    wrong("groups", "a++b", &["'' is no group's name", "letters"]),
    wrong("groups", "a+b c", &["'b c' is no group's name", "letters"]),
    wrong(
        "groups",
        "a123456789b123456789c123456789d123456789e123456789f123456789g1234",
        &["is no group's name", "at most 64"],
    ),
];

/// What the paths of the tables refer to.
fn furnish(dir: &Path) -> UnixListener {
    fs::write(dir.join("file"), "precious").unwrap();
    fs::create_dir(dir.join("directory")).unwrap();
    symlink("file", dir.join("link")).unwrap();
    UnixListener::bind(dir.join("live")).unwrap()
}

/// The settings of a VM that is right but for one, as pairs.
fn settings_with(wrong: &WrongSetting) -> Vec<(&'static str, &'static str)> {
    let right = [
        ("guest-cid", "3"),
        ("socket", "D/socket"),
        ("uds-path", "D/vsock"),
    ];
    let others = right.into_iter().filter(|(key, _)| *key != wrong.key);
    others.chain([(wrong.key, wrong.value)]).collect()
}

#[test]
fn refuses_each_wrong_option() {
    let dir = directory();
    let _live = furnish(dir.path());
    for wrong in WRONG_SETTINGS {
        let args: Vec<_> = settings_with(wrong)
            .iter()
            .flat_map(|(key, value)| [format!("--{key}"), (*value).to_owned()])
            .collect();
        let setting = format!("--{} {}", wrong.key, wrong.value);
        let words = [&[setting.as_str()], wrong.words].concat();
        refused(
            dir.path(),
            &args.iter().map(String::as_str).collect::<Vec<_>>(),
            &words,
        );
    }
}

#[test]
fn refuses_each_wrong_key_of_a_vm_option() {
    let dir = directory();
    let _live = furnish(dir.path());
    for wrong in WRONG_SETTINGS {
        let pairs = settings_with(wrong);
        let text: Vec<_> = pairs
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let setting = format!("--vm {}={}", wrong.key, wrong.value);
        let words = [&[setting.as_str()], wrong.words].concat();
        refused(dir.path(), &["--vm", &text.join(",")], &words);
    }
}

#[test]
fn refuses_each_wrong_key_of_a_file() {
    let dir = directory();
    let _live = furnish(dir.path());
    let name = dir.path().to_str().unwrap();
    for wrong in WRONG_SETTINGS {
        let settings = settings_with(wrong);
        let lines = settings.iter().map(|&(key, value)| {
            let value = match key {
                "socket" | "uds-path" => format!("\"{value}\""),
                "groups" => format!("[\"{}\"]", value.replace('+', "\", \"")),
                "host-cids" => format!("[{}]", value.replace('+', ", ")),
                _ => value.to_owned(),
            };
            format!("{} = {value}\n", key.replace('-', "_"))
        });
        let text = format!("[[vm]]\n{}", lines.collect::<String>());
        fs::write(
            dir.path().join("vms.toml"),
            text.replace("D/", &format!("{name}/")),
        )
        .unwrap();
        let place = settings.iter().position(|(key, _)| *key == wrong.key);
        let line = place.unwrap() + 2;
        let key = wrong.key.replace('-', "_");
        let setting = format!("D/vms.toml:{line}: {key} = {}", wrong.value);
        let words = [&[setting.as_str()], wrong.words].concat();
        refused(dir.path(), &["--config", "D/vms.toml"], &words);
    }
}

#[test]
fn refuses_what_is_no_number() {
    let dir = directory();
    for key in [
        "guest-cid",
        "queue-size",
        "tx-buffer-size",
        "max-connections",
        "max-backlog",
        "max-buffered",
        "max-handshakes",
        "max-bytes-per-second",
        "max-requests-per-second",
    ] {
        for value in [
            "",
            "three",
            "-1",
            "+-1",
            "+4",
            "0x3",
            "3M",
            "18446744073709551616",
        ] {
            let option = format!("--{key}={value}");
            let rest = ["--socket", "D/socket", "--uds-path", "D/vsock"];
            let setting = format!("--{key} {value}");
            let words = [setting.as_str(), "is not a number", "decimal digits"];
            refused(
                dir.path(),
                &[&[option.as_str()], &rest[..]].concat(),
                &words,
            );
            let setting = format!("--vm {key}={value}");
            let words = [setting.as_str(), "is not a number", "decimal digits"];
            refused(dir.path(), &["--vm", &format!("{key}={value}")], &words);
        }
    }
}

#[test]
fn refuses_a_list_in_which_something_is_no_number() {
    let dir = directory();
    for (value, part) in [
        ("", ""),
        ("3+", ""),
        ("3+x", "x"),
        ("3,5", "3,5"),
        ("-1", "-1"),
    ] {
        let option = format!("--host-cids={value}");
        let setting = format!("--host-cids {value}: '{part}' is not a number");
        refused(dir.path(), &[&option], &[&setting, "'+' between numbers"]);
    }
    let setting = "--vm host-cids=3+x: 'x' is not a number";
    refused(dir.path(), &["--vm", "host-cids=3+x"], &[setting]);
}

#[test]
fn refuses_paths_that_leave_no_room_for_a_port() {
    let dir = directory();
    let name = |length: usize| {
        format!(
            "D/{}",
            "s".repeat(length - dir.path().as_os_str().len() - 1)
        )
    };
    for (socket, uds_path, says) in [
        (
            name(108),
            name(96),
            "is 108 bytes long; choose a path of at most 107 bytes",
        ),
        (
            name(107),
            name(97),
            "is 97 bytes long; choose a path of at most 96 bytes",
        ),
    ] {
        let args = [
            "--guest-cid",
            "3",
            "--socket",
            &socket,
            "--uds-path",
            &uds_path,
        ];
        refused(dir.path(), &args, &[says]);
    }
}

/// Finding out that a socket is in use must not look like a frontend or a client to the
/// program that uses it.
#[test]
fn does_not_disturb_the_owner_of_a_live_socket() {
    let dir = directory();
    let live = UnixListener::bind(dir.path().join("live")).unwrap();
    let args = [
        "--guest-cid",
        "3",
        "--socket",
        "D/live",
        "--uds-path",
        "D/vsock",
    ];
    refused(dir.path(), &args, &["in use"]);
    // The first connection that the owner sees is this one.
    let _client = UnixStream::connect(dir.path().join("live")).unwrap();
    live.accept().unwrap();
    live.set_nonblocking(true).unwrap();
    assert!(live.accept().is_err());
}
