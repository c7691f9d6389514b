//! Parts of packets that several targets make up.

use arbitrary::Arbitrary;
use vsock_packet::Op;

/// A count of bytes: a likely one, or any.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Bytes {
    Few(u8),
    Some(u16),
    /// Around 4 MiB, where windows are cut off.
    Many(u8),
    Any(u32),
}

impl Bytes {
    pub(crate) fn value(self) -> u32 {
        match self {
            Self::Few(count) => count.into(),
            Self::Some(count) => count.into(),
            Self::Many(count) => (4 << 20) - 128 + u32::from(count),
            Self::Any(count) => count,
        }
    }
}

/// Any operation.
#[derive(Arbitrary, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AnyOp {
    Request,
    Response,
    Rst,
    Shutdown,
    Rw,
    CreditUpdate,
    CreditRequest,
}

impl From<AnyOp> for Op {
    fn from(op: AnyOp) -> Self {
        match op {
            AnyOp::Request => Self::Request,
            AnyOp::Response => Self::Response,
            AnyOp::Rst => Self::Rst,
            AnyOp::Shutdown => Self::Shutdown,
            AnyOp::Rw => Self::Rw,
            AnyOp::CreditUpdate => Self::CreditUpdate,
            AnyOp::CreditRequest => Self::CreditRequest,
        }
    }
}
