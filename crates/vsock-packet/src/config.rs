//! The device's configuration space (§5.10.4).

use crate::GuestCid;

/// What the driver reads from configuration space: `le64 guest_cid`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// The guest's CID.
    pub guest_cid: GuestCid,
}

impl Config {
    /// Length of the configuration space in bytes.
    pub const LEN: usize = 8;

    /// The space as it lies on the wire.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        u64::from(self.guest_cid.cid()).to_le_bytes()
    }

    /// The `size` bytes at `offset`; `None` when they do not all lie in the space.
    pub fn read(self, offset: u32, size: u32) -> Option<Vec<u8>> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(size).ok()?)?;
        self.to_bytes().get(start..end).map(<[u8]>::to_vec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            guest_cid: GuestCid::new(0x0102_0304).unwrap(),
        }
    }

    #[test]
    fn lies_little_endian_in_eight_bytes() {
        assert_eq!(config().to_bytes(), [4, 3, 2, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn is_read_in_parts_but_not_beyond_its_end() {
        assert_eq!(config().read(0, 8), Some(vec![4, 3, 2, 1, 0, 0, 0, 0]));
        assert_eq!(config().read(2, 2), Some(vec![2, 1]));
        assert_eq!(config().read(8, 0), Some(vec![]));
        assert_eq!(config().read(4, 5), None);
        assert_eq!(config().read(u32::MAX, u32::MAX), None);
    }
}
