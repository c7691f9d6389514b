//! stub docs
#![forbid(unsafe_code)]

mod behaviour;
mod error;
mod guest;
pub mod host;
mod layout;
mod memory;
mod packets;
mod ring;
mod sockets;
mod stream;
mod transport;
mod vhost_user;

pub use behaviour::Behaviour;
pub use error::Error;
pub use guest::{Guest, Setup};
pub use layout::Layout;
pub use memory::Memory;
pub use packets::{Packet, PacketRings, Refill, RxBuffers, queue};
pub use ring::{Piece, RawDescriptor, Ring, Used};
pub use sockets::StreamId;
pub use stream::{State, Stream};
pub use transport::{Plain, Transport};
pub use vhost_user::{VhostUser, feature};
