//! The configuration: checked, and loaded again while VMs are served.

#![allow(clippy::unwrap_used)] // Helpers fail the test, too.

mod support;

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::http::Control;
use support::refusal::refused;
use support::{BINARY, Daemon, directory, listing, run};
use vsock_testkit::host::Service;
use vsock_testkit::{Guest, Setup};

/// A `[[vm]]` table.
fn table(dir: &Path, cid: u32, more: &str) -> String {
    let dir = dir.display();
    format!(
        "[[vm]]\ncid = {cid}\nsocket = \"{dir}/{cid}.sock\"\nuds_path = \"{dir}/{cid}.vsock\"\n\
         {more}\n"
    )
}

/// The CIDs that are served, with their groups.
fn served(control: &Control) -> Vec<(u64, Value)> {
    let vms = control.get("/vms").json();
    let vms = vms["vms"].as_array().unwrap().iter();
    vms.map(|vm| (vm["cid"].as_u64().unwrap(), vm["groups"].clone()))
        .collect()
}

/// A daemon on a directory of files, one for each VM.
fn daemon_on_directory(dir: &Path, vms: &[(u32, &str)]) -> (Daemon, Control) {
    let config = dir.join("vms");
    fs::create_dir(&config).unwrap();
    for (cid, more) in vms {
        write(dir, *cid, more);
    }
    let control = dir.join("control");
    let daemon = Daemon::start([
        Path::new("--config"),
        &config,
        Path::new("--control"),
        &control,
    ]);
    (daemon, Control(control))
}

fn write(dir: &Path, cid: u32, more: &str) {
    let file = dir.join("vms").join(format!("{cid}.toml"));
    fs::write(file, table(dir, cid, more)).unwrap();
}

fn remove(dir: &Path, cid: u32) {
    fs::remove_file(dir.join("vms").join(format!("{cid}.toml"))).unwrap();
}

#[test]
fn a_signal_applies_the_difference_and_leaves_the_rest_alone() {
    let dir = directory();
    let vms = [(3, ""), (4, ""), (5, "")];
    let (daemon, control) = daemon_on_directory(dir.path(), &vms);
    let service = Service::echo(&dir.path().join("3.vsock"), 80).unwrap();
    let mut three = Guest::start(dir.path().join("3.sock"), Setup::default()).unwrap();
    let stream = three.connect(80).unwrap();
    three.exchange(stream, b"before", 6).unwrap();
    let untouched = UnixStream::connect(dir.path().join("4.sock")).unwrap();

    write(dir.path(), 4, "groups = [\"a\"]\n");
    remove(dir.path(), 5);
    write(dir.path(), 6, "");
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("loaded again, VMs added: 1, removed: 1, changed: 1");
    let expected = [(3, json!([])), (4, json!(["a"])), (6, json!([]))];
    assert_eq!(served(&control), expected);
    three.exchange(stream, b"after", 5).unwrap();
    untouched.set_nonblocking(true).unwrap();
    let waits = std::io::Read::read(&mut &untouched, &mut [0]).unwrap_err();
    assert_eq!(waits.kind(), std::io::ErrorKind::WouldBlock);
    assert!(!dir.path().join("5.sock").exists());
    drop(service);
    assert_eq!(daemon.end(Signal::TERM), Some(0));
    let left = listing(dir.path());
    assert_eq!(
        left.len(),
        1,
        "more than the directory with the files: {left:?}"
    );
}

#[test]
fn does_nothing_at_all_if_anything_is_wrong() {
    let dir = directory();
    let (daemon, control) = daemon_on_directory(dir.path(), &[(3, ""), (4, "")]);
    let before = (served(&control), listing(dir.path()));
    remove(dir.path(), 3);
    write(dir.path(), 4, "groups = [\"a\"]");
    write(dir.path(), 5, "max_connections = 0");
    daemon.signal(Signal::HUP);
    let line = daemon.wait_for_log("not loaded again").pop().unwrap();
    assert!(line.contains("5.toml:5: max_connections = 0"), "{line}");
    assert!(line.contains("choose from 1 to 65536"), "{line}");
    let refusal = control.ask("POST", "/reload", "");
    assert_eq!(refusal.refusal(), (400, "invalid_setting".to_owned()));
    assert_eq!((served(&control), listing(dir.path())), before);
}

