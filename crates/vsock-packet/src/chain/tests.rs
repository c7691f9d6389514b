use proptest::prelude::*;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use virtio_vsock::packet::VsockPacket;
use vm_memory::{Bytes, GuestMemoryMmap};

use super::*;
use crate::{Cid, Header, VsockAddr};

type Mem = GuestMemoryMmap<()>;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Where buffers lie: over the border of two regions at `DATA + 0x8000`.
const DATA: u64 = 0x2_0000;

fn memory() -> Mem {
    let border = DATA as usize + 0x8000;
    Mem::from_ranges(&[
        (GuestAddress(0), border),
        (GuestAddress(border as u64), 0x10_0000),
    ])
    .unwrap()
}

/// The only chain of a queue, made of these `(address, len, flags)`.
fn chain<'m>(mem: &'m Mem, descriptors: &[(u64, u32, u16)]) -> (DescriptorChain<&'m Mem>, Queue) {
    let ring = MockSplitQueue::new(mem, 256);
    let raw: Vec<_> = descriptors
        .iter()
        .map(|&(addr, len, flags)| RawDescriptor::from(Descriptor::new(addr, len, flags, 0)))
        .collect();
    ring.build_desc_chain(&raw).unwrap();
    let mut queue: Queue = ring.create_queue().unwrap();
    let chain = queue.iter(mem).unwrap().next().unwrap();
    (chain, queue)
}

fn header(len: u32) -> RawHeader {
    let (guest, host) = (
        VsockAddr::new(Cid::new(3), 1000),
        VsockAddr::new(Cid::HOST, 80),
    );
    Header {
        len,
        ..Header::new(Op::Rw, guest, host)
    }
    .to_raw()
}

/// Lays `bytes` out at `DATA` as pieces of these lengths, one descriptor each.
fn lay_out(mem: &Mem, bytes: &[u8], lens: &[usize], flags: u16) -> Vec<(u64, u32, u16)> {
    mem.write_slice(bytes, GuestAddress(DATA)).unwrap();
    let mut at = DATA;
    let mut descriptors = Vec::new();
    for (i, &len) in lens.iter().enumerate() {
        let next = if i + 1 < lens.len() { NEXT } else { 0 };
        descriptors.push((at, len as u32, flags | next));
        at += len as u64;
    }
    descriptors
}

fn bytes_of(pieces: &[Piece<'_, Mem>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        let mut part = vec![0; piece.len()];
        piece.copy_to(&mut part);
        bytes.extend(part);
    }
    bytes
}

fn packet(len: usize) -> (RawHeader, Vec<u8>) {
    let header = header(len as u32);
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend((0..len).map(|i| i as u8));
    (header, bytes)
}

fn reads_whole(lens: &[usize]) {
    let mem = memory();
    let (expected, bytes) = packet(lens.iter().sum::<usize>() - HEADER_LEN);
    let (chain, _) = chain(&mem, &lay_out(&mem, &bytes, lens, 0));
    let mut pieces = Vec::new();
    assert_eq!(
        read_packet(&mem, chain, &mut pieces),
        Ok(expected),
        "{lens:?}"
    );
    assert_eq!(bytes_of(&pieces), bytes[HEADER_LEN..], "{lens:?}");
}

#[test]
fn reads_every_layout() {
    reads_whole(&[44]);
    reads_whole(&[44, 100]);
    reads_whole(&[144]);
    reads_whole(&[20, 24, 100]);
    reads_whole(&[20, 25, 99]);
    reads_whole(&[0, 20, 0, 24, 0, 100, 0]);
    reads_whole(&[1; 108]);
    let mut many = vec![1000; 64];
    many.insert(0, 44);
    reads_whole(&many);
}

#[test]
fn reads_payload_that_crosses_memory_regions() {
    reads_whole(&[44, 0x9000]);
    reads_whole(&[0x8000 + 44]);
}

