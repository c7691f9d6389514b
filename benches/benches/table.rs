//! The connection of a packet found, by how many there are.

#![allow(missing_docs, reason = "criterion's macros make the items")]
#![allow(clippy::unwrap_used, reason = "a benchmark panics where it fails")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use vsock_connection::{Connection, Table, Timeouts};
use vsock_packet::{Cid, Header, Op, VsockAddr};

fn request(port: u32) -> Header {
    let guest = VsockAddr::new(Cid::new(3), port);
    Header::new(Op::Request, guest, VsockAddr::new(Cid::HOST, 80))
}

fn table(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("table/find");
    for count in [10, 1000, 100_000] {
        let mut table = Table::new(count as usize);
        for port in 0..count {
            let connection = Connection::accepted(&request(port), 65_536, Timeouts::default());
            table.insert(connection, ()).unwrap();
        }
        let mut port = 0;
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| {
                // From one end of the table to the other, not along it.
                port = (port + 61_803) % count;
                black_box(table.find(&request(port)).unwrap())
            });
        });
    }
}

criterion_group!(benches, table);
criterion_main!(benches);