/// Another program has put a socket of its own where one of the daemon's was, which is found
/// when the VM is to have its socket anew, and again when it is to have the former one.
#[test]
fn tells_what_could_not_be_taken_back() {
    let dir = directory();
    let (daemon, control) = daemon_on_directory(dir.path(), &[(3, ""), (4, ""), (5, "")]);
    let path = dir.path().join("3.sock");
    fs::remove_file(&path).unwrap();
    let foreign = UnixListener::bind(&path).unwrap();
    for cid in [3, 4] {
        write(dir.path(), cid, "queue_size = 64");
    }
    write(dir.path(), 5, "groups = [\"a\"]");
    daemon.signal(Signal::HUP);
    let line = daemon.wait_for_log("not loaded again").pop().unwrap();
    for words in [
        "all is as it was, but for this: CID 4 was away for a moment, CID 3 is no longer served (",
        "; remove the cause and load the configuration again",
    ] {
        assert!(line.contains(words), "no '{words}' in: {line}");
    }
    assert!(!line.contains("nothing has changed"), "{line}");
    assert_eq!(served(&control), [(4, json!([])), (5, json!([]))]);
    assert_eq!(control.get("/vms/4").json()["queue_size"], 1024);

    // Now the VM comes first, and nothing was taken from anybody before.
    let refusal = control.ask("POST", "/reload", "");
    assert_eq!(refusal.refusal(), (409, "path_taken".to_owned()));
    drop(foreign);
    let reload = control.ask("POST", "/reload", "").json();
    assert_eq!(
        reload,
        json!({"added": [3], "removed": [], "changed": [4, 5]})
    );
    assert_eq!(control.get("/vms/3").json()["queue_size"], 64);
}

#[test]
fn waits_for_no_writer_of_a_pipe() {
    let dir = directory();
    let (daemon, control) = daemon_on_directory(dir.path(), &[(3, "")]);
    let pipe = dir.path().join("vms/4.toml");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let refusal = control.ask("POST", "/reload", "");
    assert_eq!(refusal.refusal(), (400, "invalid_setting".to_owned()));
    daemon.signal(Signal::HUP);
    let line = daemon.wait_for_log("not loaded again").pop().unwrap();
    assert!(line.contains("4.toml: cannot be read: it is no regular"));
    assert_eq!(daemon.end(Signal::TERM), Some(0));
}

#[test]
fn a_pipe_is_read_once() {
    let dir = directory();
    let pipe = dir.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let daemon = Daemon::spawn(Command::new(BINARY).arg("--config").arg(&pipe));
    fs::write(&pipe, table(dir.path(), 3, "")).unwrap();
    daemon.wait_for_log("ready, VMs: 1");
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("pipe: cannot be read: it is no regular file");
    assert_eq!(daemon.end(Signal::TERM), Some(0));
}

#[test]
fn serves_a_vm_anew_whose_sockets_are_others() {
    let dir = directory();
    let (_daemon, control) = daemon_on_directory(dir.path(), &[(3, ""), (4, "")]);
    let swapped = |cid: u32, socket: u32| {
        let text = table(dir.path(), cid, "");
        let old = format!("{}/{cid}.", dir.path().display());
        let new = format!("{}/{socket}.", dir.path().display());
        fs::write(
            dir.path().join(format!("vms/{cid}.toml")),
            text.replace(&old, &new),
        )
        .unwrap();
    };
    swapped(3, 4);
    swapped(4, 3);
    let reload = control.ask("POST", "/reload", "").json();
    assert_eq!(
        reload,
        json!({"added": [], "removed": [], "changed": [3, 4]})
    );
    let socket = control.get("/vms/3").json()["socket"].clone();
    assert!(socket.as_str().unwrap().ends_with("/4.sock"), "{socket}");
    for name in ["3.sock", "4.sock", "3.vsock", "4.vsock"] {
        UnixStream::connect(dir.path().join(name)).unwrap();
    }
}

