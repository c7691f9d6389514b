//! The configuration: a TOML file with one `[[vm]]` table for each VM, or a directory of
//! such files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::mistake::Mistake;
use crate::once::WrittenOnce;
use crate::sandbox::Directory;
use crate::spec::{Origin, Settings, Table, VmSpec};

/// What a configuration says.
#[derive(Default, Debug)]
pub(crate) struct Config {
    /// The control socket, if it is to have one.
    pub(crate) control: Option<Control>,
    /// Where sockets of VMs that come later may be.
    pub(crate) directories: Vec<Directory>,
    /// What holds for the whole daemon.
    pub(crate) once: WrittenOnce,
    /// The VMs, in the order of the files' names and of the tables in each.
    pub(crate) vms: Vec<VmSpec>,
}

/// The control socket, and what says so.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) path: PathBuf,
    pub(crate) origin: Origin,
}

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    control: Option<PathBuf>,
    control_mode: Option<String>,
    control_owner: Option<String>,
    socket_mode: Option<String>,
    socket_owner: Option<String>,
    max_guests: Option<u64>,
    busy_poll_us: Option<u64>,
    #[serde(default)]
    directories: Vec<PathBuf>,
    #[serde(default)]
    vm: Vec<Settings>,
}

impl Config {
    /// Reads the file at `path`, or every `*.toml` of the directory there.
    ///
    /// # Errors
    ///
    /// It cannot be read, is not TOML, holds an unknown key or a value of the wrong kind,
    /// or says nothing: a file needs a VM or a control socket, a directory needs neither.
    pub(crate) fn read(path: &Path) -> Result<Self, Mistake> {
        Self::read_by(path, |path| fs::read_to_string(path))
    }

    /// Reads it again. A pipe, say, could be read once.
    ///
    /// # Errors
    ///
    /// As the first time, and what is there is no regular file.
    pub(crate) fn read_again(path: &Path) -> Result<Self, Mistake> {
        Self::read_by(path, read_regular)
    }

    fn read_by(path: &Path, read: fn(&Path) -> io::Result<String>) -> Result<Self, Mistake> {
        let mut config = Self::default();
        if path.is_dir() {
            for file in files_of(path)? {
                config.add(&file, read_regular(&file))?;
            }
        } else {
            config.add(path, read(path))?;
            if config.vms.is_empty() && config.control.is_none() {
                return Err(Mistake::new(
                    path.display().to_string(),
                    "describes no VM",
                    "add a [[vm]] table, or the key control",
                ));
            }
        }
        Ok(config)
    }

    fn add(&mut self, path: &Path, text: io::Result<String>) -> Result<(), Mistake> {
        let text = text.map_err(|error| unreadable(path, &error))?;
        let file: ConfigFile =
            toml::from_str(&text).map_err(|error| not_a_config(path, &text, &error))?;
        let document = DeTable::parse(&text).map_err(|error| not_a_config(path, &text, &error))?;
        let lines = Lines {
            path,
            text: &text,
            document: document.into_inner(),
        };
        if let Some(socket) = file.control {
            let control = Control {
                path: socket,
                origin: lines.top(),
            };
            self.set_control(control)?;
        }
        let top = lines.top();
        let number = |value: Option<u64>| value.map(|value| value.to_string());
        let settings = [
            ("socket-mode", file.socket_mode),
            ("socket-owner", file.socket_owner),
            ("control-mode", file.control_mode),
            ("control-owner", file.control_owner),
            ("max-guests", number(file.max_guests)),
            ("busy-poll-us", number(file.busy_poll_us)),
        ];
        let once = WrittenOnce::at(&top, settings);
        self.once = std::mem::take(&mut self.once).and(once)?;
        let directories = file.directories.into_iter().map(|path| Directory {
            setting: top.setting("directories", path.display()),
            path,
        });
        self.directories.extend(directories);
        let origins = lines.tables();
        let vms = file.vm.into_iter().zip(origins);
        self.vms
            .extend(vms.map(|(settings, origin)| VmSpec::new(origin, settings)));
        Ok(())
    }

    fn set_control(&mut self, control: Control) -> Result<(), Mistake> {
        match &self.control {
            None => {
                self.control = Some(control);
                Ok(())
            }
            Some(other) => Err(Mistake::new(
                control.origin.setting("control", control.path.display()),
                format!(
                    "there is also {}",
                    other.origin.setting("control", other.path.display())
                ),
                "keep one of them",
            )),
        }
    }
}

/// The `*.toml` of a directory, by their names; hidden ones are left aside.
fn files_of(directory: &Path) -> Result<Vec<PathBuf>, Mistake> {
    let entries = fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.map_err(|error| unreadable(directory, &error))?;
    let mut files: Vec<_> = entries.iter().map(fs::DirEntry::path).collect();
    files.retain(|file| {
        let is_toml = file
            .extension()
            .is_some_and(|extension| extension == "toml");
        let name = file.file_name().unwrap_or_default().as_encoded_bytes();
        is_toml && !name.starts_with(b".")
    });
    files.sort();
    Ok(files)
}

/// Reads a file without waiting for anybody, as for one who is to write into a pipe.
fn read_regular(path: &Path) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

fn unreadable(path: &Path, error: &io::Error) -> Mistake {
    Mistake::new(
        path.display().to_string(),
        format!("cannot be read: {error}"),
        "name a readable TOML file, or a directory of such files",
    )
}

fn not_a_config(path: &Path, text: &str, error: &toml::de::Error) -> Mistake {
    let line = error.span().map_or(1, |span| line_of(text, span.start));
    Mistake::new(
        format!("{}:{line}", path.display()),
        error.message().replace('\n', ", "),
        "the keys and their kinds are in docs/options.md",
    )
}

