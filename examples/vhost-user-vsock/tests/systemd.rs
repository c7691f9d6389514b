//! The service manager's side, played by the test: what it hears, and the sockets that it
//! opens; and the units.

#![allow(clippy::unwrap_used)] // Helpers fail the test, too.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::Signal;
use serde_json::json;
use support::http::{Control, vm};
use support::refusal::assert_refusal;
use support::{BINARY, Daemon, PATIENCE, directory, finish};
use vsock_testkit::{Guest, Setup};

/// What the daemon tells.
struct Manager(UnixDatagram);

impl Manager {
    fn new(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    fn hear(&self) -> String {
        let mut buffer = [0; 512];
        let length = self.0.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    /// Hears until something begins so.
    #[track_caller]
    fn wait_for(&self, start: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut heard = Vec::new();
        while Instant::now() < deadline {
            heard.push(self.hear());
            if heard.last().is_some_and(|last| last.starts_with(start)) {
                return heard.pop().unwrap();
            }
        }
        panic!("no {start}; instead: {heard:?}");
    }
}

#[test]
fn tells_of_its_life() {
    let dir = directory();
    let manager = Manager::new(&dir.path().join("notify"));
    let config = dir.path().join("vms");
    fs::create_dir(&config).unwrap();
    let control = Control(dir.path().join("control"));
    let mut command = Command::new(BINARY);
    command
        .arg("--config")
        .arg(&config)
        .arg("--control")
        .arg(&control.0);
    command.env("NOTIFY_SOCKET", dir.path().join("notify"));
    let daemon = Daemon::spawn(&mut command);
    assert_eq!(manager.hear(), "READY=1");
    UnixStream::connect(&control.0).unwrap();
    assert_eq!(manager.hear(), "STATUS=VMs: 0, running: 0");
    control.add(dir.path(), 3, "");
    assert_eq!(manager.hear(), "STATUS=VMs: 1, running: 0");
    let guest = Guest::start(dir.path().join("3.sock"), Setup::default()).unwrap();
    assert_eq!(manager.hear(), "STATUS=VMs: 1, running: 1");
    drop(guest);

    daemon.signal(Signal::HUP);
    let reloading = manager.wait_for("RELOADING=1\n");
    let (_, time) = reloading.split_once("MONOTONIC_USEC=").unwrap();
    assert!(time.parse::<u64>().unwrap() > 0);
    manager.wait_for("READY=1");
    assert_eq!(daemon.end(Signal::TERM), Some(0));
    manager.wait_for("STOPPING=1");
}

#[test]
fn tells_that_it_is_alive_as_often_as_is_wanted() {
    let dir = directory();
    let manager = Manager::new(&dir.path().join("notify"));
    let mut command = Command::new(BINARY);
    command.arg("--control").arg(dir.path().join("control"));
    command.env("NOTIFY_SOCKET", dir.path().join("notify"));
    command.env("WATCHDOG_USEC", "200000");
    let daemon = Daemon::start_command(&mut command);
    let start = Instant::now();
    for _ in 0..5 {
        manager.wait_for("WATCHDOG=1");
    }
    assert!(start.elapsed() >= Duration::from_millis(300), "too often");
    assert_eq!(daemon.end(Signal::TERM), Some(0));
}

#[test]
fn a_watchdog_for_another_process_is_none_of_ours() {
    let dir = directory();
    let manager = Manager::new(&dir.path().join("notify"));
    let mut command = Command::new(BINARY);
    command.arg("--control").arg(dir.path().join("control"));
    command.env("NOTIFY_SOCKET", dir.path().join("notify"));
    command
        .env("WATCHDOG_USEC", "1000")
        .env("WATCHDOG_PID", "1");
    let daemon = Daemon::start_command(&mut command);
    assert_eq!(daemon.end(Signal::TERM), Some(0));
    while manager.hear() != "STOPPING=1" {}
    manager.0.set_nonblocking(true).unwrap();
    assert!(manager.0.recv(&mut [0; 64]).is_err());
}

/// A command for the daemon that inherits these sockets by these names.
fn activated(sockets: &[(&str, &UnixListener)], args: &[&str]) -> Command {
    let mut script = String::from("exec ");
    let mut names = Vec::new();
    for (number, (name, socket)) in (3..).zip(sockets) {
        // Away from the numbers that they are to get.
        let high = fcntl_dupfd_cloexec(socket, 100).unwrap();
        fcntl_setfd(&high, FdFlags::empty()).unwrap();
        let from = high.as_raw_fd();
        script += &format!("{number}<&{from} {from}<&- ");
        std::mem::forget(high); // Inherited; closed with the test.
        names.push(*name);
    }
    let count = sockets.len();
    script += &format!(
        "; export LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES={}; exec \"$@\"",
        names.join(":")
    );
    let mut command = Command::new("bash");
    command.args(["-c", &script, "bash", BINARY]).args(args);
    command
}

#[test]
fn takes_the_sockets_that_were_opened_for_it() {
    let dir = directory();
    let name = dir.path().display();
    let [control, three, four] = ["control", "3.sock", "4.sock"]
        .map(|name| UnixListener::bind(dir.path().join(name)).unwrap());
    // Before the daemon is there.
    let early = UnixStream::connect(dir.path().join("4.sock")).unwrap();
    let three_by_option = format!("guest-cid=3,socket={name}/3.sock,uds-path={name}/3.vsock");
    let sockets = [("control", &control), ("vm3", &three), ("vm4", &four)];
    let daemon = Daemon::start_command(&mut activated(&sockets, &["--vm", &three_by_option]));
    drop((control, three, four));

    let control = Control(dir.path().join("control"));
    assert_eq!(
        control.get("/vms/3").json()["socket"],
        format!("{name}/3.sock")
    );
    // The fourth comes later, and its socket needs no path.
    let body = format!(r#"{{"uds_path": "{name}/4.vsock"}}"#);
    assert_eq!(control.ask("PUT", "/vms/4", &body).status, 201);
    assert_eq!(
        control.get("/vms/4").json()["socket"],
        format!("{name}/4.sock")
    );
    drop(early);
    for cid in [3, 4] {
        drop(Guest::start(dir.path().join(format!("{cid}.sock")), Setup::default()).unwrap());
    }
    // Removed and added again, it has its socket again.
    assert_eq!(control.ask("DELETE", "/vms/3", "").status, 204);
    assert!(dir.path().join("3.sock").exists());
    assert_eq!(
        control.ask("PUT", "/vms/3", &vm(dir.path(), 3, "")).status,
        201
    );
    drop(Guest::start(dir.path().join("3.sock"), Setup::default()).unwrap());
    let other = vm(dir.path(), 4, "").replace("4.sock", "other");
    assert_eq!(control.ask("DELETE", "/vms/4", "").status, 204);
    assert_eq!(
        control.ask("PUT", "/vms/4", &other).refusal(),
        (400, "invalid_setting".to_owned())
    );
    assert_eq!(daemon.end(Signal::TERM), Some(0));
    for name in ["control", "3.sock", "4.sock"] {
        assert!(
            dir.path().join(name).exists(),
            "{name} is the service manager's"
        );
    }
    assert!(!dir.path().join("3.vsock").exists());
}

#[test]
fn refuses_sockets_whose_names_say_nothing() {
    let dir = directory();
    let socket = UnixListener::bind(dir.path().join("a")).unwrap();
    let output = finish(&mut activated(
        &[("vhost-user-vsock.socket", &socket)],
        &["--control", "/c"],
    ));
    let words = [
        "LISTEN_FDNAMES=vhost-user-vsock.socket",
        "FileDescriptorName=control",
    ];
    assert_refusal(&output, &words.map(str::to_owned));
    let twice = [("control", &socket), ("control", &socket)];
    let output = finish(&mut activated(&twice, &[]));
    assert_refusal(&output, &["is there twice".to_owned()]);
}

/// It is the service manager's to say who may connect to a socket that it made, and the
/// daemon's to serve nobody but its own user and root there.
#[test]
fn tells_that_an_inherited_control_socket_stays_as_it_is() {
    let dir = directory();
    let path = dir.path().join("control");
    let listener = UnixListener::bind(&path).unwrap();
    let mode = fs::metadata(&path).unwrap().mode();
    let sockets = [("control", &listener)];
    let args = ["--control-mode=0606"];
    let daemon = Daemon::spawn(&mut activated(&sockets, &args));
    let log = daemon.wait_for_log("ready");
    let told = "--control-mode 0606: has no effect, since the service manager made the control";
    let warns = |line: &&String| line.contains("WARN") && line.contains(told);
    assert_eq!(log.iter().filter(warns).count(), 1, "{log:#?}");
    assert_eq!(fs::metadata(&path).unwrap().mode(), mode);
    assert_eq!(Control(path).get("/version").status, 200);
}

/// As the real one does it, where it is installed.
#[test]
fn works_with_the_service_managers_own_tool() {
    if Command::new("systemd-socket-activate")
        .arg("--version")
        .output()
        .is_err()
    {
        return;
    }
    let dir = directory();
    let control = Control(dir.path().join("control"));
    let mut command = Command::new("systemd-socket-activate");
    command
        .arg("-l")
        .arg(&control.0)
        .args(["--fdname=control", BINARY]);
    let daemon = Daemon::spawn(&mut command);
    daemon.wait_for_log("Listening on");
    assert_eq!(control.get("/vms").json(), json!({ "vms": [] }));
    assert_eq!(daemon.end(Signal::TERM), Some(0));
}

/// The units are what systemd understands, where it is installed.
#[test]
fn the_units_are_right() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd");
    let dir = directory();
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(&units).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let text = fs::read_to_string(units.join(&name)).unwrap();
        let text = text.replace("/usr/bin/vhost-user-vsock", BINARY);
        fs::write(dir.path().join(&name), text).unwrap();
        files.insert(name.replace('@', "@vm3"));
    }
    let expected = [
        "vhost-user-vsock.service",
        "vhost-user-vsock.socket",
        "vhost-user-vsock.tmpfiles",
        "vhost-user-vsock@vm3.service",
        "vhost-user-vsock@vm3.socket",
    ];
    assert_eq!(files, expected.map(str::to_owned).into());
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        return;
    }
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no"]).current_dir(dir.path());
    let units = files.iter().filter(|name| !name.ends_with(".tmpfiles"));
    let output = finish(command.args(units.map(|name| format!("./{name}"))));
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}
