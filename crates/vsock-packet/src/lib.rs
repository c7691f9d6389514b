//! The wire format of virtio-vsock (virtio 1.4, §5.10).
//!
//! ```text
//!   descriptor chain                 this crate                     callers
//!  ┌────────────────┐   chain::read_packet   ┌───────────┐  Header::parse  ┌────────┐
//!  │ header │ bytes │ ─────────────────────▶ │ RawHeader │ ──────────────▶ │ Header │
//!  │ bytes │ bytes  │                        │ + pieces  │                 └────────┘
//!  └────────────────┘                        └───────────┘
//! ```
//!
//! * [`RawHeader`] is the 44 bytes as they lie on the wire, copied out of guest memory
//!   **once**; every accessor works on that copy, so a guest that changes its memory
//!   meanwhile changes nothing that was checked.
//! * [`Header`] is the validated representation. Code that holds state sees only this.
//! * [`chain`] finds the header and the payload of a packet in a descriptor chain of any
//!   layout, as a list of pieces of guest memory, without copying the payload.
//! * [`Payload`] is a cursor over payload that moves from guest to guest.
//! * [`UnreadPackets`] bounds how many packets a guest is to hold, [`CreditRequests`]
//!   says when to ask for news of them.
//! * [`Cid`], [`GuestCid`], [`PortNumber`] and [`VsockAddr`] name the ends.
//! * [`Event`] and [`Config`] are the two other structures of the device.
//!
//! Nothing here panics on guest input: lengths are checked by [`chain`], values by
//! [`Header::parse`].
//!
//! Not in this crate: connections, credit, sockets, threads.

#![forbid(unsafe_code)]

pub mod chain;
mod cid;
mod config;
mod credit_requests;
mod event;
mod features;
mod header;
mod op;
mod payload;
mod short_queue;
mod unread;

pub use cid::{Cid, GuestCid, PortNumber, ReservedCid, VsockAddr};
pub use config::Config;
pub use credit_requests::CreditRequests;
pub use event::Event;
pub use features::Features;
pub use header::{Header, HeaderError, RawHeader};
pub use op::{Op, RwFlags, ShutdownFlags, SocketType};
pub use payload::Payload;
pub use unread::UnreadPackets;

/// Length of a packet's header in bytes (§5.10.6).
pub const HEADER_LEN: usize = 44;
