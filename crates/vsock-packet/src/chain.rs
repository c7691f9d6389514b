//! A packet as it lies in a descriptor chain, in any number of pieces.
//!
//! The specification lets a driver lay out a packet as it likes (§2.7.4, message
//! framing): the header alone, with payload behind it in the same descriptor, split over
//! several; the payload in any number of descriptors, some of them empty, and each of
//! them across the border of two memory regions.
//!
//! [`read_packet`] walks a TX chain, [`write_buffer`] an RX chain. Both append what they
//! find for the payload to the caller's list of pieces, so that one list serves a whole
//! batch and one system call can carry many packets. Neither copies payload.
//!
//! A chain ends where the driver ends it, or where it breaks: a descriptor outside guest
//! memory, a loop, a nested indirect table. What came before counts; what is missing
//! shows as a chain too short.

use thiserror::Error;
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::bitmap::{BS, BitmapSlice};
use vm_memory::{Address, GuestAddress, GuestMemory, Permissions, VolatileSlice};

use crate::{HEADER_LEN, Op, RawHeader};

/// A contiguous piece of guest memory.
pub type Piece<'m, M> = VolatileSlice<'m, BS<'m, <M as GuestMemory>::Bitmap>>;

/// The most descriptors that are looked at in a chain: the length of the largest queue
/// that is served (§2.7.5.3.1: no chain is longer than its queue).
pub const MAX_DESCRIPTORS: usize = 1024;

/// What is wrong with a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ChainError {
    /// Fewer bytes than a header has.
    #[error("a chain of {available} usable bytes, too short for a header of {HEADER_LEN}")]
    NoHeader {
        /// The bytes there are.
        available: usize,
    },
    /// Fewer bytes of payload than the header's `len`.
    #[error("a chain with {available} bytes of payload where its header says {}", header.len())]
    ShortPayload {
        /// The packet's header.
        header: RawHeader,
        /// The bytes of payload there are.
        available: usize,
    },
}

impl ChainError {
    /// The header, where the chain had one: it says whom to answer.
    pub fn header(&self) -> Option<&RawHeader> {
        match self {
            Self::NoHeader { .. } => None,
            Self::ShortPayload { header, .. } => Some(header),
        }
    }
}

/// Reads the header of the packet in a TX chain, once, and appends the pieces of its
/// payload to `pieces`: exactly `len` bytes for an RW packet, none for any other.
///
/// # Errors
///
/// [`ChainError`]; `pieces` is then as before.
pub fn read_packet<'m, M: GuestMemory>(
    mem: &'m M,
    chain: DescriptorChain<&'m M>,
    pieces: &mut Vec<Piece<'m, M>>,
) -> Result<RawHeader, ChainError> {
    let start = pieces.len();
    let mut parts = Parts::new(mem, chain, Access::DeviceReads);
    let mut bytes = [0; HEADER_LEN];
    let mut filled = 0;
    let mut rest = None;
    while filled < HEADER_LEN {
        let Some(piece) = parts.next() else {
            return Err(ChainError::NoHeader { available: filled });
        };
        let (front, back) = split(&piece, HEADER_LEN - filled);
        filled += front.copy_to(&mut bytes[filled..]);
        rest = back;
    }
    let header = RawHeader::from_bytes(bytes);
    let len = if header.op() == Op::Rw as u16 {
        header.len() as usize
    } else {
        0
    };
    let mut missing = len;
    while missing > 0 {
        let Some(piece) = rest.take().or_else(|| parts.next()) else {
            pieces.truncate(start);
            return Err(ChainError::ShortPayload {
                header,
                available: len - missing,
            });
        };
        let (front, _) = split(&piece, missing);
        missing -= front.len();
        pieces.push(front);
    }
    Ok(header)
}

/// A buffer the driver has posted for a packet: an RX chain.
pub struct RxBuffer<'m, M: GuestMemory> {
    header: HeaderArea<'m, M>,
    capacity: usize,
}

/// Where the header goes. Only odd layouts split it.
enum HeaderArea<'m, M: GuestMemory> {
    Whole(Piece<'m, M>),
    Split(Vec<Piece<'m, M>>),
}

/// Finds room for a header in an RX chain and appends the pieces behind it to `pieces`,
/// up to `max_payload` bytes.
///
/// # Errors
///
/// [`ChainError::NoHeader`] when the chain has no room for a header; `pieces` is then as
/// before.
pub fn write_buffer<'m, M: GuestMemory>(
    mem: &'m M,
    chain: DescriptorChain<&'m M>,
    max_payload: usize,
    pieces: &mut Vec<Piece<'m, M>>,
) -> Result<RxBuffer<'m, M>, ChainError> {
    let mut parts = Parts::new(mem, chain, Access::DeviceWrites);
    let (header, mut rest) = header_area(&mut parts)?;
    let mut capacity = 0;
    while capacity < max_payload {
        let Some(piece) = rest.take().or_else(|| parts.next()) else {
            break;
        };
        let (front, _) = split(&piece, max_payload - capacity);
        capacity += front.len();
        pieces.push(front);
    }
    Ok(RxBuffer { header, capacity })
}

