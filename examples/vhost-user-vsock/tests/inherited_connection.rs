//! A frontend that is connected before the daemon starts, as QEMU's conventions for `--fd`
//! have it.

#![allow(clippy::unwrap_used)] // Helpers fail the test, too.

mod support;

use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::thread;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::Signal;
use support::{BINARY, Daemon, directory, listing};
use vsock_testkit::host::Service;
use vsock_testkit::{Guest, Setup};

/// A daemon that inherits `frontend`; our copy of that is closed.
fn daemon_on(frontend: UnixStream, uds_path: &Path) -> Daemon {
    fcntl_setfd(&frontend, FdFlags::empty()).unwrap();
    let mut command = Command::new(BINARY);
    command.args(["--guest-cid=3", "--fd", &frontend.as_raw_fd().to_string()]);
    let daemon = Daemon::start_command(command.arg("--uds-path").arg(uds_path));
    drop(frontend);
    daemon
}

/// The memory, the rings' eventfds and the back end's channel all go over the connection as
/// descriptors, beside requests without any.
#[test]
fn serves_the_guest_of_an_inherited_connection_until_it_closes() {
    let dir = directory();
    let (vmm, uds_path) = (dir.path().join("vmm"), dir.path().join("vsock"));
    let listener = UnixListener::bind(&vmm).unwrap();
    let _service = Service::echo(&uds_path, 1234).unwrap();
    let guest = thread::spawn(move || {
        let mut guest = Guest::start(&vmm, Setup::default()).unwrap();
        let stream = guest.connect(1234).unwrap();
        let bytes = vec![7; 1 << 20];
        assert_eq!(guest.exchange(stream, &bytes, bytes.len()).unwrap(), bytes);
        let bases = guest.stop().unwrap();
        guest.resume(&bases).unwrap();
        assert_eq!(guest.exchange(stream, b"on", 2).unwrap(), b"on");
    });
    let (frontend, _) = listener.accept().unwrap();
    let daemon = daemon_on(frontend, &uds_path);
    guest.join().unwrap();
    // The guest is dropped with its VMM's end, and no other VMM can come.
    assert_eq!(daemon.wait(), Some(0));
    assert!(!uds_path.exists());
}

#[test]
fn a_signal_ends_it_while_the_frontend_waits() {
    let dir = directory();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let daemon = daemon_on(theirs, &dir.path().join("vsock"));
    assert_eq!(daemon.end(Signal::TERM), Some(0));
    assert!(listing(dir.path()).is_empty());
    assert!(is_closed(&ours), "the frontend was left waiting");
}

#[test]
fn a_frontend_that_talks_nonsense_ends_it_too() {
    let dir = directory();
    for nonsense in [[0xff; 12], [0; 12]] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let daemon = daemon_on(theirs, &dir.path().join("vsock"));
        std::io::Write::write_all(&mut &ours, &nonsense).unwrap();
        assert!(is_closed(&ours), "the frontend was left waiting");
        assert_eq!(daemon.wait(), Some(0));
    }
}

/// Waits for the end of file, or the reset, of a stream on which nothing comes.
fn is_closed(mut stream: &UnixStream) -> bool {
    stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
    match std::io::Read::read(&mut stream, &mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}
