//! The daemon's life: its sockets come, and go with the signal that ends it.

#![allow(clippy::unwrap_used)] // Helpers fail the test, too.

mod support;

use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::process::Signal;
use support::{BINARY, Daemon, PATIENCE, directory, listing};

fn vm(dir: &Path, cid: u32) -> String {
    let dir = dir.display();
    format!("guest-cid={cid},socket={dir}/{cid}.sock,uds-path={dir}/{cid}.vsock")
}

fn is_socket(path: &Path) -> bool {
    path.symlink_metadata()
        .is_ok_and(|metadata| metadata.file_type().is_socket())
}

#[test]
fn a_signal_ends_it_in_order() {
    for signal in [Signal::TERM, Signal::INT] {
        let dir = directory();
        let daemon = Daemon::start(["--vm", &vm(dir.path(), 3), "--vm", &vm(dir.path(), 4)]);
        for name in ["3.sock", "3.vsock", "4.sock", "4.vsock"] {
            assert!(is_socket(&dir.path().join(name)), "{name} is missing");
        }
        assert_eq!(daemon.end(signal), Some(0));
        assert!(
            listing(dir.path()).is_empty(),
            "left behind: {:?}",
            listing(dir.path())
        );
    }
}

#[test]
fn a_signal_ends_it_while_programs_are_connected() {
    let dir = directory();
    let daemon = Daemon::start(["--vm", &vm(dir.path(), 3)]);
    let frontend = UnixStream::connect(dir.path().join("3.sock")).unwrap();
    let client = UnixStream::connect(dir.path().join("3.vsock")).unwrap();
    assert_eq!(daemon.end(Signal::TERM), Some(0));
    for mut stream in [frontend, client] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut rest = Vec::new();
        // Its end is an EOF or a reset, but not a time-out.
        let result = stream.read_to_end(&mut rest);
        let timed_out = result.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!timed_out, "a peer was left waiting");
    }
    assert!(listing(dir.path()).is_empty());
}

#[test]
fn replaces_the_sockets_of_a_killed_daemon() {
    let dir = directory();
    let killed = Daemon::start(["--vm", &vm(dir.path(), 3)]);
    assert_eq!(killed.end(Signal::KILL), None);
    assert!(
        is_socket(&dir.path().join("3.sock")),
        "a killed daemon leaves its sockets"
    );
    let daemon = Daemon::start(["--vm", &vm(dir.path(), 3)]);
    UnixStream::connect(dir.path().join("3.sock")).unwrap();
    assert_eq!(daemon.end(Signal::TERM), Some(0));
    assert!(listing(dir.path()).is_empty());
}

#[test]
fn a_second_daemon_does_not_take_the_sockets_of_the_first() {
    let dir = directory();
    let first = Daemon::start(["--vm", &vm(dir.path(), 3)]);
    let before = listing(dir.path());
    let output = support::run(["--vm", &vm(dir.path(), 3)]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(listing(dir.path()), before);
    UnixStream::connect(dir.path().join("3.vsock")).unwrap();
    assert_eq!(first.end(Signal::TERM), Some(0));
}

#[test]
fn a_file_says_the_same_as_options() {
    let dir = directory();
    let name = dir.path().display();
    let config = dir.path().join("vms.toml");
    let text = format!(
        "[[vm]]\nguest_cid = 3\nsocket = \"{name}/3.sock\"\nuds_path = \"{name}/3.vsock\"\n\
         groups = [\"a\", \"b\"]\nhost_cids = [4, 5]\nqueue_size = 256\n\
         tx_buffer_size = 65536\nmax_connections = 10\nmax_backlog = 1048576\n\
         max_buffered = 2097152\nmax_handshakes = 5\nmax_bytes_per_second = 65536\n\
         max_requests_per_second = 7\n"
    );
    fs::write(&config, text).unwrap();
    let text = config.to_str().unwrap();
    let from_file = served(&["--config", text]);
    let vm = format!(
        "{},groups=a+b,host-cids=4+5,queue-size=256,tx-buffer-size=65536,\
         max-connections=10,max-backlog=1048576,max-buffered=2097152,max-handshakes=5,\
         max-bytes-per-second=65536,max-requests-per-second=7",
        vm(dir.path(), 3)
    );
    assert_eq!(from_file, served(&["--vm", &vm]));
    let says = "groups a+b, host-cids 4+5, queue-size 256, tx-buffer-size 65536, \
                max-connections 10, max-backlog 1048576, max-buffered 2097152, \
                max-handshakes 5, max-bytes-per-second 65536, max-requests-per-second 7";
    assert!(from_file.contains(says), "{from_file}");
}

/// What the log says of the VM that is served.
fn served(args: &[&str]) -> String {
    let daemon = Daemon::spawn(Command::new(BINARY).args(args));
    let line = daemon.wait_for_log("serving CID").pop().unwrap();
    assert_eq!(daemon.end(Signal::TERM), Some(0));
    line[line.find("serving CID").unwrap()..].to_owned()
}

#[test]
fn serves_on_an_inherited_descriptor_and_leaves_its_socket_alone() {
    let dir = directory();
    let socket = dir.path().join("inherited");
    let listener = UnixListener::bind(&socket).unwrap();
    fcntl_setfd(&listener, FdFlags::empty()).unwrap();
    let uds_path = dir.path().join("vsock");
    let mut command = Command::new(BINARY);
    command.args(["--guest-cid=3", "--fd", &listener.as_raw_fd().to_string()]);
    let daemon = Daemon::start_command(command.arg("--uds-path").arg(&uds_path));
    fcntl_setfd(
        &listener,
        fcntl_getfd(&listener).unwrap() | FdFlags::CLOEXEC,
    )
    .unwrap();
    // The daemon takes the connection, so nothing is left for us to accept; closing it
    // shows as an end of file or a reset.
    let mut frontend = UnixStream::connect(&socket).unwrap();
    std::io::Write::write_all(&mut frontend, &[0xff; 12]).unwrap();
    frontend
        .set_read_timeout(Some(PATIENCE + Duration::from_secs(1)))
        .unwrap();
    let answer = frontend.read(&mut [0; 1]);
    let closed = match &answer {
        Ok(count) => *count == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    };
    assert!(closed, "nobody took the connection: {answer:?}");
    assert_eq!(daemon.end(Signal::TERM), Some(0));
    assert!(
        socket.exists(),
        "an inherited socket is its owner's to remove"
    );
    assert!(!uds_path.exists());
}
