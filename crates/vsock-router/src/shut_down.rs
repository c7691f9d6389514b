//! What the two ends of a connection have shut down (§5.10.6.5).

use vsock_packet::ShutdownFlags;

/// What the two ends of a connection have shut down, in one byte: the receiver of a half
/// in the lower four bits, its sender in the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct ShutDown(u8);

impl ShutDown {
    /// By the end that the half leads to.
    pub(crate) fn by_receiver(self) -> ShutdownFlags {
        ShutdownFlags::from_bits_truncate(u32::from(self.0))
    }

    /// By the other end.
    pub(crate) fn by_sender(self) -> ShutdownFlags {
        ShutdownFlags::from_bits_truncate(u32::from(self.0 >> 4))
    }

    /// The receiver shuts down this, too.
    pub(crate) fn receiver_adds(&mut self, flags: ShutdownFlags) {
        // Two bits are all there are.
        self.0 |= flags.bits() as u8 & 0xf;
    }

    /// The sender shuts down this, too.
    pub(crate) fn sender_adds(&mut self, flags: ShutdownFlags) {
        self.0 |= (flags.bits() as u8) << 4;
    }

    /// Whether both ends have shut down everything.
    pub(crate) fn is_all(self) -> bool {
        self.by_receiver().is_all() && self.by_sender().is_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_end_shuts_down_accumulates_and_is_its_own() {
        let mut shut_down = ShutDown::default();
        shut_down.receiver_adds(ShutdownFlags::RECEIVE);
        shut_down.sender_adds(ShutdownFlags::SEND);
        assert_eq!(shut_down.by_receiver(), ShutdownFlags::RECEIVE);
        assert_eq!(shut_down.by_sender(), ShutdownFlags::SEND);
        shut_down.receiver_adds(ShutdownFlags::SEND);
        assert!(shut_down.by_receiver().is_all() && !shut_down.is_all());
        shut_down.sender_adds(ShutdownFlags::RECEIVE);
        assert!(shut_down.is_all());
    }
}
