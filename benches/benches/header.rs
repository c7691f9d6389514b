//! A header from the wire and back.

#![allow(missing_docs, reason = "criterion's macros make the items")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use vsock_packet::{Cid, Header, Op, VsockAddr};

fn header(criterion: &mut Criterion) {
    let [src, dst] = [Cid::new(3), Cid::new(4)].map(|cid| VsockAddr::new(cid, 1024));
    let header = Header {
        len: 65_536,
        buf_alloc: 262_144,
        ..Header::new(Op::Rw, src, dst)
    };
    let raw = header.to_raw();
    criterion.bench_function("header/parse", |bencher| {
        bencher.iter(|| Header::parse(black_box(&raw)));
    });
    criterion.bench_function("header/encode", |bencher| {
        bencher.iter(|| black_box(&header).to_raw());
    });
    criterion.bench_function("header/answer with an RST", |bencher| {
        bencher.iter(|| black_box(&raw).rst());
    });
}

criterion_group!(benches, header);
criterion_main!(benches);
