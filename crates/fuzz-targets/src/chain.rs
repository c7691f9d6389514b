//! Packets in descriptor chains of hostile shape: held against a plain reading of the
//! same chain, interval by interval.

use arbitrary::Arbitrary;
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vsock_packet::chain::{ChainError, MAX_DESCRIPTORS, Piece, read_packet, write_buffer};
use vsock_packet::{HEADER_LEN, Header, Op, Payload, RawHeader};

use crate::steps::Steps;

type Memory = GuestMemoryMmap<()>;

/// Two regions that touch, a gap, and another one.
const REGIONS: [(u64, u64); 3] = [(0, 0x1000), (0x1000, 0x1000), (0x1_0000, 0x1000)];
/// As guests see it: where memory is without a gap.
const GROUND: [(u64, u64); 2] = [(0, 0x2000), (0x1_0000, 0x1_1000)];
const QUEUE_SIZE: u16 = 64;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x500;
/// Where headers usually are.
const DATA: u64 = 0xf00;
/// Where indirect tables usually are.
const TABLE: u64 = 0x1800;

#[derive(Arbitrary, Debug)]
struct Layout {
    op: Op4,
    len: Length,
    max_payload: Length,
    rx_head: u8,
    header: [u8; 16],
}

#[derive(Arbitrary, Debug)]
enum Op4 {
    Payload,
    Any(u16),
}

/// A descriptor, and in which table it is.
#[derive(Arbitrary, Debug)]
struct Slot {
    address: Address,
    len: Length,
    flags: u8,
    next: Next,
    indirect: bool,
}

#[derive(Arbitrary, Debug)]
enum Address {
    Data(u8),
    Table,
    Low(u16),
    BeforeEdge(u8),
    Gap(u8),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
enum Length {
    Short(u8),
    Middle(u16),
    Any(u32),
}

#[derive(Arbitrary, Debug)]
enum Next {
    Following,
    Any(u8),
}

impl Address {
    fn value(&self) -> u64 {
        match *self {
            Self::Data(offset) => DATA + u64::from(offset),
            Self::Table => TABLE,
            Self::Low(address) => u64::from(address) % 0x2000,
            Self::BeforeEdge(distance) => 0x2000 - u64::from(distance),
            Self::Gap(distance) => 0x1_0000 - 0x80 + u64::from(distance),
            Self::Any(address) => address,
        }
    }
}

impl Length {
    fn value(&self) -> u32 {
        match *self {
            Self::Short(len) => len.into(),
            Self::Middle(len) => u32::from(len) % 0x3000,
            Self::Any(len) => len,
        }
    }
}

/// Runs an input.
pub(crate) fn run(data: &[u8]) {
    thread_local! {
        static MEMORY: Memory = {
            let regions = REGIONS.map(|(start, len)| (GuestAddress(start), len as usize));
            Memory::from_ranges(&regions).unwrap()
        };
    }
    MEMORY.with(|memory| run_in(memory, data));
}

fn run_in(memory: &Memory, data: &[u8]) {
    let mut steps = Steps::new(data);
    let Some(layout) = steps.next::<Layout>() else {
        return;
    };
    for (start, len) in REGIONS {
        let bytes: Vec<u8> = (start..start + len).map(|at| (at % 251) as u8).collect();
        memory.write_slice(&bytes, GuestAddress(start)).unwrap();
    }
    memory
        .write_slice(&header(&layout), GuestAddress(DATA))
        .unwrap();
    write_tables(memory, &mut steps);
    read(memory, &layout);
    write(memory, &layout);
}

fn header(layout: &Layout) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    // The ends, of which the upper halves are usually zero.
    bytes[0] = layout.header[0];
    bytes[5] = layout.header[1] >> 7;
    bytes[8] = layout.header[2];
    bytes[13] = layout.header[3] >> 7;
    bytes[16..24].copy_from_slice(&layout.header[4..12]);
    bytes[28..30].copy_from_slice(&layout.header[12..14]);
    bytes[32..34].copy_from_slice(&layout.header[14..16]);
    let op = match layout.op {
        Op4::Payload => Op::Rw as u16,
        Op4::Any(op) => op,
    };
    bytes[24..28].copy_from_slice(&layout.len.value().to_le_bytes());
    bytes[30..32].copy_from_slice(&op.to_le_bytes());
    bytes
}

