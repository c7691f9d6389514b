//! The directories in which the daemon's sockets may be.

use std::fmt::{self, Display};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::mistake::{Kind, Mistake};
use crate::place::{MAX_PATH, Place};
use crate::vm::{Claim, Vm};

/// A directory for sockets to come, as the operator wrote it.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    pub(crate) path: PathBuf,
    /// What says so.
    pub(crate) setting: String,
}

impl Directory {
    /// Its one name without symbolic links.
    ///
    /// # Errors
    ///
    /// It is not there, or is no directory.
    pub(crate) fn resolve(&self) -> Result<PathBuf, Mistake> {
        let unusable = |error: io::Error| {
            Mistake::new(
                &self.setting,
                format!("cannot be used: {error}"),
                "create the directory or correct the path",
            )
        };
        let path = fs::canonicalize(&self.path).map_err(unusable)?;
        if !path.is_dir() {
            return Err(unusable(Errno::NOTDIR.into()));
        }
        Ok(path)
    }
}

/// What is left of the file system to a daemon that is confined.
#[derive(Default, Debug)]
pub(crate) struct Territory {
    /// Where sockets may be created and removed, at any depth.
    pub(super) sockets: Vec<PathBuf>,
    /// What may be read, at any depth: the configuration.
    pub(super) readable: Option<PathBuf>,
    /// Whether sockets may be given to other users and groups.
    pub(super) gives: bool,
}

impl Territory {
    /// These directories, and what is below them.
    ///
    /// # Errors
    ///
    /// One of them cannot be used.
    pub(crate) fn new(directories: &[Directory]) -> Result<Self, Mistake> {
        let sockets = directories.iter().map(Directory::resolve);
        Ok(Self {
            sockets: sockets.collect::<Result<_, _>>()?,
            ..Self::default()
        })
    }

    /// Takes the directory of a socket at `path`, if one can be there.
    pub(crate) fn add_socket(&mut self, path: &Path) {
        if let Ok(place) = Place::named(path, MAX_PATH)
            && !self.has(place.directory())
        {
            self.sockets.push(place.directory().to_owned());
        }
    }

    /// Lets sockets be given to other users and groups.
    pub(crate) fn allow_giving(&mut self) {
        self.gives = true;
    }

    /// Lets the configuration be read again: of a file, the directory, since a new version
    /// of the file is another file.
    pub(crate) fn set_config(&mut self, path: &Path) {
        self.readable = fs::canonicalize(path).ok().map(|path| match path.parent() {
            Some(parent) if !path.is_dir() => parent.to_owned(),
            _ => path,
        });
    }

    /// # Errors
    ///
    /// A socket of the VM would be elsewhere.
    pub(crate) fn refuse_elsewhere(&self, vm: &Vm) -> Result<(), Mistake> {
        let mut own = vm.claims.iter().filter(|claim| !claim.is_inherited);
        own.try_for_each(|claim| self.refuse_claim(claim))
    }

    fn refuse_claim(&self, claim: &Claim) -> Result<(), Mistake> {
        let directory = claim.place.directory();
        if self.has(directory) {
            return Ok(());
        }
        Err(Mistake::new(
            &claim.setting,
            "is outside of the directories that the daemon confined itself to at its start",
            format!(
                "choose a path in one of them, or start it with --directory {}",
                directory.display()
            ),
        ))
    }

    /// # Errors
    ///
    /// The directory is not among these, which are what they are until the end.
    pub(crate) fn refuse_new(&self, directory: &Directory) -> Result<(), Mistake> {
        if self.has(&directory.resolve()?) {
            return Ok(());
        }
        Err(Mistake::of_kind(
            Kind::Conflict,
            &directory.setting,
            "cannot be added while the daemon runs, since it has confined itself",
            "restart it",
        ))
    }

    fn has(&self, directory: &Path) -> bool {
        let mut sockets = self.sockets.iter();
        sockets.any(|known| directory.starts_with(known))
    }
}

/// The directories, for the log.
impl Display for Territory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.sockets.iter().map(|path| path.display().to_string());
        f.write_str(&names.collect::<Vec<_>>().join(", "))
    }
}
