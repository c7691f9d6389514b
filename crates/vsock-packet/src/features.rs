//! Feature bits of the device (§5.10.3).

use bitflags::bitflags;

bitflags! {
    /// The feature bits that belong to the vsock device itself, at their bit positions.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Features: u64 {
        /// Stream sockets.
        const STREAM = 1 << 0;
        /// Sequenced-packet sockets.
        const SEQPACKET = 1 << 1;
        /// `STREAM` is not implied when no other socket type was negotiated.
        const NO_IMPLIED_STREAM = 1 << 2;
    }
}