fn write_tables(memory: &Memory, steps: &mut Steps<'_>) {
    let (mut direct, mut indirect) = (0u16, 0u16);
    while let Some(slot) = steps.next::<Slot>() {
        let (table, index) = match slot.indirect {
            true => (TABLE, &mut indirect),
            false => (0, &mut direct),
        };
        if *index >= QUEUE_SIZE {
            return;
        }
        let next = match slot.next {
            Next::Following => *index + 1,
            Next::Any(next) => next.into(),
        };
        let at = table + 16 * u64::from(*index);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&slot.address.value().to_le_bytes());
        bytes[8..12].copy_from_slice(&slot.len.value().to_le_bytes());
        bytes[12..14].copy_from_slice(&u16::from(slot.flags & 7).to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        memory.write_slice(&bytes, GuestAddress(at)).unwrap();
        *index += 1;
    }
}

/// The chain that starts at a descriptor.
fn chain(memory: &Memory, head: u16) -> DescriptorChain<&Memory> {
    let available = [0, 1, head];
    for (at, word) in (AVAILABLE..).step_by(2).zip(available) {
        memory.write_obj(word, GuestAddress(at)).unwrap();
    }
    let mut queue = Queue::new(QUEUE_SIZE).unwrap();
    queue.set_desc_table_address(Some(0), Some(0));
    queue.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
    queue.set_used_ring_address(Some(USED as u32), Some(0));
    queue.set_ready(true);
    queue.pop_descriptor_chain(memory).unwrap()
}

/// The memory that a chain grants, as the driver wrote it: start and length of each piece.
fn granted(chain: DescriptorChain<&Memory>, writable: bool) -> Vec<(u64, u64)> {
    let mut granted = Vec::new();
    for descriptor in chain.take(MAX_DESCRIPTORS) {
        let (start, len) = (descriptor.addr().0, u64::from(descriptor.len()));
        if descriptor.is_write_only() != writable || len == 0 {
            continue;
        }
        let ground = GROUND
            .iter()
            .find(|(from, to)| (*from..*to).contains(&start));
        let there = ground.map_or(0, |(_, to)| len.min(to - start));
        granted.push((start, there));
        if there < len {
            break;
        }
    }
    granted
}

fn total(granted: &[(u64, u64)]) -> u64 {
    granted.iter().map(|(_, len)| len).sum()
}

/// The bytes from `from` on, so many of them.
fn bytes_of(memory: &Memory, granted: &[(u64, u64)], from: usize, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (start, len) in granted {
        if bytes.len() >= from + count {
            break;
        }
        let at = bytes.len();
        bytes.resize(at + *len as usize, 0);
        memory
            .read_slice(&mut bytes[at..], GuestAddress(*start))
            .unwrap();
    }
    bytes.truncate(from + count);
    bytes.split_off(from)
}

