//! The daemon confines itself, unless it is told not to.

#![allow(clippy::unwrap_used)] // Helpers fail the test, too.

mod support;

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use support::http::{Control, vm};
use support::refusal::refused;
use support::{Daemon, directory};
use vsock_testkit::{Guest, Setup};

/// How many threads a process has, and the values of a key in their status.
fn threads(pid: u32, key: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let statuses =
        tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok());
    statuses
        .map(|status| {
            let mut lines = status.lines();
            let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            value.unwrap().trim().to_owned()
        })
        .collect()
}

/// A daemon with a VM and a control socket, and the VM's guest, so that all kinds of its
/// threads are there.
fn busy(dir: &Path, more: &[&str]) -> (Daemon, Control, Guest) {
    let name = dir.display();
    let args = [
        format!("--vm=guest-cid=3,socket={name}/3.sock,uds-path={name}/3.vsock"),
        format!("--control={name}/control"),
    ];
    let daemon = Daemon::start(args.iter().map(String::as_str).chain(more.iter().copied()));
    let guest = Guest::start(dir.join("3.sock"), Setup::default()).unwrap();
    let control = Control(dir.join("control"));
    control.get("/vms");
    (daemon, control, guest)
}

#[test]
fn every_thread_is_confined() {
    let dir = directory();
    let (daemon, _control, guest) = busy(dir.path(), &[]);
    for (key, value) in [("NoNewPrivs", "1"), ("Seccomp", "2")] {
        let threads = threads(daemon.pid(), key);
        assert!(threads.len() > 3, "{threads:?}");
        assert!(
            threads.iter().all(|thread| thread == value),
            "{key}: {threads:?}"
        );
    }
    drop(guest);
    assert_eq!(daemon.end(Signal::TERM), Some(0));
    assert!(
        fs::read_dir(dir.path()).unwrap().next().is_none(),
        "sockets stay"
    );
}

#[test]
fn none_is_when_the_operator_says_so() {
    let (dir, elsewhere) = (directory(), directory());
    let (daemon, control, _guest) = busy(dir.path(), &["--sandbox", "off"]);
    // As many as are set for this process itself.
    let own = threads(std::process::id(), "Seccomp");
    let threads = threads(daemon.pid(), "Seccomp");
    assert!(
        threads.iter().all(|thread| *thread == own[0]),
        "{threads:?}"
    );
    control.add(elsewhere.path(), 4, "");
    assert!(elsewhere.path().join("4.sock").exists());
}

#[test]
fn refuses_any_other_word() {
    let dir = directory();
    refused(
        dir.path(),
        &["--sandbox", "perhaps"],
        &["--sandbox", "'perhaps'"],
    );
}

#[test]
fn a_vm_elsewhere_is_told_of_the_option_that_allows_it() {
    let (dir, elsewhere) = (directory(), directory());
    let (_daemon, control, _guest) = busy(dir.path(), &[]);
    let path = elsewhere.path().display();
    let body = vm(elsewhere.path(), 4, "");
    let answer = control.ask("PUT", "/vms/4", &body).json().to_string();
    let remedy = format!("--directory {path}");
    assert!(
        answer.contains("outside of the directories") && answer.contains(&remedy),
        "{answer}"
    );
    assert!(fs::read_dir(elsewhere.path()).unwrap().next().is_none());
}

#[test]
fn serves_vms_below_the_directories_it_was_given() {
    let (dir, elsewhere) = (directory(), directory());
    let option = format!("--directory={}", elsewhere.path().display());
    let (_daemon, control, _guest) = busy(dir.path(), &[&option]);
    let later = elsewhere.path().join("later");
    fs::create_dir(&later).unwrap();
    control.add(&later, 4, "");
    let _guest = Guest::start(later.join("4.sock"), Setup::default()).unwrap();
    control.ask("DELETE", "/vms/4", "");
    assert!(
        fs::read_dir(&later).unwrap().next().is_none(),
        "sockets stay"
    );
}

#[test]
fn a_file_may_name_directories_and_be_replaced() {
    let (dir, elsewhere) = (directory(), directory());
    let (path, there) = (dir.path().display(), elsewhere.path().display());
    let file = dir.path().join("vms.toml");
    let write = |directories: &str, vm: &str| {
        let text = format!("directories = [{directories}]\ncontrol = \"{path}/control\"\n{vm}");
        // As editors do it: a new file under the same name.
        fs::write(dir.path().join("new"), text).unwrap();
        fs::rename(dir.path().join("new"), &file).unwrap();
    };
    write(&format!("\"{there}\""), "");
    let daemon = Daemon::start([Path::new("--config"), &file]);
    let vm =
        format!("[[vm]]\ncid = 3\nsocket = \"{there}/3.sock\"\nuds_path = \"{there}/3.vsock\"\n");
    write(&format!("\"{there}\""), &vm);
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("VMs added: 1");
    write("\"/\"", &vm);
    daemon.signal(Signal::HUP);
    let line = daemon.wait_for_log("not loaded again").pop().unwrap();
    assert!(
        line.contains("vms.toml:1: directories = /") && line.contains("restart it"),
        "{line}"
    );
}

#[test]
fn refuses_a_directory_that_is_none() {
    let dir = directory();
    fs::write(dir.path().join("file"), "").unwrap();
    for name in ["D/file", "D/missing"] {
        let args = ["--control", "D/control", "--directory", name];
        refused(
            dir.path(),
            &args,
            &[&format!("--directory {name}: cannot be used")],
        );
    }
}
