//! Host applications behind AF_UNIX sockets, as Firecracker's hybrid vsock has them.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use vsock_packet::{Cid, SocketType};

use crate::{HostEndpoint, Refusal, Request, Route, Router};

/// Sends connections to the host's port P to the socket at `<uds_path>_P`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostSockets {
    uds_path: PathBuf,
    cids: Vec<Cid>,
}

impl HostSockets {
    /// Routes to the sockets whose paths start with `uds_path`.
    pub fn new(uds_path: impl Into<PathBuf>) -> Self {
        Self {
            uds_path: uds_path.into(),
            cids: vec![Cid::HOST],
        }
    }

    /// Takes these CIDs for the host, too. A nitro enclave dials CID 3 for it.
    #[must_use]
    pub fn with_cids(mut self, cids: impl IntoIterator<Item = Cid>) -> Self {
        self.cids.extend(cids);
        self
    }

    /// The path of the socket for a port: `uds_path`, `_` and the port in decimal.
    pub fn path(uds_path: &Path, port: u32) -> PathBuf {
        let longest = uds_path.as_os_str().len() + "_4294967295".len();
        let mut path = OsString::with_capacity(longest);
        path.push(uds_path);
        // Appending to memory does not fail.
        let _ = write!(path, "_{port}");
        path.into()
    }
}

impl Router for HostSockets {
    fn route(&self, request: &Request) -> Route {
        if !self.cids.contains(&request.dst.cid) {
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
        let route = route(VsockAddr::new(Cid::HOST, u32::MAX), SocketType::Stream);
        let Route::Host(HostEndpoint::Unix(path)) = route else {
            panic!("{route:?}")
        };
        assert_eq!(path, PathBuf::from("/run/vm.vsock_4294967295"));
    }

    #[test]
    fn only_streams_go_to_the_host() {
        let route = route(VsockAddr::new(Cid::HOST, 80), SocketType::Seqpacket);
        assert!(
            matches!(route, Route::Refuse(Refusal::TypeNotSupported)),
            "{route:?}"
        );
    }

    #[test]
    fn only_the_host_is_meant_by_any_of_its_cids() {
        let four = VsockAddr::new(Cid::new(4), 80);
        let route = route(four, SocketType::Stream);
        assert!(
            matches!(route, Route::Refuse(Refusal::NoRoute)),
            "{route:?}"
        );
        let guest = GuestCid::new(5).unwrap();
        let src = VsockAddr::new(guest, 1);
        let request = Request {
            guest,
            src,
            dst: four,
            socket_type: SocketType::Stream,
        };
        let host = HostSockets::new("/run/vm.vsock").with_cids([Cid::new(4)]);
        assert!(matches!(host.route(&request), Route::Host(_)));
    }
}