#[test]
fn counts_only_the_payload_the_header_announces() {
    let mem = memory();
    let (_, bytes) = packet(100);
    let (chain, _) = chain(&mem, &lay_out(&mem, &bytes, &[44, 40, 60], 0));
    mem.write_slice(header(50).as_bytes(), GuestAddress(DATA))
        .unwrap();
    let mut pieces = Vec::new();
    assert_eq!(read_packet(&mem, chain, &mut pieces), Ok(header(50)));
    assert_eq!(bytes_of(&pieces), bytes[HEADER_LEN..HEADER_LEN + 50]);
}

#[test]
fn takes_no_payload_from_a_control_packet() {
    let mem = memory();
    let host = VsockAddr::new(Cid::HOST, 80);
    let request = Header {
        len: 9,
        ..Header::new(Op::Request, host, host)
    }
    .to_raw();
    let (chain, _) = chain(&mem, &lay_out(&mem, request.as_bytes(), &[44], 0));
    let mut pieces = Vec::new();
    assert_eq!(read_packet(&mem, chain, &mut pieces), Ok(request));
    assert!(pieces.is_empty());
}

#[test]
fn refuses_a_chain_shorter_than_its_packet() {
    let mem = memory();
    let (expected, bytes) = packet(100);
    let mut pieces = Vec::new();
    for (lens, error) in [
        (vec![43], ChainError::NoHeader { available: 43 }),
        (vec![0], ChainError::NoHeader { available: 0 }),
        (
            vec![44, 99],
            ChainError::ShortPayload {
                header: expected,
                available: 99,
            },
        ),
    ] {
        let (chain, _) = chain(&mem, &lay_out(&mem, &bytes, &lens, 0));
        assert_eq!(read_packet(&mem, chain, &mut pieces), Err(error));
        assert!(pieces.is_empty());
    }
}

#[test]
fn a_descriptor_outside_guest_memory_ends_the_chain() {
    let mem = memory();
    let (expected, bytes) = packet(100);
    let mut descriptors = lay_out(&mem, &bytes, &[44, 50, 50], 0);
    descriptors[1].0 = u64::MAX - 10;
    let (chain, _) = chain(&mem, &descriptors);
    let mut pieces = Vec::new();
    assert_eq!(
        read_packet(&mem, chain, &mut pieces),
        Err(ChainError::ShortPayload {
            header: expected,
            available: 0
        })
    );
}

#[test]
fn looks_at_no_descriptor_the_device_may_not_read() {
    let mem = memory();
    let (_, bytes) = packet(0);
    let (chain, _) = chain(&mem, &lay_out(&mem, &bytes, &[44], WRITE));
    assert_eq!(
        read_packet(&mem, chain, &mut Vec::new()),
        Err(ChainError::NoHeader { available: 0 })
    );
}

#[test]
fn a_loop_of_descriptors_ends() {
    let mem = memory();
    let (_, bytes) = packet(1000);
    let descriptors = lay_out(&mem, &bytes, &[44, 0], 0);
    let (_, mut queue) = chain(&mem, &descriptors);
    let looped = RawDescriptor::from(Descriptor::new(DATA + 44, 0, NEXT, 1));
    mem.write_obj(looped, GuestAddress(queue.desc_table() + 16))
        .unwrap();
    queue.go_to_previous_position();
    let chain = queue.iter(&mem).unwrap().next().unwrap();
    let error = read_packet(&mem, chain, &mut Vec::new()).unwrap_err();
    assert!(
        matches!(error, ChainError::ShortPayload { available: 0, .. }),
        "{error}"
    );
}

#[test]
fn reads_indirect_tables() {
    let mem = memory();
    let (expected, bytes) = packet(100);
    let table = DATA + 0x4_0000;
    for (i, &(addr, len, flags)) in lay_out(&mem, &bytes, &[44, 60, 40], 0).iter().enumerate() {
        let descriptor = RawDescriptor::from(Descriptor::new(addr, len, flags, i as u16 + 1));
        mem.write_obj(descriptor, GuestAddress(table + 16 * i as u64))
            .unwrap();
    }
    let (chain, _) = chain(&mem, &[(table, 48, INDIRECT)]);
    let mut pieces = Vec::new();
    assert_eq!(read_packet(&mem, chain, &mut pieces), Ok(expected));
    assert_eq!(bytes_of(&pieces), bytes[HEADER_LEN..]);
}

