//! Events the device may put into the event queue (§5.10.6.7).

/// An event of the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// Communication was interrupted: the driver reads its CID again and drops its
    /// connections; its listeners stay.
    TransportReset,
}

impl Event {
    /// Length of an event in bytes.
    pub const LEN: usize = 4;

    /// The event as it lies on the wire: `le32 id`.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        match self {
            Self::TransportReset => 0u32.to_le_bytes(),
        }
    }

    /// The event of these bytes; `None` for an unknown id.
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Option<Self> {
        (u32::from_le_bytes(bytes) == 0).then_some(Self::TransportReset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transport_reset_has_id_zero() {
        assert_eq!(Event::TransportReset.to_bytes(), [0; 4]);
        assert_eq!(Event::from_bytes([0; 4]), Some(Event::TransportReset));
        assert_eq!(Event::from_bytes([1, 0, 0, 0]), None);
    }
}
