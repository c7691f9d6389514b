//! Packets of a guest's delivered to its sibling, into buffers of Linux's size or from the
//! backlog.

#![allow(missing_docs, reason = "criterion's macros make the items")]

use std::time::Instant;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vsock_benches::switch::House;

/// Straight into the receiver's buffers; each packet is read and told of.
fn delivery(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("switch/deliver");
    for size in [1, 64, 1024, 3732, 16 << 10, 64 << 10] {
        let (mut house, bytes) = (House::with(1, Instant::now()), vec![1; size]);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| {
                house.send(&bytes);
                house.read();
            });
        });
    }
}

/// 256 KiB that waited, when the receiver posts its buffers.
fn backlog(criterion: &mut Criterion) {
    const WAITING: usize = 256 << 10;
    let mut group = criterion.benchmark_group("switch/flush 256 KiB of packets of");
    for size in [64, 4096, 64 << 10] {
        let bytes = vec![1; size];
        let waiting = || {
            let mut house = House::with(1, Instant::now());
            house.set_buffers(0);
            (0..WAITING / size).for_each(|_| house.send(&bytes));
            house.set_buffers(usize::MAX);
            house
        };
        group.throughput(Throughput::Bytes(WAITING as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter_batched_ref(
                waiting,
                |house| assert!(house.flush()),
                BatchSize::LargeInput,
            );
        });
    }
}

criterion_group!(benches, delivery, backlog);
criterion_main!(benches);
