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

impl<'m, M: GuestMemory> RxBuffer<'m, M> {
    /// The buffer of a chain that is a single `piece`; as [`write_buffer`] otherwise.
    ///
    /// # Errors
    ///
    /// [`ChainError::NoHeader`] when it has no room for a header.
    pub fn of_piece(
        piece: &Piece<'m, M>,
        max_payload: usize,
        pieces: &mut Vec<Piece<'m, M>>,
    ) -> Result<Self, ChainError> {
        let (header, rest) = split(piece, HEADER_LEN);
        if header.len() < HEADER_LEN {
            let available = header.len();
            return Err(ChainError::NoHeader { available });
        }
        let mut capacity = 0;
        if let Some(rest) = rest
            && max_payload > 0
        {
            let (front, _) = split(&rest, max_payload);
            capacity = front.len();
            pieces.push(front);
        }
        let header = HeaderArea::Whole(header);
        Ok(Self { header, capacity })
    }
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
mod tests;
