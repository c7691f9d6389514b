//! The header of a packet (§5.10.6): `struct virtio_vsock_hdr`, 44 bytes, little endian.
//!
//! ```text
//!  0        8        16   20   24   28  30  32    36        40
//!  │src_cid │dst_cid │src │dst │len │typ│op │flags│buf_alloc│fwd_cnt│
//!  │        │        │port│port│    │   │   │     │         │       │
//! ```

use std::fmt;
use std::ops::Range;

use thiserror::Error;

use crate::{Cid, HEADER_LEN, Op, ShutdownFlags, SocketType, VsockAddr};

mod field {
    use super::Range;

    pub(super) const SRC_CID: Range<usize> = 0..8;
    pub(super) const DST_CID: Range<usize> = 8..16;
    pub(super) const SRC_PORT: Range<usize> = 16..20;
    pub(super) const DST_PORT: Range<usize> = 20..24;
    pub(super) const LEN: Range<usize> = 24..28;
    pub(super) const TYPE: Range<usize> = 28..30;
    pub(super) const OP: Range<usize> = 30..32;
    pub(super) const FLAGS: Range<usize> = 32..36;
    pub(super) const BUF_ALLOC: Range<usize> = 36..40;
    pub(super) const FWD_CNT: Range<usize> = 40..44;
}

/// A header as it lies on the wire, of any content.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RawHeader([u8; HEADER_LEN]);

impl RawHeader {
    /// The header made of these bytes.
    pub const fn from_bytes(bytes: [u8; HEADER_LEN]) -> Self {
        Self(bytes)
    }

    /// The header's bytes.
    pub const fn as_bytes(&self) -> &[u8; HEADER_LEN] {
        &self.0
    }

    fn array<const N: usize>(&self, range: Range<usize>) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[range]);
        bytes
    }

    /// `src_cid`, all 64 bits.
    pub fn src_cid(&self) -> u64 {
        u64::from_le_bytes(self.array(field::SRC_CID))
    }

    /// `dst_cid`, all 64 bits.
    pub fn dst_cid(&self) -> u64 {
        u64::from_le_bytes(self.array(field::DST_CID))
    }

    /// `src_port`.
    pub fn src_port(&self) -> u32 {
        u32::from_le_bytes(self.array(field::SRC_PORT))
    }

    /// `dst_port`.
    pub fn dst_port(&self) -> u32 {
        u32::from_le_bytes(self.array(field::DST_PORT))
    }

    /// `len`, in bytes of payload.
    pub fn len(&self) -> u32 {
        u32::from_le_bytes(self.array(field::LEN))
    }

    /// Whether `len` is zero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `type`.
    pub fn socket_type(&self) -> u16 {
        u16::from_le_bytes(self.array(field::TYPE))
    }

    /// `op`.
    pub fn op(&self) -> u16 {
        u16::from_le_bytes(self.array(field::OP))
    }

    /// `flags`.
    pub fn flags(&self) -> u32 {
        u32::from_le_bytes(self.array(field::FLAGS))
    }

    /// `buf_alloc`, in bytes.
    pub fn buf_alloc(&self) -> u32 {
        u32::from_le_bytes(self.array(field::BUF_ALLOC))
    }

    /// `fwd_cnt`, in bytes.
    pub fn fwd_cnt(&self) -> u32 {
        u32::from_le_bytes(self.array(field::FWD_CNT))
    }

    /// Writes `len`.
    pub fn set_len(&mut self, len: u32) {
        self.0[field::LEN].copy_from_slice(&len.to_le_bytes());
    }

    /// Writes `flags`.
    pub fn set_flags(&mut self, flags: u32) {
        self.0[field::FLAGS].copy_from_slice(&flags.to_le_bytes());
    }

    /// The ends the packet names, source first; `None` when one is not a CID of 32 bits.
    pub fn ends(&self) -> Option<(VsockAddr, VsockAddr)> {
        let src = VsockAddr::new(Cid::from_wire(self.src_cid())?, self.src_port());
        let dst = VsockAddr::new(Cid::from_wire(self.dst_cid())?, self.dst_port());
        Some((src, dst))
    }

    /// The RST that answers this packet when no connection is there for it: both ends
    /// swapped, the same type, no payload and no credit.
    ///
    /// `None` when the packet is itself an RST, which is never answered (§5.10.6.5).
    pub fn rst(&self) -> Option<Self> {
        if self.op() == Op::Rst as u16 {
            return None;
        }
        let mut bytes = [0; HEADER_LEN];
        bytes[field::SRC_CID].copy_from_slice(&self.0[field::DST_CID]);
        bytes[field::DST_CID].copy_from_slice(&self.0[field::SRC_CID]);
        bytes[field::SRC_PORT].copy_from_slice(&self.0[field::DST_PORT]);
        bytes[field::DST_PORT].copy_from_slice(&self.0[field::SRC_PORT]);
        bytes[field::TYPE].copy_from_slice(&self.0[field::TYPE]);
        bytes[field::OP].copy_from_slice(&(Op::Rst as u16).to_le_bytes());
        Some(Self(bytes))
    }
}

