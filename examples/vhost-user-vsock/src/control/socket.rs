//! The socket itself: its owner's alone, and gone in the end.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use vsock_vhost_user::{SocketAccess, SocketPath};

/// A listening socket. Dropped, its path is free again, unless the socket was inherited
/// or something else is there now.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    listener: Arc<UnixListener>,
    /// Whether the operator has said who may connect.
    is_given: bool,
    /// Free again when this is dropped.
    _place: Option<SocketPath>,
}

impl ControlSocket {
    /// Listens at `path`, where nothing is but perhaps a dead socket, for those to whom
    /// `access` gives it.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub(crate) fn bind(path: &Path, access: SocketAccess) -> io::Result<Self> {
        let (listener, place) = vsock_vhost_user::listen(path, access)?;
        Ok(Self {
            listener: Arc::new(listener),
            is_given: access != SocketAccess::default(),
            _place: Some(place),
        })
    }

    /// One that another process made, and will remove.
    pub(crate) fn inherited(listener: Arc<UnixListener>) -> Self {
        Self {
            listener,
            is_given: false,
            _place: None,
        }
    }

    /// Whether whoever can connect may do so: else it is for the daemon's user and root,
    /// whatever the file system says.
    pub(super) fn is_given(&self) -> bool {
        self.is_given
    }

    /// The same socket for the runtime in whose context this is called.
    pub(super) fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        let listener = self.listener.try_clone()?;
        listener.set_nonblocking(true)?;
        tokio::net::UnixListener::from_std(listener)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn is_the_owners_alone_and_goes_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        drop(UnixListener::bind(&path).unwrap());
        let socket = ControlSocket::bind(&path, SocketAccess::default()).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn leaves_what_is_not_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let socket = ControlSocket::bind(&path, SocketAccess::default()).unwrap();
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
        drop(ControlSocket::inherited(Arc::new(other)));
        assert!(path.exists());
    }
}
