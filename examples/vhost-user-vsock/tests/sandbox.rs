//! The daemon confines itself, unless it is told not to.

#![allow(clippy::unwrap_used)] // Helpers fail the test, too.

mod support;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use support::http::{Control, vm};
use support::refusal::refused;
use support::{BINARY, Daemon, directory, finish};
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

/// What the kernel is to lack, and the daemon's arguments, a line each.
const LACKS: &str = "SANDBOX_TEST_LACKS";
const ARGS: &str = "SANDBOX_TEST_ARGS";

/// A command for the daemon on a kernel that lacks something: this test binary, which has the
/// calls fail as they would there, and becomes the daemon.
fn on_a_kernel_without(what: &str, args: &[String]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "helper", "--nocapture"])
        .env(LACKS, what)
        .env(ARGS, args.join("\n"))
        .stdout(Stdio::null());
    command
}

/// Not a test: what [`on_a_kernel_without`] runs.
#[test]
fn helper() {
    let Ok(what) = std::env::var(LACKS) else {
        return;
    };
    let rules: &[(i64, Option<u64>)] = match what.as_str() {
        "landlock" => &[(libc::SYS_landlock_create_ruleset, None)],
        "seccomp" => &[
            (libc::SYS_seccomp, None),
            (libc::SYS_prctl, Some(libc::PR_SET_SECCOMP as u64)),
        ],
        _ => panic!("{what}?"),
    };
    let rules = rules.iter().map(|&(call, first)| {
        let is = |value| SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value);
        let rules = first.map(|value| SeccompRule::new(vec![is(value).unwrap()]).unwrap());
        (call, Vec::from_iter(rules))
    });
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules.collect(), SeccompAction::Allow, missing, arch);
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    rustix::thread::set_no_new_privs(true).unwrap();
    seccompiler::apply_filter(&program).unwrap();
    let args = std::env::var(ARGS).unwrap();
    let error = Command::new(BINARY).args(args.lines()).exec();
    panic!("the daemon cannot be started: {error}");
}

/// It starts, says once what is missing, and keeps to what the kernel has; and to its
/// directories all the same.
#[test]
fn without_landlock_it_confines_its_calls_and_says_what_it_does_not() {
    let (dir, elsewhere) = (directory(), directory());
    let name = dir.path().display();
    let args = [
        format!("--vm=guest-cid=3,socket={name}/3.sock,uds-path={name}/3.vsock"),
        format!("--control={name}/control"),
    ];
    let daemon = Daemon::spawn(&mut on_a_kernel_without("landlock", &args));
    let log = daemon.wait_for_log("ready");
    let warnings: Vec<_> = log.iter().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{log:#?}");
    for word in [
        "not confined, for want of Landlock in the kernel: ",
        "what files it reads and where it creates sockets",
        "connections to abstract sockets",
    ] {
        assert!(warnings[0].contains(word), "no '{word}' in {}", warnings[0]);
    }
    let _guest = Guest::start(dir.path().join("3.sock"), Setup::default()).unwrap();
    // Two filters: that of this test, and the daemon's own.
    let filters = threads(daemon.pid(), "Seccomp_filters");
    let outer = threads(std::process::id(), "Seccomp_filters");
    let outer: usize = outer[0].parse().unwrap();
    for filters in filters {
        assert_eq!(filters.parse::<usize>().unwrap(), outer + 2);
    }
    let control = Control(dir.path().join("control"));
    let body = vm(elsewhere.path(), 4, "");
    let answer = control.ask("PUT", "/vms/4", &body);
    assert_eq!(answer.refusal(), (400, "invalid_setting".to_owned()));
    control.add(dir.path(), 4, "");
    assert_eq!(daemon.end(Signal::TERM), Some(0));
}

#[test]
fn without_seccomp_it_does_not_start() {
    let dir = directory();
    let args = [format!("--control={}/control", dir.path().display())];
    let output = finish(&mut on_a_kernel_without("seccomp", &args));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("cannot confine itself to its system calls")
            && said.contains("--sandbox off"),
        "{said}"
    );
    assert!(
        fs::read_dir(dir.path()).unwrap().next().is_none(),
        "sockets stay"
    );
    let args = [args[0].clone(), "--sandbox=off".to_owned()];
    let daemon = Daemon::spawn(&mut on_a_kernel_without("seccomp", &args));
    daemon.wait_for_log("ready");
    assert_eq!(daemon.end(Signal::TERM), Some(0));
}
