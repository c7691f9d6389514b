//! Where the connections of virtio-vsock guests go.
//!
//! ```text
//!   REQUEST of a guest ──▶ Router::route ──▶ Route::Host(endpoint)
//!                                       └──▶ Route::Refuse(why), answered with an RST
//! ```
//!
//! A [`Router`] is asked once per connection, on its REQUEST. Whoever asks keeps the
//! answer with the connection and asks no more, so routers are off the data path and may
//! take their time, short of waiting for anything.
//!
//! Routers compose: a [`Routers`] asks one after the other until one knows the
//! destination. A VMM adds its own by implementing the trait, or with a closure:
//!
//! ```
//! use vsock_packet::{Cid, GuestCid, SocketType, VsockAddr};
//! use vsock_router::{HostEndpoint, HostSockets, Refusal, Request, Route, Router, Routers};
//!
//! let metadata = |request: &Request| {
//!     if request.dst.port.value() == 80 {
//!         Route::Host(HostEndpoint::Unix("/run/metadata.sock".into()))
//!     } else {
//!         Route::Refuse(Refusal::NoRoute)
//!     }
//! };
//! let router = Routers::default().then(metadata).then(HostSockets::new("/run/vm3.vsock"));
//!
//! let guest = GuestCid::new(3)?;
//! let request = Request {
//!     guest,
//!     src: VsockAddr::new(guest, 1025),
//!     dst: VsockAddr::new(Cid::HOST, 5000),
//!     socket_type: SocketType::Stream,
//! };
//! let path = std::path::PathBuf::from("/run/vm3.vsock_5000");
//! assert!(matches!(router.route(&request), Route::Host(HostEndpoint::Unix(p)) if p == path));
//! # Ok::<(), vsock_packet::ReservedCid>(())
//! ```
//!
//! Not in this crate: vhost-user, sockets, threads.

#![forbid(unsafe_code)]

mod backlog;
mod flow;
mod flows;
mod host;
mod member;
mod port;
mod router;
mod switch;
#[cfg(test)]
mod tests;
mod window;

pub use host::HostSockets;
pub use member::{Member, SiblingCounters};
pub use port::{Packet, Port, Receiver};
pub use router::{HostEndpoint, Refusal, Request, Route, Router, Routers};
pub use switch::{Groups, JoinError, Limits, Siblings, Switch};
