//! A packet of 64 KiB found in a TX chain, by layout.

#![allow(missing_docs, reason = "criterion's macros make the items")]
#![allow(clippy::unwrap_used, reason = "a benchmark panics where it fails")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, VolatileSlice};
use vsock_packet::chain::read_packet;
use vsock_packet::{Cid, HEADER_LEN, Header, Op, VsockAddr};

/// Where the packet lies.
const PACKET: u64 = 0x10_0000;
const PAYLOAD: usize = 64 << 10;

fn descriptors(pieces: &[usize]) -> Vec<RawDescriptor> {
    let mut at = PACKET;
    let mut next = |len: &usize| {
        let descriptor = Descriptor::new(at, *len as u32, 0, 0);
        at += *len as u64;
        RawDescriptor::from(descriptor)
    };
    pieces.iter().map(&mut next).collect()
}

fn chain(criterion: &mut Criterion) {
    let [src, dst] = [Cid::new(3), Cid::new(4)].map(|cid| VsockAddr::new(cid, 1024));
    let header = Header {
        len: PAYLOAD as u32,
        ..Header::new(Op::Rw, src, dst)
    };
    let one = vec![HEADER_LEN + PAYLOAD];
    let two = vec![HEADER_LEN, PAYLOAD];
    let many = [vec![HEADER_LEN], vec![PAYLOAD / 64; 64]].concat();
    for (name, pieces) in [
        ("one descriptor", one),
        ("header and payload", two),
        ("64 pieces of payload", many),
    ] {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        memory
            .write_slice(header.to_raw().as_bytes(), GuestAddress(PACKET))
            .unwrap();
        let ring = MockSplitQueue::new(&memory, 256);
        ring.build_desc_chain(&descriptors(&pieces)).unwrap();
        let mut queue: Queue = ring.create_queue().unwrap();
        let mut found = Vec::new();
        criterion.bench_function(&format!("chain/{name}"), |bencher| {
            bencher.iter(|| {
                queue.set_next_avail(0);
                found.clear();
                let chain = queue.pop_descriptor_chain(&memory).unwrap();
                black_box(read_packet(&memory, chain, &mut found).unwrap())
            });
        });
        assert_eq!(found.iter().map(VolatileSlice::len).sum::<usize>(), PAYLOAD);
    }
}

criterion_group!(benches, chain);
criterion_main!(benches);
