//! AF_UNIX sockets at paths that are ours: made where nothing alive is, for whom they are
//! meant and nobody else, removed in the end.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Who may connect to a socket at a path: those who may write to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketAccess {
    /// The permission bits, such as `0o660`; what the process's umask takes away is taken
    /// away here, too.
    pub mode: u32,
    /// The number of the user who owns it; `None` for the process's own.
    pub user: Option<u32>,
    /// The number of the group that owns it; `None` for the process's own, or that of the
    /// directory if this hands its group down.
    pub group: Option<u32>,
}

impl Default for SocketAccess {
    /// The process's user alone.
    fn default() -> Self {
        Self {
            mode: 0o600,
            user: None,
            group: None,
        }
    }
}

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
/// the guests, say. Nobody can connect before the socket is as `access` has it. The path is
/// free again when its [`SocketPath`] is dropped.
///
/// # Errors
///
/// A live socket is there, or something else, or the system refuses: to give the socket to
/// another user or to a group that the process is not in takes a privilege.
pub fn listen(path: &Path, access: SocketAccess) -> io::Result<(UnixListener, SocketPath)> {
    remove_dead(path)?;
    let socket = unix_socket(SocketType::STREAM)?;
    // Before it is bound, so that there is no moment at which others could open it.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(access.mode))?;
    // And so this, for then a shortage leaves nothing behind.
    let kept = socket.try_clone()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let place = SocketPath {
        path: path.to_owned(),
        identity: identity(path)?,
        _socket: kept,
    };
    give(&place, access)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok((socket.into(), place))
}

/// Gives what was bound, and does not listen yet, to its owner.
fn give(place: &SocketPath, SocketAccess { user, group, .. }: SocketAccess) -> io::Result<()> {
    if user.is_none() && group.is_none() {
        return Ok(());
    }
    // Whatever comes to the path meanwhile, this is one thing.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let entry = File::from(rustix::fs::open(&place.path, flags, Mode::empty())?);
    let metadata = entry.metadata()?;
    let is_ours = (metadata.dev(), metadata.ino()) == place.identity;
    if !(is_ours && metadata.file_type().is_socket()) {
        return Err(io::Error::other("it was replaced meanwhile"));
    }
    let (user, group) = (user.map(Uid::from_raw), group.map(Gid::from_raw));
    let flags = AtFlags::EMPTY_PATH;
    Ok(rustix::fs::chownat(entry, "", user, group, flags)?)
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
        let (_listener, place) = listen(&path, SocketAccess::default()).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(place);
        assert!(!path.exists());
    }

    #[test]
    fn is_for_whom_it_is_meant() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let access = SocketAccess {
            mode: 0o640,
            user: Some(uid.as_raw()),
            group: Some(gid.as_raw()),
        };
        let _socket = listen(&path, access).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o640);
        assert_eq!(
            (metadata.uid(), metadata.gid()),
            (uid.as_raw(), gid.as_raw())
        );
    }

    #[test]
    fn gives_nothing_away_that_has_taken_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (_listener, place) = listen(&path, SocketAccess::default()).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        let access = SocketAccess {
            user: Some(rustix::process::geteuid().as_raw()),
            ..SocketAccess::default()
        };
        let error = give(&place, access).unwrap_err();
        assert!(error.to_string().contains("replaced"), "{error}");
    }

    #[test]
    fn replaces_a_dead_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        listen(&path, SocketAccess::default()).unwrap();
    }

    #[test]
    fn leaves_a_live_socket_and_a_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let own = SocketAccess::default();
        let live = dir.path().join("live");
        let _other = UnixListener::bind(&live).unwrap();
        assert_eq!(
            listen(&live, own).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(
            listen(&file, own).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert!(live.exists() && file.exists());
    }

    #[test]
    fn does_not_remove_what_has_taken_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (listener, place) = listen(&path, SocketAccess::default()).unwrap();
        drop(listener);
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(place);
        assert!(path.exists());
    }
}
