//! Who may connect to the daemon's sockets is what the operator says, and nobody else.

#![allow(clippy::unwrap_used)] // Helpers fail the test, too.

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use rustix::process::{Signal, getegid, geteuid};
use serde_json::json;
use support::http::{Control, vm};
use support::refusal::refused;
use support::{BINARY, Daemon, directory, run};
use vsock_testkit::host::Service;
use vsock_testkit::{Error, Guest, Setup};

/// The permission bits of what is at a path.
#[track_caller]
fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// The value of `--vm` for a VM whose sockets are named by its CID.
fn option(dir: &Path, cid: u32, more: &str) -> String {
    let dir = dir.display();
    format!("--vm=guest-cid={cid},socket={dir}/{cid}.sock,uds-path={dir}/{cid}.vsock{more}")
}

#[test]
fn sockets_are_for_the_daemons_user_alone() {
    let dir = directory();
    let control = dir.path().join("control");
    let _daemon = Daemon::start([
        option(dir.path(), 3, ""),
        format!("--control={}", control.display()),
    ]);
    for name in ["3.sock", "3.vsock", "control"] {
        assert_eq!(mode(&dir.path().join(name)), 0o600, "{name}");
    }
}

/// Whatever mask the daemon was started with, and also when it has confined itself.
#[test]
fn sockets_have_the_modes_they_are_given() {
    let dir = directory();
    let at = |name: &str| dir.path().join(name);
    let mut command = Command::new("sh");
    command
        .args(["-c", "umask 077; exec \"$@\"", "sh", BINARY])
        .args(["--socket-mode=0660", "--control-mode=0620"])
        .arg(option(dir.path(), 3, ""))
        .arg(option(dir.path(), 4, ",socket-mode=0602"))
        .arg(format!("--control={}", at("control").display()));
    let daemon = Daemon::spawn(&mut command);
    let log = daemon.wait_for_log("ready");
    let warns = |line: &&String| line.contains("WARN") && line.contains("sockets of CID 4");
    assert_eq!(log.iter().filter(warns).count(), 1, "{log:#?}");
    let control = Control(at("control"));
    let added = control.add(dir.path(), 5, "");
    assert_eq!(added["socket_mode"], "0660");
    control.add(dir.path(), 6, r#", "socket_mode": "640""#);
    for (name, expected) in [
        ("3.sock", 0o660),
        ("3.vsock", 0o660),
        ("4.sock", 0o602),
        ("4.vsock", 0o602),
        ("5.sock", 0o660),
        ("6.vsock", 0o640),
        ("control", 0o620),
    ] {
        assert_eq!(mode(&at(name)), expected, "{name}");
    }
    assert_eq!(daemon.end(Signal::TERM), Some(0));
    assert!(fs::read_dir(dir.path()).unwrap().next().is_none());
}

/// Root gives them to others; anybody else can give them to itself only.
#[test]
fn sockets_have_the_owners_they_are_given() {
    let dir = directory();
    let at = |name: &str| dir.path().join(name);
    let own = (geteuid().as_raw(), getegid().as_raw());
    let [first, second] = match own.0 {
        0 => [(65534, 65533), (65532, 65531)],
        _ => [own, own],
    };
    let owner = |(user, group): (u32, u32)| format!("{user}:{group}");
    let daemon = Daemon::start([
        format!("--socket-owner={}", owner(first)),
        format!("--control={}", at("control").display()),
        option(dir.path(), 3, ""),
        option(dir.path(), 4, &format!(",socket-owner=:{}", own.1)),
    ]);
    let control = Control(at("control"));
    let more = format!(r#", "socket_owner": "{}""#, owner(second));
    let added = control.add(dir.path(), 5, &more);
    assert_eq!(added["socket_owner"], owner(second));
    for (name, expected) in [
        ("3.sock", first),
        ("3.vsock", first),
        ("4.sock", own),
        ("5.sock", second),
        ("5.vsock", second),
        ("control", own),
    ] {
        let metadata = fs::symlink_metadata(at(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), expected, "{name}");
    }
    let of_group = control.get("/vms/4").json()["socket_owner"].clone();
    assert_eq!(of_group, format!(":{}", own.1));
    assert_eq!(daemon.end(Signal::TERM), Some(0));
    assert!(fs::read_dir(dir.path()).unwrap().next().is_none());
}

#[test]
fn refuses_modes_and_owners_that_cannot_be() {
    let dir = directory();
    let vm = "--vm=guest-cid=3,socket=D/3.sock,uds-path=D/3.vsock";
    for (args, words) in [
        (
            vec!["--socket-mode=9999", vm],
            ["--socket-mode 9999: is no mode", "such as 0660"],
        ),
        (
            vec!["--socket-mode=0500", vm],
            ["--socket-mode 0500: lets nobody connect", "such as 0660"],
        ),
        (
            vec!["--control=D/c", "--control-mode=x"],
            ["--control-mode x: is no mode", "such as 0660"],
        ),
        (
            vec!["--control=D/c", "--control-owner=nobody-here"],
            [
                "--control-owner nobody-here: 'nobody-here' is no user",
                "number",
            ],
        ),
        (
            vec!["--socket-owner=+0", vm],
            ["--socket-owner +0: '+0' is no user", "number"],
        ),
        (
            vec!["--socket-owner=:no-group", vm],
            ["--socket-owner :no-group: 'no-group' is no group", "number"],
        ),
    ] {
        refused(dir.path(), &args, &words);
    }
    let one = format!("{vm},socket-owner=nobody-here");
    let setting = "--vm socket-owner=nobody-here: 'nobody-here' is no user";
    refused(dir.path(), &[&one], &[setting]);
    let text = format!(
        "socket_mode = \"0660\"\n[[vm]]\ncid = 3\nsocket = \"{0}/3.sock\"\nuds_path = \"{0}/3.vsock\"\n\
         socket_mode = \"888\"\n",
        dir.path().display()
    );
    fs::write(dir.path().join("vms.toml"), text).unwrap();
    refused(
        dir.path(),
        &["--config", "D/vms.toml"],
        &["vms.toml:6: socket_mode = 888: is no mode"],
    );
    refused(
        dir.path(),
        &["--config", "D/vms.toml", "--socket-mode=0600"],
        &["vms.toml:1: socket_mode = 0660: there is also --socket-mode 0600; keep one of them"],
    );
}

#[test]
fn refuses_to_say_who_may_connect_to_no_control_socket() {
    let dir = directory();
    let vm = option(Path::new("D"), 3, "");
    let words = |setting: &str| format!("{setting}: there is no control socket; name one by");
    let owner = format!(":{}", getegid().as_raw());
    for (key, value) in [("--control-mode", "0660"), ("--control-owner", &owner)] {
        let args = [vm.as_str(), &format!("{key}={value}")];
        refused(dir.path(), &args, &[&words(&format!("{key} {value}"))]);
    }
    let text = format!(
        "[[vm]]\ncid = 3\nsocket = \"{0}/3.sock\"\nuds_path = \"{0}/3.vsock\"\n",
        dir.path().display()
    );
    for (key, value) in [("control_mode", "0660"), ("control_owner", &owner)] {
        let file = format!("\n{key} = \"{value}\"\n{text}");
        fs::write(dir.path().join("vms.toml"), file).unwrap();
        let words = words(&format!("vms.toml:2: {key} = {value}"));
        refused(dir.path(), &["--config", "D/vms.toml"], &[&words]);
        // Whoever starts the daemon may name the control socket.
        let output = run([Path::new("check"), &dir.path().join("vms.toml")]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
}

/// All that the options say of the whole daemon.
#[test]
fn a_file_says_what_the_options_do_once() {
    let dir = directory();
    for (key, value, wrong, problem) in [
        ("socket_mode", "0600", "\"999\"", "is no mode"),
        ("socket_owner", ":0", "\":x-\"", "'x-' is no group"),
        ("control_mode", "0600", "\"999\"", "is no mode"),
        ("control_owner", ":0", "\":x-\"", "'x-' is no group"),
        ("max_guests", "9", "0", "is out of bounds"),
        ("busy_poll_us", "9", "1001", "is out of bounds"),
    ] {
        let file = format!("control = \"/c\"\n{key} = {wrong}\n");
        fs::write(dir.path().join("vms.toml"), file).unwrap();
        let setting = format!("vms.toml:2: {key} = {}: ", wrong.trim_matches('"'));
        let words = format!("{setting}{problem}");
        refused(dir.path(), &["check", "D/vms.toml"], &[&words]);
        let option = format!("--{}", key.replace('_', "-"));
        let words = format!("{setting}there is also {option} {value}; keep one of them");
        let option = format!("{option}={value}");
        refused(dir.path(), &["--config", "D/vms.toml", &option], &[&words]);
    }
}

/// It could not, and says so before it begins.
#[test]
fn a_daemon_that_knew_of_no_owner_gives_nothing_away_later() {
    let dir = directory();
    let path = dir.path().join("control");
    let _daemon = Daemon::start([format!("--control={}", path.display())]);
    let body = vm(dir.path(), 3, r#", "socket_owner": "0""#);
    let answer = Control(path).ask("PUT", "/vms/3", &body);
    assert_eq!(answer.refusal(), (400, "invalid_setting".to_owned()));
    let text = answer.json().to_string();
    assert!(
        text.contains("socket_owner 0") && text.contains("--socket-owner"),
        "{text}"
    );
    assert!(!dir.path().join("3.sock").exists());
}

#[test]
fn the_configuration_changes_a_vms_mode_and_not_the_daemons() {
    let dir = directory();
    let name = dir.path().display();
    let file = dir.path().join("vms.toml");
    let write = |all: &str, more: &str| {
        let text = format!(
            "socket_mode = \"{all}\"\ncontrol = \"{name}/control\"\n[[vm]]\ncid = 3\n\
             socket = \"{name}/3.sock\"\nuds_path = \"{name}/3.vsock\"\n{more}"
        );
        fs::write(&file, text).unwrap();
    };
    write("0660", "");
    let _daemon = Daemon::start([Path::new("--config"), &file]);
    let control = Control(dir.path().join("control"));
    assert_eq!(mode(&dir.path().join("3.sock")), 0o660);
    write("0660", "socket_mode = \"0620\"\n");
    let changed = control.ask("POST", "/reload", "").json();
    assert_eq!(changed["changed"], json!([3]));
    assert_eq!(mode(&dir.path().join("3.sock")), 0o620);
    write("0600", "socket_mode = \"0620\"\n");
    let refused = control.ask("POST", "/reload", "");
    assert_eq!(refused.refusal(), (409, "conflict".to_owned()));
    let refused = control.ask("PATCH", "/vms/3", r#"{"socket_mode": "0600"}"#);
    assert_eq!(refused.refusal(), (400, "invalid_setting".to_owned()));
}

/// Whoever may put links beside a guest's socket has the daemon go where they lead, but not
/// to what is the daemon's own: it is let in everywhere.
#[test]
fn no_link_leads_a_guest_to_another_guests_sockets_or_to_the_daemons_control() {
    let dir = directory();
    let at = |name: &str| dir.path().join(name);
    let _daemon = Daemon::start([
        option(dir.path(), 3, ""),
        option(dir.path(), 4, ""),
        format!("--control={}", at("control").display()),
        "--control-mode=0666".to_owned(),
    ]);
    let _service = Service::echo(&at("elsewhere"), 1).unwrap();
    let [own, allowed] = [80..84, 84..85];
    let targets = ["4.vsock", "4.sock", "control", "3.vsock", "elsewhere_1"];
    for (port, target) in own.clone().chain(allowed.clone()).zip(targets) {
        symlink(at(target), at(&format!("3.vsock_{port}"))).unwrap();
    }
    let mut guest = Guest::start(at("3.sock"), Setup::default()).unwrap();
    for port in own {
        let refused = guest.connect(port);
        assert!(
            matches!(refused, Err(Error::Refused { .. })),
            "{port}: {refused:?}"
        );
    }
    for port in allowed {
        let stream = guest.connect(port).unwrap();
        assert_eq!(guest.exchange(stream, b"hello", 5).unwrap(), b"hello");
    }
    let control = Control(at("control"));
    assert_eq!(
        control.get("/vms/3").json()["counters"]["refused_requests"],
        4
    );
    assert_eq!(control.get("/vms/4").json()["state"], "waiting");
}

#[test]
fn serves_no_more_vms_than_it_is_to() {
    let dir = directory();
    let path = dir.path().join("control");
    let _daemon = Daemon::start([
        format!("--control={}", path.display()),
        "--max-guests=2".to_owned(),
        option(dir.path(), 3, ""),
    ]);
    let control = Control(path);
    control.add(dir.path(), 4, "");
    let answer = control.ask("PUT", "/vms/5", &vm(dir.path(), 5, ""));
    assert_eq!(answer.refusal(), (409, "too_many_vms".to_owned()));
    let text = answer.json().to_string();
    assert!(
        text.contains("max-guests 2") && text.contains("--max-guests"),
        "{text}"
    );
    assert!(!dir.path().join("5.sock").exists());
    assert_eq!(control.ask("DELETE", "/vms/4", "").status, 204);
    control.add(dir.path(), 5, "");
}

#[test]
fn refuses_more_vms_than_it_is_to_serve() {
    let dir = directory();
    let vms = [3, 4].map(|cid| option(Path::new("D"), cid, ""));
    let [one, two] = [vms[0].as_str(), vms[1].as_str()];
    let words = [
        "--vm guest-cid=4: would be one VM more than max-guests 1",
        "--max-guests",
    ];
    refused(dir.path(), &["--max-guests=1", one, two], &words);
}

#[test]
fn refuses_numbers_of_the_process_that_are_out_of_bounds() {
    let dir = directory();
    let vm = option(Path::new("D"), 3, "");
    let most = ["0", "65537", "x", "-1", "+2"].map(|wrong| ("--max-guests", wrong, "1 to 65536"));
    let poll = ["1001", "1ms", "-1"].map(|wrong| ("--busy-poll-us", wrong, "0 to 1000"));
    for (key, wrong, bounds) in most.into_iter().chain(poll) {
        let words = [
            format!("{key} {wrong}: is out of bounds"),
            bounds.to_owned(),
        ];
        let words = words.each_ref().map(String::as_str);
        refused(dir.path(), &[&format!("{key}={wrong}"), &vm], &words);
    }
}
