//! Operators' mistakes: each is told in one line that names the option, the value and the
//! remedy, with exit code 2, before anything was created, and nothing is ever removed.

#![allow(clippy::unwrap_used)] // Helpers fail the test, too.

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use support::{BINARY, directory, finish, listing, run};

/// Runs the daemon with `args`, in which `D` stands for `dir`, and expects the refusal to
/// contain each of `words`, in which it does too.
fn refused(dir: &Path, args: &[&str], words: &[&str]) {
    let name = dir.to_str().unwrap();
    let args: Vec<_> = args
        .iter()
        .map(|arg| arg.replace("D/", &format!("{name}/")))
        .collect();
    let words: Vec<_> = words
        .iter()
        .map(|word| word.replace("D/", &format!("{name}/")))
        .collect();
    let before = listing(dir);
    let output = run(&args);
    assert_refusal(&output, &words);
    assert_eq!(listing(dir), before, "{args:?} changed the directory");
}

fn assert_refusal(output: &Output, words: &[String]) {
    let line = str::from_utf8(&output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{line}");
    assert_eq!(line.matches('\n').count(), 1, "not one line: {line}");
    assert!(
        line.starts_with("vhost-user-vsock: ") && line.ends_with('\n'),
        "{line}"
    );
    assert!(output.stdout.is_empty(), "{output:?}");
    for word in words {
        assert!(line.contains(word), "no '{word}' in: {line}");
    }
}

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
        let lines = settings_with(wrong).into_iter().map(|(key, value)| {
            let value = match key {
                "socket" | "uds-path" => format!("\"{value}\""),
                "groups" => format!("[\"{}\"]", value.replace('+', "\", \"")),
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
        let setting = format!(
            "vms.toml: [[vm]] 1: {} = {}",
            wrong.key.replace('-', "_"),
            wrong.value
        );
        let words = [&[setting.as_str()], wrong.words].concat();
        refused(dir.path(), &["--config", "D/vms.toml"], &words);
    }
}

#[test]
fn refuses_what_is_no_number() {
    let dir = directory();
    for key in ["guest-cid", "queue-size", "tx-buffer-size"] {
        for value in [
            "",
            "three",
            "-1",
            "+-1",
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

const VM_3: &str = "guest-cid=3,socket=D/3.sock,uds-path=D/3.vsock";

#[test]
fn refuses_vms_in_each_others_way() {
    let dir = directory();
    let table: &[(&str, &[&str])] = &[
        (
            "guest-cid=3,socket=D/4.sock,uds-path=D/4.vsock",
            &["--vm guest-cid=3: is another VM's CID", "a CID of its own"],
        ),
        (
            "guest-cid=4,socket=D/3.sock,uds-path=D/4.vsock",
            &[
                "--vm socket=D/3.sock: is also the path of --vm socket=D/3.sock",
                "its own",
            ],
        ),
        (
            "guest-cid=4,socket=D/../3.sock,uds-path=D/4.vsock",
            &["--vm socket=D/../3.sock: is also the path of", "its own"],
        ),
        (
            "guest-cid=4,socket=D/4.sock,uds-path=D/3.vsock",
            &[
                "--vm uds-path=D/3.vsock: is also the path of --vm uds-path=D/3.vsock",
                "its own",
            ],
        ),
        (
            "guest-cid=4,socket=D/3.vsock,uds-path=D/4.vsock",
            &[
                "--vm socket=D/3.vsock: is also the path of --vm uds-path=D/3.vsock",
                "its own",
            ],
        ),
        (
            "guest-cid=4,socket=D/4.sock,uds-path=D/3.vsock_4",
            &["--vm uds-path=D/3.vsock_4: is where port 4 of --vm uds-path=D/3.vsock leads"],
        ),
    ];
    for (vm, words) in table {
        // `D/../` must lead back to the directory.
        let back = format!("/../{}/", dir.path().file_name().unwrap().to_str().unwrap());
        let vm = vm.replace("D/../", &format!("D{back}"));
        let words: Vec<_> = words
            .iter()
            .map(|word| word.replace("D/../", &format!("D{back}")))
            .collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        refused(dir.path(), &["--vm", VM_3, "--vm", &vm], &words);
    }
}

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
            &["vms.toml: line 2", "docs/options.md"],
        ),
        (
            "[[vm]]\nguest_cid = 3\nguest-cid = 3\n",
            &["line 3", "unknown field `guest-cid`"],
        ),
        (
            "[[vms]]\n",
            &["line 1", "unknown field `vms`", "expected `vm`"],
        ),
        (
            "[[vm]]\nguest_cid = \"3\"\n",
            &["line 2", "\"3\"", "docs/options.md"],
        ),
        (
            "[[vm]]\nguest_cid = -3\n",
            &["line 2", "-3", "docs/options.md"],
        ),
        (
            "[[vm]]\ngroups = \"a+b\"\n",
            &["line 2", "\"a+b\"", "docs/options.md"],
        ),
        (
            "[[vm]]\nguest_cid = 3\nguest_cid = 3\n",
            &["line 3", "duplicate key"],
        ),
        (
            "[[vm]]\nguest_cid = 3\n",
            &["[[vm]] 1", "missing", "add uds_path = \"/run"],
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
    for name in ["missing", "directory", "binary"] {
        let path = format!("D/{name}");
        let setting = format!("--config {path}");
        refused(
            dir.path(),
            &["--config", &path],
            &[&setting, "cannot be read", "readable"],
        );
    }
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

#[test]
fn refuses_a_descriptor_that_does_not_listen() {
    let dir = directory();
    for (fd, says) in [
        ("0", "is not a listening UNIX"),
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

/// The last VM's mistake is told before the first VM's sockets are created.
#[test]
fn creates_nothing_for_the_vms_before_the_mistake() {
    let dir = directory();
    let second = "guest-cid=2,socket=D/2.sock,uds-path=D/2.vsock";
    refused(
        dir.path(),
        &["--vm", VM_3, "--vm", second],
        &["--vm guest-cid=2"],
    );
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
