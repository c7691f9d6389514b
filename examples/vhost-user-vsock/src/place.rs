//! Whether a socket can be created at a path, found out without creating anything.
//!
//! The answer can be outdated when the socket is bound: the server binds with the same
//! caution. It is asked first so that an operator's mistake in the last of many VMs is
//! told before the first is served.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use thiserror::Error;

/// The longest path of a socket in bytes: `sun_path` is 108 with its closing NUL.
pub(crate) const MAX_PATH: usize = 107;
/// The longest path to which `_` and any port number can still be appended.
pub(crate) const MAX_PATH_BEFORE_PORT: usize = MAX_PATH - "_4294967295".len();

/// Why no socket can be created at a path.
#[derive(Debug, Error)]
pub(crate) enum PathError {
    /// Longer than the system takes.
    #[error("is {length} bytes long")]
    TooLong { length: usize, limit: usize },
    /// No file name at its end, or a byte no path can have.
    #[error("names no file")]
    NoName,
    /// The directory is not there or cannot be looked into.
    #[error("its directory {directory} cannot be used: {source}")]
    Directory {
        directory: PathBuf,
        source: io::Error,
    },
    /// The directory refuses new entries.
    #[error("its directory {directory} is not writable: {source}")]
    NotWritable {
        directory: PathBuf,
        source: io::Error,
    },
    /// Something that is no socket.
    #[error("is {what}, which is never removed")]
    NotASocket { what: &'static str },
    /// A socket that a program is bound to.
    #[error("is a socket in use by another program")]
    Live,
    /// A socket of which it cannot be told whether it is in use.
    #[error("is there and cannot be examined: {source}")]
    Unknown { source: io::Error },
}

impl PathError {
    /// What to do about it.
    pub(crate) fn remedy(&self) -> String {
        let remedy = match self {
            Self::TooLong { limit, .. } => {
                return format!("choose a path of at most {limit} bytes");
            }
            Self::NoName => "write the path of a socket to create",
            Self::Directory { .. } => "create it or correct the path",
            Self::NotWritable { .. } => "allow it or choose another",
            Self::NotASocket { .. } => "choose another path or remove it yourself",
            Self::Live => "stop that program or choose another path",
            Self::Unknown { .. } => "remove it yourself or choose another path",
        };
        remedy.to_owned()
    }
}

/// What may be at a place where a socket is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Allow {
    /// Nothing, or a socket that nobody uses any more.
    Dead,
    /// That, or a socket in use: perhaps by the daemon that serves this configuration.
    Live,
}

/// A place where a socket can be created: two of them are equal exactly if they are the
/// same entry of the same directory, however their paths were written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Place {
    // What differs most often is compared first, and bytes rather than components.
    name: OsString,
    directory: OsString,
}

impl Place {
    /// The place that `path` names; what is there is not looked at.
    ///
    /// # Errors
    ///
    /// [`PathError`] when no socket can have this path.
    pub(crate) fn named(path: &Path, limit: usize) -> Result<Self, PathError> {
        let bytes = path.as_os_str().as_bytes();
        if bytes.len() > limit {
            return Err(PathError::TooLong {
                length: bytes.len(),
                limit,
            });
        }
        // `file_name` looks past a slash at the end, bind(2) does not.
        let name = match path.file_name() {
            Some(name) if !bytes.ends_with(b"/") && !bytes.contains(&0) => name.to_owned(),
            _ => return Err(PathError::NoName),
        };
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let directory = parent.unwrap_or(Path::new("."));
        let unusable = |source| PathError::Directory {
            directory: directory.to_owned(),
            source,
        };
        let directory = fs::canonicalize(directory).map_err(unusable)?;
        if !directory.is_dir() {
            return Err(unusable(Errno::NOTDIR.into()));
        }
        Ok(Self {
            name,
            directory: directory.into_os_string(),
        })
    }

    /// The directory, by its one name without symbolic links.
    pub(crate) fn directory(&self) -> &Path {
        Path::new(&self.directory)
    }

    /// Finds out whether a socket can be created here, at what was named by `path`.
    ///
    /// # Errors
    ///
    /// [`PathError`] when it could not, or not without removing what must not be removed.
    pub(crate) fn examine(&self, path: &Path, allow: Allow) -> Result<(), PathError> {
        match examine_entry(path) {
            Err(PathError::Live) if allow == Allow::Live => (),
            result => result?,
        }
        self.examine_directory()
    }

    fn examine_directory(&self) -> Result<(), PathError> {
        let directory = PathBuf::from(&self.directory);
        accessat(
            CWD,
            &directory,
            Access::WRITE_OK | Access::EXEC_OK,
            AtFlags::EACCESS,
        )
        .map_err(|errno| PathError::NotWritable {
            directory,
            source: errno.into(),
        })
    }

    /// The port for which this place is where a guest finds the host's application, if
    /// the guest's `uds-path` is `uds_path`.
    pub(crate) fn port_of(&self, uds_path: &Self) -> Option<u32> {
        let suffix = self
            .name
            .as_bytes()
            .strip_prefix(uds_path.name.as_bytes())?;
        if self.directory != uds_path.directory {
            return None;
        }
        let digits = OsStr::from_bytes(suffix.strip_prefix(b"_")?).to_str()?;
        let port: u32 = digits.parse().ok()?;
        (port.to_string() == digits).then_some(port)
    }

