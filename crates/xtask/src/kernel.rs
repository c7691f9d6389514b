//! Debian's cloud kernels: downloaded, never installed, and unpacked as far as a guest
//! needs them.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::apt::Lists;
use crate::process::output;
use crate::progress::say;
use crate::project;

/// A series of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Series {
    /// Debian bookworm's.
    #[value(name = "6.1")]
    V6_1,
    /// The one of bookworm's backports.
    #[value(name = "6.12")]
    V6_12,
}

impl Series {
    /// Every series that is tested.
    pub(crate) const ALL: [Self; 2] = [Self::V6_1, Self::V6_12];

    /// As people write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }
}

/// A kernel that a guest can boot.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// Which series it is of.
    pub(crate) series: Series,
    /// Its release, as `uname -r` has it.
    pub(crate) release: String,
    /// Its image.
    pub(crate) image: PathBuf,
    /// The modules a guest needs, in the order to load them in.
    pub(crate) modules: Vec<PathBuf>,
}

/// What a guest has to load, with what these depend on.
const MODULES: [&str; 3] = ["virtio_pci", "vmw_vsock_virtio_transport", "virtio_net"];

impl Kernel {
    /// Finds the newest kernel of a series, and downloads it if it isn't there yet.
    pub(crate) fn obtain(series: Series) -> Result<Self> {
        let directory = project::cache().join("kernels");
        fs::create_dir_all(&directory).context("create a directory for kernels")?;
        let lists = Lists::open()?;
        let mut package = newest_package(series, &lists)?;
        if !directory.join(&package).exists() {
            // A download needs the archive's latest word; what it replaced may be gone.
            lists.refresh()?;
            package = newest_package(series, &lists)?;
            say(format!("downloading {package}"));
            lists.unpack(&package, &directory.join(&package))?;
        }
        let root = directory.join(&package);
        let release = package.trim_start_matches("linux-image-").to_owned();
        let image = bootable_image(&root.join(format!("boot/vmlinuz-{release}")))?;
        let tree = root.join("lib/modules").join(&release);
        let modules = load_order(&tree).with_context(|| format!("modules of {package}"))?;
        Ok(Self {
            series,
            release,
            image,
            modules,
        })
    }
}

fn newest_package(series: Series, lists: &Lists) -> Result<String> {
    let version = series.name().replace('.', r"\.");
    let names = lists.search(&format!(r"^linux-image-{version}\..*-cloud-amd64$"))?;
    let newest = names.into_iter().max_by_key(|name| numbers(name));
    newest.with_context(|| format!("no package of a {} cloud kernel", series.name()))
}

/// The numbers in a version, to compare versions by.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|run| run.parse().ok())
        .collect()
}

/// The uncompressed kernel inside a compressed one, where its compression is known: QEMU
/// boots it directly (PVH), which spares the guest the decompression.
fn bootable_image(compressed: &Path) -> Result<PathBuf> {
    let image = compressed.with_file_name("vmlinux");
    if !image.exists() {
        let bytes = fs::read(compressed).with_context(|| format!("{}", compressed.display()))?;
        let Some((payload, tool)) = payload(&bytes).and_then(|p| Some((p, decompressor(p)?)))
        else {
            return Ok(compressed.to_owned());
        };
        decompress(payload, tool, &image)?;
    }
    Ok(image)
}

/// The compressed kernel in a bzImage: where the boot protocol's header says it is,
/// without the four bytes of its length that follow it.
fn payload(image: &[u8]) -> Option<&[u8]> {
    const SETUP_SECTORS: usize = 0x1f1;
    const PAYLOAD_OFFSET: usize = 0x248;
    const PAYLOAD_LENGTH: usize = 0x24c;
    let word = |at: usize| {
        let bytes = image.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    let setup = match *image.get(SETUP_SECTORS)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup + 1) * 512 + word(PAYLOAD_OFFSET)?;
    image.get(start..start + word(PAYLOAD_LENGTH)?.checked_sub(4)?)
}

