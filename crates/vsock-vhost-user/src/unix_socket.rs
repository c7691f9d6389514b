//! AF_UNIX sockets at paths that are ours: made where nothing alive is, removed in the end.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 128;

/// A socket's place in the file system; it is freed when this is dropped, unless
/// something else has taken it meanwhile.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
    /// The socket itself: while it is open, its inode is nobody else's.
    _socket: OwnedFd,
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Listens at a path that is free or holds a dead socket, for a control socket beside those of
/// the guests, say. Only the owner may connect. The path is free again when its
/// [`SocketPath`] is dropped.
///
/// # Errors
///
/// A live socket is there, or something else, or the system refuses.
pub fn listen(path: &Path) -> io::Result<(UnixListener, SocketPath)> {
    remove_dead(path)?;
    let socket = unix_socket(SocketType::STREAM)?;
    // Before it is bound, so that nobody else can connect in between.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let place = SocketPath {
        path: path.to_owned(),
        identity: identity(path)?,
        _socket: socket.try_clone()?,
    };
    rustix::net::listen(&socket, BACKLOG)?;
    Ok((socket.into(), place))
}

/// Removes a socket that nobody listens on. Anything else stays, and is an error.
fn remove_dead(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    if !metadata.file_type().is_socket() {
        let what = "there is something other than a socket";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
    }
    // A datagram socket, so that whoever is alive there never sees a client.
    let probe = unix_socket(SocketType::DGRAM)?;
    match rustix::net::connect(&probe, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path),
        _ => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "a live socket is there",
        )),
    }
}

fn unix_socket(socket_type: SocketType) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        socket_type,
        flags,
        None,
    )?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn is_the_owners_alone_and_goes_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (_listener, place) = listen(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(place);
        assert!(!path.exists());
    }

    #[test]
    fn replaces_a_dead_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        listen(&path).unwrap();
    }

    #[test]
    fn leaves_a_live_socket_and_a_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("live");
        let _other = UnixListener::bind(&live).unwrap();
        assert_eq!(listen(&live).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(
            listen(&file).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert!(live.exists() && file.exists());
    }

    #[test]
    fn does_not_remove_what_has_taken_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (listener, place) = listen(&path).unwrap();
        drop(listener);
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(place);
        assert!(path.exists());
    }
}