/// Where in a file its tables and keys are.
struct Lines<'a> {
    path: &'a Path,
    text: &'a str,
    document: DeTable<'a>,
}

impl Lines<'_> {
    /// The keys outside of any table.
    fn top(&self) -> Origin {
        self.origin(1, &self.document)
    }

    /// The `[[vm]]` tables.
    fn tables(&self) -> Vec<Origin> {
        let vms = self.document.get("vm");
        let vms = vms.and_then(|vms| vms.get_ref().as_array());
        let tables = vms.into_iter().flat_map(|vms| vms.iter());
        tables.filter_map(|table| self.table(table)).collect()
    }

    fn table(&self, table: &Spanned<DeValue<'_>>) -> Option<Origin> {
        let line = line_of(self.text, table.span().start);
        Some(self.origin(line, table.get_ref().as_table()?))
    }

    fn origin(&self, line: usize, keys: &DeTable<'_>) -> Origin {
        let keys = keys.keys().map(|key| {
            let line = line_of(self.text, key.span().start);
            (key.get_ref().to_string(), line)
        });
        Origin::File(Table {
            path: self.path.to_owned(),
            line,
            keys: BTreeMap::from_iter(keys),
        })
    }
}

/// The number of the line, from 1, that holds the byte at `offset`.
fn line_of(text: &str, offset: usize) -> usize {
    let before = text.bytes().take(offset);
    before.filter(|&byte| byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm_option;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vms.toml");
        fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn says_the_same_as_the_options() {
        let (_dir, path) = file(
            r#"
            [[vm]]
            cid = 3
            socket = "/run/3.sock"
            uds_path = "/run/3.vsock"
            groups = ["a", "b"]
            host_cids = [5, 6]
            queue_size = 256
            tx_buffer_size = 65536
            max_connections = 10
            max_backlog = 1048576
            max_buffered = 2097152
            max_handshakes = 5
            max_bytes_per_second = 65536
            max_requests_per_second = 7

            [[vm]]
            guest_cid = 4
            socket = "/run/4.sock"
            uds_path = "/run/4.vsock"
            "#,
        );
        let options = [
            "guest-cid=3,socket=/run/3.sock,uds-path=/run/3.vsock,groups=a+b,host-cids=5+6,\
             queue-size=256,tx-buffer-size=65536,max-connections=10,max-backlog=1048576,\
             max-buffered=2097152,max-handshakes=5,max-bytes-per-second=65536,\
             max-requests-per-second=7",
            "guest-cid=4,socket=/run/4.sock,uds-path=/run/4.vsock",
        ];
        let vms = Config::read(&path).unwrap().vms.into_iter();
        let from_file: Vec<_> = vms.map(|vm| vm.settings).collect();
        assert_eq!(
            from_file,
            options.map(|text| vm_option::parse(text).unwrap().settings)
        );
    }

    #[test]
    fn names_the_line_of_an_unknown_key() {
        let (_dir, path) = file("[[vm]]\ncid = 3\nsokcet = \"/run/3.sock\"\n");
        let mistake = Config::read(&path).unwrap_err().to_string();
        assert!(
            mistake.contains("vms.toml:3: unknown field `sokcet`"),
            "{mistake}"
        );
    }

    #[test]
    fn knows_the_line_of_each_setting_by_its_name() {
        let text = "control = \"/c\"\n\n[[vm]]\nguest_cid = 3\n[[vm]]\n\n  cid = 4 # four\n";
        let (_dir, path) = file(text);
        let config = Config::read(&path).unwrap();
        let says = |origin: &Origin, key| {
            let said = origin.setting(key, 0);
            said.rsplit_once('/').unwrap().1.to_owned()
        };
        let control = config.control.unwrap();
        assert_eq!(says(&control.origin, "control"), "vms.toml:1: control = 0");
        assert_eq!(
            says(&config.vms[0].origin, "guest-cid"),
            "vms.toml:4: guest_cid = 0"
        );
        assert_eq!(
            says(&config.vms[1].origin, "guest-cid"),
            "vms.toml:7: cid = 0"
        );
        let missing = config.vms[1].origin.missing("uds-path", "/run/x");
        assert!(missing.to_string().contains("vms.toml:5: [[vm]]: uds_path"));
    }

    #[test]
    fn has_no_key_for_an_inherited_descriptor() {
        let (_dir, path) = file("[[vm]]\nfd = 3\n");
        let mistake = Config::read(&path).unwrap_err();
        assert!(mistake.to_string().contains("unknown field `fd`"));
    }

    #[test]
    fn reads_the_toml_files_of_a_directory_by_their_names() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Config::read(dir.path()).unwrap().vms.is_empty());
        for (name, text) in [
            ("b.toml", "[[vm]]\ncid = 4\n"),
            ("a.toml", "control = \"/c\"\n[[vm]]\ncid = 3\n"),
            (".hidden.toml", "nonsense"),
            ("c.toml.new", "nonsense"),
            ("README", "nonsense"),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let config = Config::read(dir.path()).unwrap();
        let cids: Vec<_> = config.vms.iter().map(|vm| vm.settings.cid).collect();
        assert_eq!(cids, [Some(3), Some(4)]);
        assert_eq!(config.control.unwrap().path, Path::new("/c"));
    }

    #[test]
    fn refuses_two_control_sockets() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.toml"), "control = \"/a\"").unwrap();
        fs::write(dir.path().join("b.toml"), "\ncontrol = \"/b\"").unwrap();
        let mistake = Config::read(dir.path()).unwrap_err().to_string();
        assert!(mistake.contains("b.toml:2: control = /b"), "{mistake}");
        assert!(mistake.contains("a.toml:1: control = /a"), "{mistake}");
    }
}