fn writes_whole(lens: &[usize]) {
    let mem = memory();
    let (header, bytes) = packet(lens.iter().sum::<usize>() - HEADER_LEN);
    let blank = vec![0xff; bytes.len()];
    let (chain, _) = chain(&mem, &lay_out(&mem, &blank, lens, WRITE));
    let mut pieces = Vec::new();
    let buffer = write_buffer(&mem, chain, usize::MAX, &mut pieces).unwrap();
    assert_eq!(buffer.capacity(), bytes.len() - HEADER_LEN);
    buffer.write_header(&header);
    let mut payload = &bytes[HEADER_LEN..];
    for piece in &pieces {
        piece.copy_from(&payload[..piece.len()]);
        payload = &payload[piece.len()..];
    }
    let mut written = vec![0; bytes.len()];
    mem.read_slice(&mut written, GuestAddress(DATA)).unwrap();
    assert_eq!(written, bytes, "{lens:?}");
}

#[test]
fn writes_every_layout() {
    writes_whole(&[44]);
    writes_whole(&[45]);
    writes_whole(&[44, 4096]);
    writes_whole(&[3776]);
    writes_whole(&[20, 0, 30, 100]);
    writes_whole(&[1; 60]);
    writes_whole(&[65536]);
}

#[test]
fn takes_no_more_of_a_buffer_than_is_wanted() {
    let mem = memory();
    let (chain, _) = chain(&mem, &lay_out(&mem, &[0; 300], &[144, 156], WRITE));
    let mut pieces = Vec::new();
    let buffer = write_buffer(&mem, chain, 120, &mut pieces).unwrap();
    assert_eq!(buffer.capacity(), 120);
    assert_eq!(
        pieces.iter().map(VolatileSlice::len).collect::<Vec<_>>(),
        [100, 20]
    );
}

#[test]
fn refuses_a_buffer_without_room_for_a_header() {
    let mem = memory();
    let (chain, _) = chain(&mem, &lay_out(&mem, &[0; 43], &[20, 23], WRITE));
    let mut pieces = Vec::new();
    let error = write_buffer(&mem, chain, 120, &mut pieces).err();
    assert_eq!(error, Some(ChainError::NoHeader { available: 43 }));
    assert!(pieces.is_empty());
}

proptest! {
    /// However header and payload are cut into descriptors, they are read whole.
    #[test]
    fn any_cut_is_read_whole(lens in prop::collection::vec(0usize..700, 1..64)) {
        let total: usize = lens.iter().sum();
        prop_assume!(total >= HEADER_LEN);
        reads_whole(&lens);
        writes_whole(&lens);
    }

    /// The rust-vmm parser finds the same packet in the layouts it can read.
    #[test]
    fn agrees_with_the_virtio_vsock_crate(len in 1usize..5000, apart: bool) {
        let mem = memory();
        let (_, bytes) = packet(len);
        let lens = if apart { vec![HEADER_LEN, len] } else { vec![HEADER_LEN + len] };
        let descriptors = lay_out(&mem, &bytes, &lens, 0);
        let mut theirs = chain(&mem, &descriptors).0;
        let theirs = VsockPacket::from_tx_virtq_chain(&mem, &mut theirs, 1 << 16).unwrap();
        let mut pieces = Vec::new();
        let ours = read_packet(&mem, chain(&mem, &descriptors).0, &mut pieces).unwrap();
        prop_assert_eq!(ours.src_cid(), theirs.src_cid());
        prop_assert_eq!(ours.dst_cid(), theirs.dst_cid());
        prop_assert_eq!(ours.src_port(), theirs.src_port());
        prop_assert_eq!(ours.dst_port(), theirs.dst_port());
        prop_assert_eq!(ours.len(), theirs.len());
        prop_assert_eq!(ours.socket_type(), theirs.type_());
        prop_assert_eq!(ours.op(), theirs.op());
        prop_assert_eq!(bytes_of(&pieces), bytes_of(&[*theirs.data_slice().unwrap()]));
    }
}