/// The program that undoes a compression, told by the first bytes.
fn decompressor(bytes: &[u8]) -> Option<&'static str> {
    const KNOWN: [(&[u8], &str); 4] = [
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\x02\x21\x4c\x18", "lz4"),
        (b"\xfd7zXZ", "xz"),
        (b"\x1f\x8b", "gzip"),
    ];
    KNOWN
        .iter()
        .find(|(magic, _)| bytes.starts_with(magic))
        .map(|(_, tool)| *tool)
}

fn decompress(bytes: &[u8], tool: &str, to: &Path) -> Result<()> {
    let part = to.with_extension("part");
    fs::write(&part, bytes).with_context(|| format!("write {}", part.display()))?;
    let plain = output(Command::new(tool).arg("-dc").arg(&part))?;
    fs::remove_file(&part)?;
    fs::write(to, plain).with_context(|| format!("write {}", to.display()))
}

/// [`MODULES`] and what they depend on, uncompressed, each after what it depends on. What
/// is built into the kernel has no file, and needs none.
fn load_order(tree: &Path) -> Result<Vec<PathBuf>> {
    let files = module_files(tree)?;
    let mut order = Vec::new();
    for module in MODULES {
        add_module(module, &files, &mut order)?;
    }
    ensure!(
        !order.is_empty(),
        "none of {MODULES:?} is under {}",
        tree.display()
    );
    Ok(order)
}

fn add_module(
    name: &str,
    files: &HashMap<String, PathBuf>,
    order: &mut Vec<PathBuf>,
) -> Result<()> {
    let Some(file) = files.get(name) else {
        return Ok(());
    };
    let plain = plain_module(file)?;
    if order.contains(&plain) {
        return Ok(());
    }
    let bytes = fs::read(&plain).with_context(|| format!("read {}", plain.display()))?;
    for needed in dependencies(&bytes) {
        add_module(&needed, files, order)?;
    }
    order.push(plain);
    Ok(())
}

/// A module's file, decompressed beside the compressed one.
fn plain_module(file: &Path) -> Result<PathBuf> {
    let bytes = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let Some(tool) = decompressor(&bytes) else {
        return Ok(file.to_owned());
    };
    let plain = file.with_extension("");
    if !plain.exists() {
        decompress(&bytes, tool, &plain)?;
    }
    Ok(plain)
}

/// All module files below a directory, by the module's name.
fn module_files(directory: &Path) -> Result<HashMap<String, PathBuf>> {
    let mut files = HashMap::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(&directory);
        for entry in entries.with_context(|| format!("list {}", directory.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if let Some(name) = module_name(&path) {
                files.entry(name).or_insert(path);
            }
        }
    }
    Ok(files)
}

fn module_name(path: &Path) -> Option<String> {
    let (name, rest) = path.file_name()?.to_str()?.split_once(".ko")?;
    (rest.is_empty() || rest.starts_with('.')).then(|| name.replace('-', "_"))
}

/// The modules that a module says it depends on.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"depends=";
    let strings = module.split(|&byte| byte == 0);
    let depends = strings.filter_map(|string| string.strip_prefix(KEY));
    let depends = depends.map(|list| String::from_utf8_lossy(list).replace('-', "_"));
    let lists: Vec<_> = depends.collect();
    let names = lists.iter().flat_map(|list| list.split(','));
    names
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_the_one_with_the_greatest_numbers() {
        let names = [
            "linux-image-6.12.95+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud",
        ];
        assert_eq!(
            names.into_iter().max_by_key(|name| numbers(name)),
            Some(names[1])
        );
    }

    #[test]
    fn reads_what_a_module_depends_on() {
        let module = b"\x7fELF\0license=GPL\0depends=virtio,vsock-common\0retpoline=Y\0";
        assert_eq!(dependencies(module), ["virtio", "vsock_common"]);
        assert!(dependencies(b"\0depends=\0").is_empty());
    }

    #[test]
    fn names_modules_by_their_files() {
        let name = |path: &str| module_name(Path::new(path));
        assert_eq!(name("a/virtio-ring.ko.xz").as_deref(), Some("virtio_ring"));
        assert_eq!(name("a/vsock.ko").as_deref(), Some("vsock"));
        assert_eq!(name("a/modules.order"), None);
    }

    #[test]
    fn a_file_too_short_for_a_header_has_no_payload() {
        assert_eq!(payload(&[0; 0x200]), None);
    }
}
