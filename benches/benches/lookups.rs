//! The connection of a packet found, by how many there are.

#![allow(missing_docs, reason = "criterion's macros make the items")]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use vsock_benches::lookups::{Connections, Flows};

const COUNTS: [u32; 3] = [10, 1000, 100_000];

fn connections(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lookup/connection among");
    for count in COUNTS {
        let mut connections = Connections::new(count);
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| connections.find_next());
        });
        group.bench_function(BenchmarkId::new("pass", count), |bencher| {
            bencher.iter(|| connections.find_pass());
        });
    }
}

fn flows(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lookup/packet sent on a flow among");
    for count in COUNTS {
        let mut flows = Flows::new(count);
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| flows.send_next());
        });
        group.bench_function(BenchmarkId::new("pass", count), |bencher| {
            bencher.iter(|| flows.send_pass());
        });
    }
}

criterion_group!(benches, connections, flows);
criterion_main!(benches);