impl fmt::Debug for RawHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawHeader")
            .field("src_cid", &self.src_cid())
            .field("dst_cid", &self.dst_cid())
            .field("src_port", &self.src_port())
            .field("dst_port", &self.dst_port())
            .field("len", &self.len())
            .field("type", &self.socket_type())
            .field("op", &self.op())
            .field("flags", &self.flags())
            .field("buf_alloc", &self.buf_alloc())
            .field("fwd_cnt", &self.fwd_cnt())
            .finish()
    }
}

/// Why a header is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum HeaderError {
    /// The upper 32 bits of a CID are not zero (§5.10.4).
    #[error("a CID with non-zero upper bits: src {src_cid:#x}, dst {dst_cid:#x}")]
    WideCid {
        /// `src_cid` as sent.
        src_cid: u64,
        /// `dst_cid` as sent.
        dst_cid: u64,
    },
    /// Neither STREAM nor SEQPACKET.
    #[error("unknown socket type {0}")]
    UnknownType(u16),
    /// Op 0, or one the specification does not know.
    #[error("unknown operation {0}")]
    UnknownOp(u16),
}

/// A validated header: what connections and routers work on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The end that sends.
    pub src: VsockAddr,
    /// The end that is to receive.
    pub dst: VsockAddr,
    /// Payload in bytes; meaningful on [`Op::Rw`] only.
    pub len: u32,
    /// The kind of socket.
    pub socket_type: SocketType,
    /// What the packet does.
    pub op: Op,
    /// [`ShutdownFlags`] or [`RwFlags`](crate::RwFlags), by `op`; unknown bits kept.
    pub flags: u32,
    /// The sender's receive buffer in bytes, for this connection.
    pub buf_alloc: u32,
    /// Bytes of payload that left the sender's receive buffer so far, wrapping.
    pub fwd_cnt: u32,
}

