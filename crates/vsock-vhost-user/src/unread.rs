//! What lies in a host socket because its application has not read it yet.
//!
//! A guest that is told of room as soon as its bytes are in the socket keeps the socket full
//! whenever it is faster than the application. Then all that follows waits in a
//! [`TxBuffer`](crate::tx_buffer) first, and is copied once more. So the guest is told only
//! as much as the socket has room for: what is unread, and what the guest may still send,
//! fit into it together.
//!
//! ```text
//!   ├────────────── capacity ──────────────┤
//!   ├─ unread ─┤├─ what the guest may send ─┤      told: all but the excess
//!   ├────── unread ───────┤├─ may send ─┤          excess = unread - (capacity - window)
//! ```

use std::os::fd::BorrowedFd;

use rustix::net::sockopt;

use crate::socket_io;

/// What may be unread before it is worth a look, in bytes: any socket holds that.
const FEW: usize = 32 * 1024;

/// The bytes of a socket that its application has not read.
#[derive(Debug)]
pub(crate) struct Unread {
    /// At least as many as there are.
    bound: usize,
    /// The unread bytes that leave room for the window.
    allowed: Option<usize>,
    /// What the guest may send without being told of more, in bytes.
    window: usize,
}

impl Unread {
    /// A socket that nothing was written to, for a guest with so large a window.
    pub(crate) fn new(window: usize) -> Self {
        Self {
            bound: 0,
            allowed: None,
            window,
        }
    }

    /// So many bytes are about to be written. The socket grows before it is first used for
    /// more than a few.
    pub(crate) fn prepare(&mut self, socket: BorrowedFd<'_>, len: usize) {
        if self.allowed.is_none() && self.bound + len > FEW {
            self.allowed = Some(self.grow(socket));
        }
    }

    /// Asks for a socket that has room for the window twice, and gets what the system grants.
    /// The bytes that may be unread: not less than a quarter, which is when the socket tells
    /// of room.
    fn grow(&self, socket: BorrowedFd<'_>) -> usize {
        let capacity = || sockopt::socket_send_buffer_size(socket).unwrap_or(0);
        if capacity() < 2 * self.window {
            // The kernel doubles what is asked for, since it counts its own costs too.
            let _ = sockopt::set_socket_send_buffer_size(socket, self.window);
        }
        let capacity = capacity();
        capacity.saturating_sub(self.window).max(capacity / 4)
    }

    /// So many bytes more were written. How many unread ones are too many for the whole
    /// window to fit beside them.
    pub(crate) fn excess(&mut self, socket: BorrowedFd<'_>, written: usize) -> usize {
        self.bound = self.bound.saturating_add(written);
        let allowed = self.allowed.unwrap_or(FEW);
        if self.bound > allowed
            && let Ok(unread) = socket_io::unread(socket)
        {
            self.bound = unread;
        }
        self.bound.saturating_sub(allowed)
    }
}
