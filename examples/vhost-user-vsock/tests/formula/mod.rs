//! The worst case of memory for one guest, as docs/limits.md has it.

use vsock_packet::{HEADER_LEN, UnreadPackets};
use vsock_vhost_user::GuestConfig;

pub(crate) const KIB: usize = 1024;
pub(crate) const MIB: usize = 1024 * KIB;

/// The options that matter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) max_connections: usize,
    pub(crate) max_buffered: usize,
    pub(crate) max_backlog: usize,
    pub(crate) max_handshakes: usize,
}

impl Bounds {
    /// The formula's first line: what host applications leave unread.
    pub(crate) fn unread_by_the_host(&self) -> usize {
        let least = GuestConfig::MIN_TX_BUFFER_SIZE as usize;
        (self.max_buffered + self.max_connections * least) * 65 / 64
    }

    /// The formula, in the page's order of terms, in bytes, but for the threads' stacks.
    pub(crate) fn worst_case(&self) -> usize {
        let unread = UnreadPackets::default().room(u32::MAX) * size_of::<u32>();
        assert_eq!(unread, 16 * KIB);
        self.unread_by_the_host()
            + self.max_connections * (32 * KIB + unread + KIB)
            + self.max_connections * 2 * (unread + KIB)
            + self.max_backlog
            + 4 * MIB
            + self.max_handshakes * KIB
            + 1024 * HEADER_LEN
            + 4 * MIB
    }
}
