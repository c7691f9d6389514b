//! Guests are added and removed while the server runs: what is in the way is never destroyed,
//! and what failed leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use common::{CID, Device};
use vsock_testkit::{Error, Guest, Setup};
use vsock_vhost_user::{AddError, Server, VhostUserSocket};

/// Adds guest 5, whose one path is `taken`; it must fail, and leave nothing behind.
#[track_caller]
fn assert_not_added(device: &Device, taken: &Path) {
    for takes_uds in [false, true] {
        let mut config = device.config(5);
        if takes_uds {
            config.uds_path = taken.into();
        } else {
            config.socket = VhostUserSocket::Path(taken.into());
        }
        let error = device.server.add(config).unwrap_err();
        assert!(
            error.to_string().contains(taken.to_str().unwrap()),
            "{error}"
        );
        assert!(
            !device.socket(5).exists() && !device.uds_of(5).exists(),
            "left behind"
        );
    }
}

#[test]
fn a_cid_is_taken_once() -> Result<(), Error> {
    let device = Device::start();
    let mut config = device.config(CID);
    config.socket = VhostUserSocket::Path(device.socket(5));
    config.uds_path = device.uds_of(5);
    let error = device.server.add(config).unwrap_err();
    assert!(matches!(error, AddError::CidTaken(_)), "{error}");
    assert!(!device.socket(5).exists() && !device.uds_of(5).exists());
    device.guest().map(drop)
}

#[test]
fn a_path_of_another_guest_stays_its_own() -> Result<(), Error> {
    let device = Device::start();
    let taken = [device.socket(CID), device.uds()];
    taken
        .iter()
        .for_each(|path| assert_not_added(&device, path));
    device.guest().map(drop)
}

#[test]
fn a_live_socket_is_not_unlinked() {
    let device = Device::start();
    let path = device.uds_of(6);
    let live = UnixListener::bind(&path).unwrap();
    assert_not_added(&device, &path);
    UnixStream::connect(&path).unwrap();
    live.accept().unwrap();
}

#[test]
fn a_regular_file_is_not_unlinked() {
    let device = Device::start();
    let path = device.uds_of(6);
    std::fs::write(&path, b"precious").unwrap();
    assert_not_added(&device, &path);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_dead_socket_makes_way() -> Result<(), Error> {
    let device = Device::start();
    drop(UnixListener::bind(device.socket(5)).unwrap());
    drop(UnixListener::bind(device.uds_of(5)).unwrap());
    device.add(5).unwrap();
    device.guest_of(5).map(drop)
}

#[test]
fn a_socket_that_already_listens_is_served_and_not_removed() -> Result<(), Error> {
    let device = Device::start();
    let path = device.socket(6);
    let mut config = device.config(5);
    config.socket = VhostUserSocket::Listener(UnixListener::bind(&path).unwrap());
    device.server.add(config).unwrap();
    for _ in 0..3 {
        assert_eq!(u64::from(Guest::start(&path, Setup::default())?.cid()), 5);
    }
    assert!(device.remove(5));
    assert!(path.exists());
    Ok(())
}

#[test]
fn a_server_that_is_dropped_removes_its_sockets() {
    let mut device = Device::start();
    let paths = [device.socket(CID), device.uds()];
    device.server = Server::new();
    assert!(!paths.iter().any(|path| path.exists()));
}

#[test]
fn files_and_threads_do_not_add_up() -> Result<(), Error> {
    let count = |what: &str| {
        std::fs::read_dir(format!("/proc/self/{what}"))
            .unwrap()
            .count()
    };
    let device = Device::start();
    let mut counts = Vec::new();
    for _ in 0..20 {
        device.add(5).unwrap();
        for _ in 0..3 {
            device.guest_of(5)?;
        }
        device.remove(5);
        counts.push((count("fd"), count("task")));
    }
    // Other tests of this process come and go: what leaks adds up to more than they have.
    let (first, last) = (counts[0], counts[19]);
    assert!(last.0 < first.0 + 40 && last.1 < first.1 + 15, "{counts:?}");
    Ok(())
}