impl Header {
    /// A header of `op` from `src` to `dst` on a stream, everything else zero.
    pub fn new(op: Op, src: VsockAddr, dst: VsockAddr) -> Self {
        Self {
            src,
            dst,
            len: 0,
            socket_type: SocketType::Stream,
            op,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }

    /// Validates a header.
    ///
    /// # Errors
    ///
    /// [`HeaderError`] for a CID of more than 32 bits, an unknown type or an unknown op.
    /// The caller answers with [`RawHeader::rst`].
    pub fn parse(raw: &RawHeader) -> Result<Self, HeaderError> {
        let Some((src, dst)) = raw.ends() else {
            let (src_cid, dst_cid) = (raw.src_cid(), raw.dst_cid());
            return Err(HeaderError::WideCid { src_cid, dst_cid });
        };
        let socket_type = SocketType::from_wire(raw.socket_type())
            .ok_or(HeaderError::UnknownType(raw.socket_type()))?;
        let op = Op::from_wire(raw.op()).ok_or(HeaderError::UnknownOp(raw.op()))?;
        Ok(Self {
            src,
            dst,
            len: raw.len(),
            socket_type,
            op,
            flags: raw.flags(),
            buf_alloc: raw.buf_alloc(),
            fwd_cnt: raw.fwd_cnt(),
        })
    }

    /// The header as it lies on the wire.
    pub fn to_raw(&self) -> RawHeader {
        let mut bytes = [0; HEADER_LEN];
        bytes[field::SRC_CID].copy_from_slice(&u64::from(self.src.cid).to_le_bytes());
        bytes[field::DST_CID].copy_from_slice(&u64::from(self.dst.cid).to_le_bytes());
        bytes[field::SRC_PORT].copy_from_slice(&self.src.port.value().to_le_bytes());
        bytes[field::DST_PORT].copy_from_slice(&self.dst.port.value().to_le_bytes());
        bytes[field::LEN].copy_from_slice(&self.len.to_le_bytes());
        bytes[field::TYPE].copy_from_slice(&(self.socket_type as u16).to_le_bytes());
        bytes[field::OP].copy_from_slice(&(self.op as u16).to_le_bytes());
        bytes[field::FLAGS].copy_from_slice(&self.flags.to_le_bytes());
        bytes[field::BUF_ALLOC].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[field::FWD_CNT].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        RawHeader(bytes)
    }

    /// The flags of a SHUTDOWN, unknown bits dropped.
    pub fn shutdown_flags(&self) -> ShutdownFlags {
        ShutdownFlags::from_bits_truncate(self.flags)
    }
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} {} -> {}",
            self.socket_type, self.op, self.src, self.dst
        )?;
        match self.op {
            Op::Rw => write!(f, " len={}", self.len)?,
            Op::Shutdown => write!(f, " flags={:?}", self.shutdown_flags())?,
            _ => (),
        }
        write!(f, " buf_alloc={} fwd_cnt={}", self.buf_alloc, self.fwd_cnt)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BYTES: [u8; HEADER_LEN] = [
        0x03, 0, 0, 0, 0, 0, 0, 0, // src_cid
        0x02, 0, 0, 0, 0, 0, 0, 0, // dst_cid
        0x78, 0x56, 0x34, 0x12, // src_port
        0x00, 0x04, 0, 0, // dst_port
        0x10, 0, 0, 0, // len
        0x01, 0, // type
        0x05, 0, // op
        0x00, 0, 0, 0, // flags
        0x00, 0x00, 0x04, 0, // buf_alloc
        0xff, 0xff, 0xff, 0xff, // fwd_cnt
    ];

    fn header() -> Header {
        Header {
            src: VsockAddr::new(Cid::new(3), 0x1234_5678),
            dst: VsockAddr::new(Cid::HOST, 1024),
            len: 16,
            socket_type: SocketType::Stream,
            op: Op::Rw,
            flags: 0,
            buf_alloc: 256 * 1024,
            fwd_cnt: u32::MAX,
        }
    }

    #[test]
    fn parses_and_encodes_the_bytes_of_the_specification() {
        assert_eq!(Header::parse(&RawHeader::from_bytes(BYTES)), Ok(header()));
        assert_eq!(header().to_raw().as_bytes(), &BYTES);
    }

    #[test]
    fn refuses_a_cid_of_more_than_32_bits() {
        for byte in [4, 12] {
            let mut bytes = BYTES;
            bytes[byte] = 1;
            let error = Header::parse(&RawHeader::from_bytes(bytes)).unwrap_err();
            assert!(matches!(error, HeaderError::WideCid { .. }), "{error}");
        }
    }

    #[test]
    fn refuses_unknown_types_and_operations() {
        let mut bytes = BYTES;
        bytes[28] = 3;
        assert_eq!(
            Header::parse(&RawHeader::from_bytes(bytes)),
            Err(HeaderError::UnknownType(3))
        );
        for op in [0, 8] {
            let mut bytes = BYTES;
            bytes[30] = op;
            assert_eq!(
                Header::parse(&RawHeader::from_bytes(bytes)),
                Err(HeaderError::UnknownOp(u16::from(op)))
            );
        }
    }

    #[test]
    fn answers_a_stranger_with_swapped_ends_and_its_own_type() {
        let mut bytes = BYTES;
        bytes[28] = 9;
        let rst = RawHeader::from_bytes(bytes).rst().unwrap();
        assert_eq!((rst.src_cid(), rst.dst_cid()), (2, 3));
        assert_eq!((rst.src_port(), rst.dst_port()), (1024, 0x1234_5678));
        assert_eq!(
            (rst.socket_type(), rst.op(), rst.len()),
            (9, Op::Rst as u16, 0)
        );
    }

    #[test]
    fn never_answers_an_rst() {
        assert_eq!(
            Header {
                op: Op::Rst,
                ..header()
            }
            .to_raw()
            .rst(),
            None
        );
    }

    #[test]
    fn reads_as_a_line_of_a_log() {
        assert_eq!(
            header().to_string(),
            "STREAM RW 3:305419896 -> 2:1024 len=16 buf_alloc=262144 fwd_cnt=4294967295"
        );
    }

    proptest! {
        /// Whatever parses, encodes to what it was parsed from.
        #[test]
        fn parsing_loses_nothing(bytes: [u8; HEADER_LEN], op in 0u8..10, kind in 0u8..4) {
            let mut bytes = bytes;
            bytes[4..8].fill(0);
            bytes[12..16].fill(0);
            bytes[28..32].copy_from_slice(&[kind, 0, op, 0]);
            let raw = RawHeader::from_bytes(bytes);
            let known = (1..=7).contains(&op) && (1..=2).contains(&kind);
            match Header::parse(&raw) {
                Ok(header) => prop_assert!(known && header.to_raw() == raw),
                Err(_) => prop_assert!(!known),
            }
        }
    }
}