fn bytes_in(pieces: &[Piece<'_, Memory>]) -> Vec<u8> {
    let mut payload = Payload::from_pieces(pieces);
    let mut bytes = vec![0; payload.len()];
    // In two steps, so that the cursor stops somewhere.
    let half = bytes.len() / 2;
    assert_eq!(payload.copy_to_bytes(&mut bytes[..half]), half);
    let rest = payload.len();
    assert_eq!(payload.copy_to_bytes(&mut bytes[half..]), rest);
    assert!(payload.is_empty());
    bytes
}

fn read(memory: &Memory, layout: &Layout) {
    let chain = chain(memory, 0);
    let granted = granted(chain.clone(), false);
    let available = total(&granted) as usize;
    let mut pieces = Vec::new();
    let result = read_packet(memory, chain, &mut pieces);
    match result {
        Err(ChainError::NoHeader { available: said }) => {
            assert_eq!(said, available);
            assert!(said < HEADER_LEN && pieces.is_empty());
        }
        Err(ChainError::ShortPayload {
            header,
            available: said,
        }) => {
            assert_eq!(
                header.as_bytes().as_slice(),
                bytes_of(memory, &granted, 0, HEADER_LEN)
            );
            assert_eq!(said, available - HEADER_LEN);
            assert!(said < header.len() as usize && header.op() == Op::Rw as u16);
            assert!(pieces.is_empty());
        }
        Ok(header) => {
            assert_eq!(
                header.as_bytes().as_slice(),
                bytes_of(memory, &granted, 0, HEADER_LEN)
            );
            let len = match header.op() == Op::Rw as u16 {
                true => header.len() as usize,
                false => 0,
            };
            let bytes = bytes_of(memory, &granted, HEADER_LEN, len);
            assert_eq!(bytes.len(), len);
            assert_eq!(bytes_in(&pieces), bytes);
            parse(&header);
            pass_on(memory, layout, &pieces);
        }
    }
}

fn parse(raw: &RawHeader) {
    if let Ok(header) = Header::parse(raw) {
        // What the flags of an unknown kind mean is nobody's business, but they stay.
        assert_eq!(Header::parse(&header.to_raw()), Ok(header));
        assert_eq!(header.to_raw(), *raw);
    }
    if let Some(rst) = raw.rst() {
        assert_eq!(
            (rst.src_cid(), rst.dst_cid()),
            (raw.dst_cid(), raw.src_cid())
        );
        assert_eq!((rst.op(), rst.len()), (Op::Rst as u16, 0));
        assert!(rst.rst().is_none());
    }
}

/// Copies a packet's payload from one chain to another, as the switch does.
fn pass_on(memory: &Memory, layout: &Layout, pieces: &[Piece<'_, Memory>]) {
    let chain = chain(memory, u16::from(layout.rx_head) % QUEUE_SIZE);
    let mut room = Vec::new();
    if write_buffer(memory, chain, 0x4000, &mut room).is_ok() {
        let mut payload = Payload::from_pieces(pieces);
        let expected = payload
            .len()
            .min(room.iter().map(Piece::<Memory>::len).sum());
        let copied: usize = room.iter().map(|piece| payload.copy_to_piece(piece)).sum();
        assert_eq!(copied, expected);
    }
}

fn write(memory: &Memory, layout: &Layout) {
    let chain = chain(memory, u16::from(layout.rx_head) % QUEUE_SIZE);
    let granted = granted(chain.clone(), true);
    let available = total(&granted) as usize;
    let max_payload = layout.max_payload.value() as usize;
    let mut pieces = Vec::new();
    match write_buffer(memory, chain, max_payload, &mut pieces) {
        Err(error) => {
            assert_eq!(error, ChainError::NoHeader { available });
            assert!(available < HEADER_LEN && pieces.is_empty());
        }
        Ok(buffer) => {
            let capacity = max_payload.min(available - HEADER_LEN);
            assert_eq!(buffer.capacity(), capacity);
            assert_eq!(
                pieces.iter().map(Piece::<Memory>::len).sum::<usize>(),
                capacity
            );
            let behind = bytes_of(memory, &granted, HEADER_LEN, capacity);
            assert_eq!(bytes_in(&pieces), behind);
            let header = RawHeader::from_bytes([0xa5; HEADER_LEN]);
            buffer.write_header(&header);
            // Where its pieces lie over each other they are all the same bytes.
            assert_eq!(
                bytes_of(memory, &granted, 0, HEADER_LEN),
                header.as_bytes().as_slice()
            );
        }
    }
}