#[test]
fn leaves_what_a_request_added_unless_the_file_has_the_same() {
    let dir = directory();
    let (_daemon, control) = daemon_on_directory(dir.path(), &[(3, "")]);
    control.add(dir.path(), 4, "");
    control.add(dir.path(), 5, "");
    control.ask("DELETE", "/vms/3", "");
    let reload = || control.ask("POST", "/reload", "");
    // The file's own VM is as the file says again, others' stay.
    assert_eq!(reload().json()["added"], json!([3]));
    assert_eq!(served(&control).len(), 3);
    write(dir.path(), 4, "groups = [\"a\"]");
    assert_eq!(reload().json()["changed"], json!([4]));
    assert_eq!(control.get("/vms/4").json()["source"], "config");
    let other = table(dir.path(), 5, "").replace("5.sock", "other.sock");
    fs::write(dir.path().join("vms/5.toml"), other).unwrap();
    assert_eq!(reload().refusal(), (409, "cid_taken".to_owned()));
    remove(dir.path(), 5);
    remove(dir.path(), 4);
    assert_eq!(reload().json()["removed"], json!([4]));
    assert_eq!(control.get("/vms/5").json()["source"], "control");
}

#[test]
fn a_file_may_name_the_control_socket_once_and_for_all() {
    let dir = directory();
    let name = dir.path().display();
    let file = dir.path().join("vms.toml");
    let says = |text: &str| fs::write(&file, text).unwrap();
    says(&format!("control = \"{name}/control\"\n"));
    let daemon = Daemon::start([Path::new("--config"), &file]);
    let control = Control(dir.path().join("control"));
    assert_eq!(control.get("/vms").json(), json!({"vms": []}));
    says(&format!("control = \"{name}/other\"\n"));
    let refusal = control.ask("POST", "/reload", "");
    assert_eq!(refusal.refusal(), (409, "conflict".to_owned()));
    assert_eq!(daemon.end(Signal::TERM), Some(0));
    says("control = \"/c\"\n");
    let both = ["--config", "D/vms.toml", "--control", "D/control"];
    refused(
        dir.path(),
        &both,
        &[
            "--control D/control",
            "vms.toml:1: control = /c",
            "keep one",
        ],
    );
}

#[test]
fn starts_with_an_empty_directory() {
    let dir = directory();
    let (daemon, control) = daemon_on_directory(dir.path(), &[]);
    write(dir.path(), 3, "");
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("VMs added: 1");
    assert_eq!(served(&control), [(3, json!([]))]);
}

#[test]
fn without_a_configuration_the_signal_is_the_end() {
    let dir = directory();
    let daemon = Daemon::start([Path::new("--control"), &dir.path().join("control")]);
    assert_eq!(daemon.end(Signal::HUP), Some(0));
    assert!(listing(dir.path()).is_empty());
}

fn check(path: &Path) -> Output {
    run([Path::new("check"), path])
}

#[test]
fn checks_a_configuration_that_is_being_served() {
    let dir = directory();
    let (_daemon, _control) = daemon_on_directory(dir.path(), &[(3, ""), (4, "")]);
    let output = check(&dir.path().join("vms"));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.ends_with("vms: nothing wrong, VMs: 2\n"), "{said}");
}

#[test]
fn checks_for_all_mistakes_and_creates_nothing() {
    let dir = directory();
    fs::write(dir.path().join("file"), "").unwrap();
    let same = table(dir.path(), 4, "").replace("4.sock", "3.sock");
    for (text, words) in [
        (table(dir.path(), 2, ""), "vms.toml:2: cid = 2: is reserved"),
        (
            table(dir.path(), 3, "").replace("3.sock", "file"),
            "vms.toml:3: socket = D/file: is a",
        ),
        (
            table(dir.path(), 3, "") + &same,
            "vms.toml:8: socket = D/3.sock: is also the path of D/vms.toml:3",
        ),
        (
            "control = \"\"\n".to_owned(),
            "vms.toml:1: control = : names no file",
        ),
        ("controls = 1\n".to_owned(), "vms.toml:1: unknown field"),
        (String::new(), "vms.toml: describes no VM"),
    ] {
        fs::write(dir.path().join("vms.toml"), text).unwrap();
        refused(dir.path(), &["check", "D/vms.toml"], &[words]);
    }
    fs::write(dir.path().join("vms.toml"), table(dir.path(), 3, "")).unwrap();
    let before = listing(dir.path());
    assert_eq!(check(&dir.path().join("vms.toml")).status.code(), Some(0));
    assert_eq!(listing(dir.path()), before);
}
