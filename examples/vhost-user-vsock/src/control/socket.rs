//! The socket itself: its owner's alone, and gone in the end.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Clients that may wait to be let in.
const BACKLOG: i32 = 128;

/// A listening socket. Dropped, its path is free again, unless the socket was inherited
/// or something else is there now.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    listener: Arc<UnixListener>,
    place: Option<(PathBuf, (u64, u64))>,
}

impl ControlSocket {
    /// Listens at `path`, where nothing is but perhaps a dead socket. Only the owner may
    /// connect.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
        let flags = SocketFlags::CLOEXEC;
        let socket: OwnedFd =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Before it is bound, so that nobody else can connect in between.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        let place = Some((path.to_owned(), identity(path)?));
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(Self {
            listener: Arc::new(socket.into()),
            place,
        })
    }

    /// One that another process made, and will remove.
    pub(crate) fn inherited(listener: Arc<UnixListener>) -> Self {
        Self {
            listener,
            place: None,
        }
    }

    /// The same socket for the runtime in whose context this is called.
    pub(super) fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        let listener = self.listener.try_clone()?;
        listener.set_nonblocking(true)?;
        tokio::net::UnixListener::from_std(listener)
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if let Some((path, made)) = &self.place
            && identity(path).is_ok_and(|identity| identity == *made)
        {
            let _ = fs::remove_file(path);
        }
    }
}

/// Device and inode. While the socket is open, its inode is nobody else's.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn is_the_owners_alone_and_goes_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        drop(UnixListener::bind(&path).unwrap());
        let socket = ControlSocket::bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn leaves_what_is_not_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let socket = ControlSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
        drop(ControlSocket::inherited(Arc::new(other)));
        assert!(path.exists());
    }
}