type AreaAndRest<'m, M> = (HeaderArea<'m, M>, Option<Piece<'m, M>>);

fn header_area<'m, M: GuestMemory>(
    parts: &mut Parts<'m, M>,
) -> Result<AreaAndRest<'m, M>, ChainError> {
    let mut split_area = Vec::new();
    let mut found = 0;
    loop {
        let Some(piece) = parts.next() else {
            return Err(ChainError::NoHeader { available: found });
        };
        let (front, rest) = split(&piece, HEADER_LEN - found);
        if front.len() == HEADER_LEN {
            return Ok((HeaderArea::Whole(front), rest));
        }
        found += front.len();
        split_area.push(front);
        if found == HEADER_LEN {
            return Ok((HeaderArea::Split(split_area), rest));
        }
    }
}

impl<M: GuestMemory> RxBuffer<'_, M> {
    /// Room for payload, in bytes.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Writes the packet's header.
    pub fn write_header(&self, header: &RawHeader) {
        match &self.header {
            HeaderArea::Whole(piece) => piece.copy_from(header.as_bytes()),
            HeaderArea::Split(pieces) => {
                let mut bytes = header.as_bytes().as_slice();
                for piece in pieces {
                    let (now, later) = bytes.split_at(piece.len());
                    piece.copy_from(now);
                    bytes = later;
                }
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    DeviceReads,
    DeviceWrites,
}

/// The non-empty contiguous pieces of the descriptors of a chain that grant an access.
struct Parts<'m, M: GuestMemory> {
    mem: &'m M,
    chain: DescriptorChain<&'m M>,
    access: Access,
    descriptors_left: usize,
    /// Where the rest of the current descriptor starts, and its length.
    address: GuestAddress,
    len: usize,
}

impl<'m, M: GuestMemory> Parts<'m, M> {
    fn new(mem: &'m M, chain: DescriptorChain<&'m M>, access: Access) -> Self {
        Self {
            mem,
            chain,
            access,
            descriptors_left: MAX_DESCRIPTORS,
            address: GuestAddress(0),
            len: 0,
        }
    }

    fn next(&mut self) -> Option<Piece<'m, M>> {
        while self.len == 0 {
            let descriptor = self.next_descriptor()?;
            self.address = descriptor.addr();
            self.len = descriptor.len() as usize;
        }
        let piece = self.first_piece();
        self.len = match &piece {
            Some(piece) => {
                self.address = self.address.unchecked_add(piece.len() as u64);
                self.len - piece.len()
            }
            None => 0,
        };
        piece
    }

    fn next_descriptor(&mut self) -> Option<Descriptor> {
        loop {
            self.descriptors_left = self.descriptors_left.checked_sub(1)?;
            let descriptor = self.chain.next()?;
            if descriptor.is_write_only() == (self.access == Access::DeviceWrites) {
                return Some(descriptor);
            }
        }
    }

    /// The piece at `address`, as far as one region holds it. A descriptor that leaves
    /// guest memory ends the chain, so nothing after it is looked at.
    fn first_piece(&mut self) -> Option<Piece<'m, M>> {
        let permissions = match self.access {
            Access::DeviceReads => Permissions::Read,
            Access::DeviceWrites => Permissions::Write,
        };
        let mem = self.mem;
        let piece = mem
            .get_slices(self.address, self.len, permissions)
            .ok()
            .and_then(|mut slices| slices.next())
            .and_then(Result::ok);
        if piece.is_none() {
            self.descriptors_left = 0;
        }
        piece
    }
}

/// The first `at` bytes of a piece, and the rest if there is any.
fn split<'m, B: BitmapSlice>(
    piece: &VolatileSlice<'m, B>,
    at: usize,
) -> (VolatileSlice<'m, B>, Option<VolatileSlice<'m, B>>) {
    match piece.split_at(at) {
        Ok((front, back)) if !back.is_empty() => (front, Some(back)),
        _ => (piece.clone(), None),
    }
}

#[cfg(test)]
mod tests {
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
    fn chain<'m>(
        mem: &'m Mem,
        descriptors: &[(u64, u32, u16)],
    ) -> (DescriptorChain<&'m Mem>, Queue) {
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
}
