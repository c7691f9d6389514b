//! An archive in the format the kernel unpacks as its first file system (cpio "newc").

use std::collections::BTreeSet;

const DIRECTORY: u32 = 0o040_755;
const CHARACTER_DEVICE: u32 = 0o020_600;
const FILE: u32 = 0o100_000;

/// An archive that grows; directories appear before what lies in them.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// Adds a file, given its absolute path and permissions.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.parents(path);
        self.entry(path, FILE | permissions, (0, 0), content);
    }

    /// Adds a character device.
    pub(crate) fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.parents(path);
        self.entry(path, CHARACTER_DEVICE, (major, minor), &[]);
    }

    /// Adds a directory, unless it is there.
    pub(crate) fn directory(&mut self, path: &str) {
        self.parents(path);
        if self.directories.insert(path.to_owned()) {
            self.entry(path, DIRECTORY, (0, 0), &[]);
        }
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/')
            && !parent.is_empty()
        {
            self.directory(parent);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        let name = path.trim_start_matches('/');
        self.entries += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let (user, group, modified, home, check) = (0, 0, 0, (0, 0), 0);
        let (length, name_length) = (content.len() as u32, name.len() as u32 + 1);
        self.bytes.extend_from_slice(b"070701");
        for field in [
            self.entries,
            mode,
            user,
            group,
            links,
            modified,
            length,
            home.0,
            home.1,
            device.0,
            device.1,
            name_length,
            check,
        ] {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names, modes and contents, read back by the format's own rules.
    fn read_back(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            let field = |n: usize| {
                let digits = str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            assert_eq!(&bytes[..6], b"070701");
            let (mode, length, name_length) = (field(1), field(6) as usize, field(11) as usize);
            let name = str::from_utf8(&bytes[110..110 + name_length - 1])
                .unwrap()
                .to_owned();
            let start = (110 + name_length).next_multiple_of(4);
            if name == "TRAILER!!!" {
                return entries;
            }
            entries.push((name, mode, bytes[start..start + length].to_vec()));
            bytes = &bytes[(start + length).next_multiple_of(4)..];
        }
    }

    #[test]
    fn what_goes_in_comes_out_with_its_directories_first() {
        let mut archive = Archive::default();
        archive.file("/bin/tools/echo", 0o755, b"hello");
        archive.file("/bin/tools/cat", 0o644, b"");
        archive.device("/dev/console", 5, 1);
        let entries = read_back(&archive.finish());
        let names: Vec<_> = entries.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "bin",
                "bin/tools",
                "bin/tools/echo",
                "bin/tools/cat",
                "dev",
                "dev/console"
            ]
        );
        assert_eq!(entries[2].1, 0o100_755);
        assert_eq!(entries[2].2, b"hello");
    }
}
