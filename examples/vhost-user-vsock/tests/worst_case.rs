//! A guest that has the daemon keep all it can be made to keep costs no more memory than the
//! manual says, and not so much less that the manual says nothing.

#![allow(clippy::unwrap_used)] // Helpers fail the test, too.

mod formula;
mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use formula::{Bounds, KIB, MIB};
use rustix::process::Signal;
use support::{Daemon, PATIENCE, directory};
use vsock_testkit::host::{Client, HostListener, HostStream, raise_file_limit};
use vsock_testkit::{Guest, Setup, StreamId};

/// Small enough for a test, large enough that what else a process needs matters little.
const BOUNDS: Bounds = Bounds {
    max_connections: 128,
    max_buffered: 16 * MIB,
    max_backlog: 16 * MIB,
    max_handshakes: 32,
};
/// Connections to each of two siblings: what one of them may have waiting is less than half
/// of what all may.
const TO_SIBLINGS: [usize; 2] = [28, 13];

const GREEDY: u32 = 3;
const SIBLINGS: [u32; 2] = [4, 5];

fn daemon(dir: &Path) -> Daemon {
    let vm = |cid: u32, more: &str| {
        let dir = dir.display();
        format!(
            "--vm=guest-cid={cid},socket={dir}/{cid}.sock,uds-path={dir}/{cid}.vsock,groups=g{more}"
        )
    };
    let Bounds {
        max_connections,
        max_buffered,
        max_backlog,
        max_handshakes,
    } = BOUNDS;
    let more = format!(
        ",tx-buffer-size={},max-connections={max_connections},max-buffered={max_buffered},\
         max-backlog={max_backlog},max-handshakes={max_handshakes}",
        128 * KIB
    );
    let [one, other] = SIBLINGS.map(|cid| vm(cid, ""));
    Daemon::start([vm(GREEDY, &more), one, other])
}

/// The memory that is the process's own, in bytes.
fn anonymous(daemon: &Daemon) -> usize {
    let path = format!("/proc/{}/smaps_rollup", daemon.pid());
    let text = fs::read_to_string(path).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Anonymous:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<usize>().unwrap() * KIB
}

/// Writes to all of the streams until none takes any more.
fn fill(guest: &mut Guest, streams: &[StreamId]) {
    let chunk = vec![7; 64 * KIB];
    let deadline = Instant::now() + PATIENCE;
    let mut idle = 0;
    while idle < 10 {
        assert!(
            Instant::now() < deadline,
            "there is no end to what is taken"
        );
        let mut taken = 0;
        for &stream in streams {
            taken += guest.write_some(stream, &chunk).unwrap();
            guest.expect_tx_returned().unwrap();
        }
        idle = if taken == 0 { idle + 1 } else { 0 };
        guest.pump(Duration::from_millis(10)).unwrap();
    }
}

/// Fills the applications' sockets with next to nothing, so that all that follows is the
/// daemon's to keep: to the kernel a packet costs hundreds of bytes, whatever is in it.
fn clog(guest: &mut Guest, streams: &[StreamId]) {
    for _ in 0..400 {
        // One after the other: packets that follow each other are written as one.
        for &stream in streams {
            guest.write_some(stream, &[7]).unwrap();
        }
        guest.expect_tx_returned().unwrap();
    }
}

/// Has as many connections with the host as there may be, to applications that never read.
fn fill_the_host(guest: &mut Guest, uds_path: &Path) -> Vec<HostStream> {
    let listener = HostListener::bind(uds_path, 710).unwrap();
    let mut deaf = Vec::new();
    let streams: Vec<_> = (0..BOUNDS.max_connections)
        .map(|_| {
            let stream = guest.connect(710).unwrap();
            deaf.push(listener.accept().unwrap());
            stream
        })
        .collect();
    assert!(guest.connect(710).is_err(), "one more than there may be");
    clog(guest, &streams);
    fill(guest, &streams);
    deaf
}

/// Has siblings, which stop taking anything then, leave what waits for them.
fn fill_a_sibling(guest: &mut Guest, sibling: &mut Guest, count: usize) {
    sibling.listen(80);
    let streams: Vec<_> = (0..count)
        .map(|_| {
            let stream = guest.start_connect(sibling.at(80)).unwrap();
            sibling.accept(80).unwrap();
            stream
        })
        .collect();
    guest.pump(Duration::from_millis(10)).unwrap();
    fill(guest, &streams);
    let open = |id: &&StreamId| !guest.stream(**id).was_reset();
    assert_eq!(
        streams.iter().filter(open).count(),
        count,
        "some were reset"
    );
}

#[test]
fn a_guest_costs_no_more_memory_than_the_formula_says() {
    raise_file_limit().unwrap();
    let dir = directory();
    let daemon = daemon(dir.path());
    let start = |cid: u32| {
        let socket = dir.path().join(format!("{cid}.sock"));
        Guest::start(socket, Setup::default()).unwrap()
    };
    let mut guest = start(GREEDY);
    let mut siblings = SIBLINGS.map(start);
    let uds_path = dir.path().join(format!("{GREEDY}.vsock"));
    let before = anonymous(&daemon);
    let deaf = fill_the_host(&mut guest, &uds_path);
    for (sibling, count) in siblings.iter_mut().zip(TO_SIBLINGS) {
        fill_a_sibling(&mut guest, sibling, count);
    }
    let clients = (0..2 * BOUNDS.max_handshakes).map(|_| Client::connect(&uds_path).unwrap());
    let silent: Vec<_> = clients.collect();
    guest.pump(Duration::from_millis(50)).unwrap();

    let grown = anonymous(&daemon).saturating_sub(before);
    let formula = BOUNDS.worst_case();
    println!("{grown} bytes, of {formula} that the formula has");
    assert!(grown <= formula, "{grown} bytes, beyond {formula}");
    assert!(grown >= formula / 3, "{grown} bytes, far below {formula}");

    drop((deaf, silent, guest, siblings));
    assert_eq!(daemon.end(Signal::TERM), Some(0));
}
