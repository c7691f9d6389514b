//! The question, the answer, and who gives it.

use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;
use vsock_packet::{GuestCid, Header, SocketType, VsockAddr};

use crate::member::Member;

/// A guest asks for a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// The guest that asks, whatever its packet says.
    pub guest: GuestCid,
    /// The end it asks from.
    pub src: VsockAddr,
    /// The end it asks for.
    pub dst: VsockAddr,
    /// The kind of socket.
    pub socket_type: SocketType,
}

impl Request {
    /// The request that `guest` makes by a REQUEST packet.
    pub fn new(guest: GuestCid, header: &Header) -> Self {
        Self {
            guest,
            src: header.src,
            dst: header.dst,
            socket_type: header.socket_type,
        }
    }
}

/// Where a connection goes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Route {
    /// To an application of the host.
    Host(HostEndpoint),
    /// To a member of a switch: a sibling, or a service of the VMM's own.
    Member(Arc<Member>),
    /// Nowhere: the guest gets an RST at once.
    Refuse(Refusal),
}

/// An application of the host.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum HostEndpoint {
    /// One that listens on an AF_UNIX stream socket at this path.
    Unix(PathBuf),
}

/// Why a connection is refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// No router knows the destination.
    #[error("nothing has this address")]
    NoRoute,
    /// The destination does not take sockets of this type.
    #[error("the socket type is not supported there")]
    TypeNotSupported,
    /// No application listens, or it listens and its backlog is full.
    #[error("nobody accepts there")]
    NotListening,
    /// The socket there belongs to the process of the device itself, which has no host
    /// applications: it is another guest's, say, and a symbolic link led there.
    #[error("the socket there is the device's own")]
    OwnSocket,
    /// The guest has as many connections as it may have.
    #[error("the guest has too many connections")]
    TooManyConnections,
    /// The guest asks for connections faster than it may.
    #[error("the guest asks for too many connections a second")]
    TooOften,
    /// The guests share no group.
    #[error("the guests share no group")]
    NoSharedGroup,
    /// The sibling's driver is not there.
    #[error("the sibling is not up")]
    NotUp,
    /// A connection with the same ends has not quite ended yet.
    #[error("the same ports are still in use")]
    InUse,
    /// The packet's `src_cid` is not the guest's.
    #[error("the source address is not the guest's")]
    ForgedSource,
}

/// Decides where the connections of guests go.
pub trait Router: Send + Sync {
    /// Where this one goes. Called once per connection, on a guest's worker: it must not
    /// wait for anything.
    fn route(&self, request: &Request) -> Route;
}

impl<F: Fn(&Request) -> Route + Send + Sync> Router for F {
    fn route(&self, request: &Request) -> Route {
        self(request)
    }
}

/// Routers that are asked in turn, until one knows the destination: whatever it says but
/// [`Refusal::NoRoute`] is the answer.
#[derive(Clone, Default)]
pub struct Routers(Vec<Arc<dyn Router>>);

impl Routers {
    /// Asks `router` after the others.
    #[must_use]
    pub fn then(mut self, router: impl Router + 'static) -> Self {
        self.0.push(Arc::new(router));
        self
    }
}

impl Router for Routers {
    fn route(&self, request: &Request) -> Route {
        self.0
            .iter()
            .map(|router| router.route(request))
            .find(|route| !matches!(route, Route::Refuse(Refusal::NoRoute)))
            .unwrap_or(Route::Refuse(Refusal::NoRoute))
    }
}

#[cfg(test)]
mod tests {
    use vsock_packet::Cid;

    use super::*;

    fn request() -> Request {
        let guest = GuestCid::new(3).unwrap();
        Request {
            guest,
            src: VsockAddr::new(guest, 1),
            dst: VsockAddr::new(Cid::HOST, 2),
            socket_type: SocketType::Stream,
        }
    }

    #[test]
    fn asks_on_until_one_knows() {
        let routers = Routers::default()
            .then(|_: &Request| Route::Refuse(Refusal::NoRoute))
            .then(|_: &Request| Route::Refuse(Refusal::TypeNotSupported))
            .then(|_: &Request| unreachable!("the second one knew"));
        let route = routers.route(&request());
        assert!(
            matches!(route, Route::Refuse(Refusal::TypeNotSupported)),
            "{route:?}"
        );
    }

    #[test]
    fn refuses_what_nobody_knows() {
        let route = Routers::default().route(&request());
        assert!(
            matches!(route, Route::Refuse(Refusal::NoRoute)),
            "{route:?}"
        );
    }
}
