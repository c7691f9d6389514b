//! What groups and host CIDs do for the guests of a daemon.

#![allow(clippy::unwrap_used)] // Helpers fail the test, too.

mod support;

use std::path::Path;
use std::thread;

use rustix::process::Signal;
use support::{Daemon, directory};
use vsock_packet::{Cid, VsockAddr};
use vsock_testkit::host::Service;
use vsock_testkit::{Error, Guest, Setup};

fn vm(dir: &Path, cid: u32, more: &str) -> String {
    let dir = dir.display();
    format!("guest-cid={cid},socket={dir}/{cid}.sock,uds-path={dir}/{cid}.vsock{more}")
}

fn guest(dir: &Path, cid: u32) -> Guest {
    Guest::start(dir.join(format!("{cid}.sock")), Setup::default()).unwrap()
}

fn at(cid: u32, port: u32) -> VsockAddr {
    VsockAddr::new(Cid::new(cid), port)
}

#[test]
fn guests_of_a_group_reach_each_other_and_others_do_not() {
    let dir = directory();
    let groups = [
        (3, ",groups=web+db"),
        (4, ",groups=db"),
        (5, ",groups=web"),
        (6, ""),
    ];
    let vms = groups.map(|(cid, groups)| vm(dir.path(), cid, groups));
    let daemon = Daemon::start(vms.iter().flat_map(|vm| ["--vm", vm]));

    let [mut three, mut five, mut six] = [3, 5, 6].map(|cid| guest(dir.path(), cid));
    let name = dir.path().to_owned();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let server = thread::spawn(move || {
        let mut four = guest(&name, 4);
        four.listen(80);
        ready.send(()).unwrap();
        let stream = four.accept(80).unwrap();
        let request = four.read_exact(stream, 5).unwrap();
        four.write_all(stream, &request).unwrap();
        four.read_to_end(stream).unwrap()
    });
    is_ready.recv().unwrap();
    for stranger in [&mut five, &mut six] {
        let refused = stranger.connect_to(at(4, 80));
        assert!(
            matches!(refused, Err(Error::Refused { port: 80 })),
            "{refused:?}"
        );
    }
    let stream = three.connect_to(at(4, 80)).unwrap();
    assert_eq!(three.exchange(stream, b"hello", 5).unwrap(), b"hello");
    three.close(stream).unwrap();
    assert!(server.join().unwrap().is_empty());
    assert_eq!(daemon.end(Signal::TERM), Some(0));
}

/// As an enclave's first program calls its parent.
#[test]
fn a_host_cid_means_the_host() {
    let dir = directory();
    let vms =
        [(16, ",host-cids=3+7,groups=a"), (3, "")].map(|(cid, more)| vm(dir.path(), cid, more));
    let daemon = Daemon::start(vms.iter().flat_map(|vm| ["--vm", vm]));
    let _service = Service::echo(&dir.path().join("16.vsock"), 9000).unwrap();
    let mut enclave = guest(dir.path(), 16);
    for cid in [2, 3, 7] {
        let stream = enclave.connect_to(at(cid, 9000)).unwrap();
        assert_eq!(enclave.exchange(stream, &[0xb7], 1).unwrap(), [0xb7]);
    }
    assert!(enclave.connect_to(at(8, 9000)).is_err());
    assert_eq!(daemon.end(Signal::TERM), Some(0));
}

#[test]
fn a_guest_has_no_more_connections_than_it_may_have() {
    let dir = directory();
    let daemon = Daemon::start(["--vm", &vm(dir.path(), 3, ",max-connections=2")]);
    let _service = Service::echo(&dir.path().join("3.vsock"), 80).unwrap();
    let mut three = guest(dir.path(), 3);
    for _ in 0..2 {
        three.connect(80).unwrap();
    }
    let refused = three.connect(80);
    assert!(
        matches!(refused, Err(Error::Refused { port: 80 })),
        "{refused:?}"
    );
    assert_eq!(daemon.end(Signal::TERM), Some(0));
}
