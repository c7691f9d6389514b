//! How a guest's sockets behave: as Linux's by default, and each rule breakable.

use crate::Layout;

/// The rules a guest's sockets keep.
///
/// ```
/// use vsock_testkit::Behaviour;
///
/// // A guest like Unikraft's, that tells of its credit only when asked:
/// let behaviour = Behaviour { updates_unasked: false, ..Behaviour::linux() };
/// assert!(behaviour.answers_credit_requests);
/// ```
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// The receive buffer of each new stream, in bytes.
    pub buf_alloc: u32,
    /// A CREDIT_UPDATE is sent when, of the receive buffer, the device knows fewer than
    /// this many bytes to be free.
    pub update_below: u32,
    /// Whether CREDIT_UPDATEs are sent unasked at all.
    pub updates_unasked: bool,
    /// Whether a CREDIT_REQUEST is answered with a CREDIT_UPDATE.
    pub answers_credit_requests: bool,
    /// Whether a REQUEST is answered: with a RESPONSE at a port somebody listens to, else
    /// with an RST. If not, it goes to the inbox.
    pub answers_requests: bool,
    /// Whether a peer's full SHUTDOWN is answered with an RST when all data was read.
    pub answers_shutdown: bool,
    /// Whether a packet for no stream is answered with an RST. It goes to the inbox too.
    pub resets_strangers: bool,
    /// Whether no more is sent than the device has room for.
    pub obeys_credit: bool,
    /// The most payload of a packet sent, in bytes.
    pub max_packet: usize,
    /// How packets lie in the TX ring.
    pub layout: Layout,
    /// A stream is reset when its unread packets, of this many bytes of bookkeeping each,
    /// exceed its receive buffer. Zero: they may be any number.
    pub cost_of_a_packet: u32,
}

impl Behaviour {
    /// The rules of Linux 6.12.
    pub fn linux() -> Self {
        Self {
            buf_alloc: 256 << 10,
            update_below: 64 << 10,
            updates_unasked: true,
            answers_credit_requests: true,
            answers_requests: true,
            answers_shutdown: true,
            resets_strangers: true,
            obeys_credit: true,
            max_packet: 64 << 10,
            layout: Layout::linux(),
            cost_of_a_packet: 576,
        }
    }
}

impl Default for Behaviour {
    fn default() -> Self {
        Self::linux()
    }
}
