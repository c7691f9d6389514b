//! Operations, socket types and flags (§5.10.6).

use std::fmt;

use bitflags::bitflags;

/// What a packet does. Op 0 is invalid and has no value here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u16)]
pub enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Accepts a connection.
    Response = 2,
    /// Refuses or ends a connection at once.
    Rst = 3,
    /// Ends one or both directions: see [`ShutdownFlags`].
    Shutdown = 4,
    /// Carries payload.
    Rw = 5,
    /// Tells the sender's `buf_alloc` and `fwd_cnt`.
    CreditUpdate = 6,
    /// Asks for a [`CreditUpdate`](Self::CreditUpdate).
    CreditRequest = 7,
}

impl Op {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Request,
        Self::Response,
        Self::Rst,
        Self::Shutdown,
        Self::Rw,
        Self::CreditUpdate,
        Self::CreditRequest,
    ];

    /// The operation of this number; `None` for 0 and unknown numbers.
    pub fn from_wire(value: u16) -> Option<Self> {
        Some(match value {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Rst,
            4 => Self::Shutdown,
            5 => Self::Rw,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request => "REQUEST",
            Self::Response => "RESPONSE",
            Self::Rst => "RST",
            Self::Shutdown => "SHUTDOWN",
            Self::Rw => "RW",
            Self::CreditUpdate => "CREDIT_UPDATE",
            Self::CreditRequest => "CREDIT_REQUEST",
        })
    }
}

/// The kind of socket a connection is between.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u16)]
pub enum SocketType {
    /// A stream of bytes.
    Stream = 1,
    /// A sequence of messages.
    Seqpacket = 2,
}

impl SocketType {
    /// The type of this number; `None` for unknown numbers.
    pub fn from_wire(value: u16) -> Option<Self> {
        Some(match value {
            1 => Self::Stream,
            2 => Self::Seqpacket,
            _ => return None,
        })
    }
}

impl fmt::Display for SocketType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stream => "STREAM",
            Self::Seqpacket => "SEQPACKET",
        })
    }
}

bitflags! {
    /// Flags of a SHUTDOWN packet. They accumulate over a connection's life and are
    /// permanent (§5.10.6.5).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct ShutdownFlags: u32 {
        /// The sender of the packet will receive no more.
        const RECEIVE = 1 << 0;
        /// The sender of the packet will send no more.
        const SEND = 1 << 1;
    }

    /// Flags of an RW packet on a sequenced-packet connection (§5.10.6.6.1).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct RwFlags: u32 {
        /// The last packet of a message.
        const EOM = 1 << 0;
        /// The last packet of a record.
        const EOR = 1 << 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_specification() {
        for value in 1..=7 {
            assert_eq!(Op::from_wire(value).map(|op| op as u16), Some(value));
        }
        assert_eq!(Op::from_wire(0), None);
        assert_eq!(Op::from_wire(8), None);
        assert_eq!(SocketType::from_wire(1), Some(SocketType::Stream));
        assert_eq!(SocketType::from_wire(2), Some(SocketType::Seqpacket));
        assert_eq!(SocketType::from_wire(3), None);
    }
}
