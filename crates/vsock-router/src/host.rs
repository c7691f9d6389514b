//! Host applications behind AF_UNIX sockets, as Firecracker's hybrid vsock has them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use vsock_packet::{Cid, SocketType};

use crate::{HostEndpoint, Refusal, Request, Route, Router};

/// Sends connections to the host's port P to the socket at `<uds_path>_P`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostSockets {
    uds_path: PathBuf,
}

impl HostSockets {
    /// Routes to the sockets whose paths start with `uds_path`.
    pub fn new(uds_path: impl Into<PathBuf>) -> Self {
        Self {
            uds_path: uds_path.into(),
        }
    }

    /// The path of the socket for a port: `uds_path`, `_` and the port in decimal.
    pub fn path(uds_path: &Path, port: u32) -> PathBuf {
        let mut path = OsString::from(uds_path);
        path.push(format!("_{port}"));
        path.into()
    }
}

impl Router for HostSockets {
    fn route(&self, request: &Request) -> Route {
        if request.dst.cid != Cid::HOST {
            return Route::Refuse(Refusal::NoRoute);
        }
        if request.socket_type != SocketType::Stream {
            return Route::Refuse(Refusal::TypeNotSupported);
        }
        let path = Self::path(&self.uds_path, request.dst.port.value());
        Route::Host(HostEndpoint::Unix(path))
    }
}

#[cfg(test)]
mod tests {
    use vsock_packet::{GuestCid, VsockAddr};

    use super::*;

    fn route(dst: VsockAddr, socket_type: SocketType) -> Route {
        let guest = GuestCid::new(3).unwrap();
        let request = Request {
            guest,
            src: VsockAddr::new(guest, 1),
            dst,
            socket_type,
        };
        HostSockets::new("/run/vm.vsock").route(&request)
    }

    #[test]
    fn a_port_is_a_socket_beside_the_guests_own() {
        let dst = VsockAddr::new(Cid::HOST, u32::MAX);
        let path = PathBuf::from("/run/vm.vsock_4294967295");
        assert_eq!(
            route(dst, SocketType::Stream),
            Route::Host(HostEndpoint::Unix(path))
        );
    }

    #[test]
    fn only_streams_go_to_the_host_and_only_the_host_is_meant() {
        let host = VsockAddr::new(Cid::HOST, 80);
        let refused = Route::Refuse(Refusal::TypeNotSupported);
        assert_eq!(route(host, SocketType::Seqpacket), refused);
        let other = VsockAddr::new(Cid::new(4), 80);
        assert_eq!(
            route(other, SocketType::Stream),
            Route::Refuse(Refusal::NoRoute)
        );
    }
}
