//! A guest of the testkit's through a real vhost-user connection: to a host application
//! and to a sibling. The guest waits in its own thread, so wake-ups are part of it.

#![allow(missing_docs, reason = "criterion's macros make the items")]
#![allow(clippy::unwrap_used, reason = "a benchmark panics where it fails")]

use std::path::PathBuf;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tempfile::TempDir;
use vsock_packet::{GuestCid, VsockAddr};
use vsock_testkit::host::{HostListener, Service};
use vsock_testkit::{Guest, Setup, State};
use vsock_vhost_user::{GuestConfig, Server};

const PORT: u32 = 1024;
const OTHER_PORT: u32 = 1025;
const SIZES: [usize; 3] = [1, 4 << 10, 64 << 10];

/// A server, and where its guests' sockets are.
struct Device {
    server: Server,
    directory: TempDir,
}

impl Device {
    fn new() -> Self {
        Self {
            server: Server::new(),
            directory: TempDir::with_prefix("vsock-").unwrap(),
        }
    }

    /// A guest, and its hybrid vsock socket.
    fn guest(&mut self, cid: u64) -> (Guest, PathBuf) {
        let path = |suffix| self.directory.path().join(format!("{cid}.{suffix}"));
        let (socket, uds) = (path("sock"), path("vsock"));
        let mut config = GuestConfig::new(GuestCid::new(cid).unwrap(), &socket, &uds);
        config.groups = ["a".to_owned()].into();
        self.server.add(config).unwrap();
        let guest = Guest::start(socket, Setup::default()).unwrap();
        (guest, uds)
    }
}

fn host(criterion: &mut Criterion) {
    let mut device = Device::new();
    let (mut guest, uds) = device.guest(3);
    let _service = Service::echo(&uds, PORT).unwrap();
    let stream = guest.connect(PORT).unwrap();
    let mut group = criterion.benchmark_group("end to end/echo of the host, bytes");
    for size in SIZES {
        let bytes = vec![1; size];
        group.throughput(Throughput::Bytes(2 * size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| guest.exchange(stream, &bytes, size).unwrap());
        });
    }
    group.finish();
    // The service keeps its connections to the end: this one lets them go.
    let listener = HostListener::bind(&uds, OTHER_PORT).unwrap();
    criterion.bench_function("end to end/connect and close", |bencher| {
        bencher.iter(|| {
            let stream = guest.connect(OTHER_PORT).unwrap();
            drop(listener.accept().unwrap());
            guest.close(stream).unwrap();
        });
    });
}

fn siblings(criterion: &mut Criterion) {
    let mut device = Device::new();
    let ((mut one, _), (mut other, _)) = (device.guest(3), device.guest(4));
    // An answer shows that the device serves its rings.
    assert!(other.connect(OTHER_PORT).is_err());
    other.listen(PORT);
    let peer = VsockAddr::new(other.cid(), PORT);
    let out = one.start_connect(peer).unwrap();
    let into = other.accept(PORT).unwrap();
    one.wait_until("the RESPONSE", |one| {
        one.stream(out).state() == State::Established
    })
    .unwrap();
    let mut group = criterion.benchmark_group("end to end/to a sibling, bytes");
    for size in SIZES {
        let bytes = vec![1; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| {
                one.write_all(out, &bytes).unwrap();
                other.read_exact(into, size).unwrap()
            });
        });
    }
}

criterion_group!(benches, host, siblings);
criterion_main!(benches);