    /// The place whose port this would be, if its name ends as that of a port.
    pub(crate) fn owner(&self) -> Option<Self> {
        let name = self.name.as_bytes();
        let digits = name.iter().rev().take_while(|byte| byte.is_ascii_digit());
        let owner = name[..name.len() - digits.count()].strip_suffix(b"_")?;
        Some(Self {
            name: OsStr::from_bytes(owner).to_owned(),
            directory: self.directory.clone(),
        })
    }

    /// The first of the places, in their order, that could be ports of this one.
    pub(crate) fn first_port(&self) -> Self {
        let mut name = self.name.clone();
        name.push("_");
        Self {
            name,
            directory: OsString::new(),
        }
    }

    /// Whether a place's name begins as this one's.
    pub(crate) fn begins(&self, other: &Self) -> bool {
        other.name.as_bytes().starts_with(self.name.as_bytes())
    }
}

/// Accepts nothing at all, or a socket that nobody is bound to.
fn examine_entry(path: &Path) -> Result<(), PathError> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(PathError::Unknown { source }),
    };
    if !kind.is_socket() {
        return Err(PathError::NotASocket {
            what: describe(kind),
        });
    }
    match probe(path) {
        Err(Errno::CONNREFUSED) => Ok(()),
        // Removed since: just as good.
        Err(Errno::NOENT) => Ok(()),
        Ok(()) | Err(Errno::PROTOTYPE) => Err(PathError::Live),
        Err(errno) => Err(PathError::Unknown {
            source: errno.into(),
        }),
    }
}

/// Connects a datagram socket. To a stream socket that is bound this fails with
/// EPROTOTYPE, and the program that listens there, perhaps for its one frontend, is not
/// disturbed; where nobody is bound it fails with ECONNREFUSED.
fn probe(path: &Path) -> Result<(), Errno> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    connect(&socket, &address)
}

fn describe(kind: fs::FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_file() {
        "a regular file"
    } else {
        "something other than a socket"
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    fn at(path: &Path, limit: usize) -> Result<Place, PathError> {
        let place = Place::named(path, limit)?;
        place.examine(path, Allow::Dead)?;
        Ok(place)
    }

    #[test]
    fn replaces_a_dead_socket_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        assert!(matches!(at(&path, MAX_PATH), Err(PathError::Live)));
        drop(listener);
        assert!(at(&path, MAX_PATH).is_ok());
        assert!(path.exists(), "checking removes nothing");
    }

    #[test]
    fn a_live_socket_may_be_that_of_the_daemon_that_runs() {
        let dir = tempfile::tempdir().unwrap();
        let (path, file) = (dir.path().join("socket"), dir.path().join("file"));
        let _listener = UnixListener::bind(&path).unwrap();
        fs::write(&file, "").unwrap();
        let examine = |path: &Path| {
            let place = Place::named(path, MAX_PATH).unwrap();
            place.examine(path, Allow::Live)
        };
        assert!(examine(&path).is_ok());
        assert!(examine(&file).is_err());
    }

    #[test]
    fn a_live_socket_does_not_notice_that_it_was_examined() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        assert!(matches!(at(&path, MAX_PATH), Err(PathError::Live)));
        assert_eq!(
            listener.accept().unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    }

    #[test]
    fn a_datagram_socket_is_live_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _socket = UnixDatagram::bind(&path).unwrap();
        assert!(matches!(at(&path, MAX_PATH), Err(PathError::Live)));
    }

    #[test]
    fn knows_a_place_by_all_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let place = |path: PathBuf| at(&path, MAX_PATH).unwrap();
        assert_eq!(place(real.join("socket")), place(link.join("socket")));
        assert_eq!(
            place(real.join("socket")),
            place(real.join("../link/./socket"))
        );
        assert_ne!(place(real.join("socket")), place(real.join("socket2")));
    }

    #[test]
    fn knows_a_place_that_stands_for_a_port() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| at(&dir.path().join(name), MAX_PATH).unwrap();
        assert_eq!(place("vm_4294967295").port_of(&place("vm")), Some(u32::MAX));
        for name in [
            "vm",
            "vm_",
            "vm_x",
            "vm_+1",
            "vm_01",
            "vm_4294967296",
            "other_1",
        ] {
            assert_eq!(place(name).port_of(&place("vm")), None, "{name}");
        }
    }

    #[test]
    fn refuses_names_that_bind_would_refuse() {
        for path in ["", "/", "/tmp/", "/tmp/..", "/tmp/a\0b"] {
            let result = at(Path::new(path), MAX_PATH);
            assert!(
                matches!(result, Err(PathError::NoName)),
                "{path}: {result:?}"
            );
        }
    }

    #[test]
    fn counts_bytes_to_the_last_that_fits() {
        let dir = tempfile::tempdir().unwrap();
        let room = MAX_PATH - dir.path().as_os_str().len() - 1;
        let longest = dir.path().join("s".repeat(room));
        assert!(at(&longest, MAX_PATH).is_ok());
        assert!(UnixListener::bind(&longest).is_ok(), "the system agrees");
        let longer = dir.path().join("s".repeat(room + 1));
        assert!(matches!(
            at(&longer, MAX_PATH),
            Err(PathError::TooLong { .. })
        ));
    }
}
