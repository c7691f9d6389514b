//! Many guests, at once and one after the other.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::time::Duration;

use common::{Device, pattern};
use vsock_testkit::Error;
use vsock_testkit::host::Service;

/// What this thread has computed so far.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[test]
fn ten_thousand_guests_come_and_go_and_leave_nothing_behind() {
    let device = Device::start();
    let count = |what: &str| {
        std::fs::read_dir(format!("/proc/self/{what}"))
            .unwrap()
            .count()
    };
    let pages = || -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse().unwrap()
    };
    let round = |rounds: usize| {
        for _ in 0..rounds {
            device.add(5).unwrap();
            assert!(device.remove(5));
        }
        (count("fd"), count("task"), pages())
    };
    let before = round(1000);
    let after = round(9000);
    // Other tests of this process come and go meanwhile.
    assert!(
        after.0 < before.0 + 100,
        "descriptors: {before:?}, {after:?}"
    );
    assert!(after.1 < before.1 + 40, "threads: {before:?}, {after:?}");
    assert!(after.2 < before.2 + 20_000, "pages: {before:?}, {after:?}");
}

#[test]
fn the_last_of_256_guests_costs_what_the_first_did() -> Result<(), Error> {
    let device = Device::start();
    let mut costs = Vec::new();
    for cid in 4..260 {
        let start = cpu_time();
        device.add(cid).unwrap();
        costs.push(cpu_time() - start);
    }
    // The least of several is what it costs when nothing else runs.
    let least = |costs: &[Duration]| *costs.iter().min().unwrap();
    let (first, last) = (least(&costs[..32]), least(&costs[224..]));
    assert!(
        last < 3 * first + Duration::from_micros(200),
        "{first:?}, {last:?}"
    );

    let mut guests = Vec::new();
    for cid in 4..68 {
        let echo = Service::echo(&device.uds_of(cid), 700)?;
        let mut guest = device.guest_of(cid)?;
        let stream = guest.connect(700)?;
        guests.push((guest, stream, echo));
    }
    let bytes = pattern(64 << 10);
    for (guest, stream, _) in &mut guests {
        guest.write_all(*stream, &bytes)?;
    }
    for (guest, stream, _) in &mut guests {
        assert!(guest.read_exact(*stream, bytes.len())? == bytes);
    }
    assert_eq!(device.server.connections(None).len(), 64);
    Ok(())
}
