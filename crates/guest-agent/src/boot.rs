//! From the kernel's first process to a guest that takes orders.

use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount};
use rustix::system::finit_module;
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

/// Kernel modules, named so that their order is the order to load them in.
const MODULES: &str = "/modules";
/// The serial port for orders; the first one is the kernel's console.
const CONTROL_PORT: &str = "/dev/ttyS1";

/// Mounts what programs expect to find.
pub(crate) fn mount_file_systems() -> Result<()> {
    let mounts = [
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/tmp"),
    ];
    for (kind, path) in mounts {
        fs::create_dir_all(path).with_context(|| format!("create {path}"))?;
        mount(kind, path, kind, MountFlags::empty(), None)
            .with_context(|| format!("mount {kind} on {path}"))?;
    }
    Ok(())
}

/// Loads the modules that the initramfs brought along.
pub(crate) fn load_modules() -> Result<()> {
    let entries = fs::read_dir(MODULES).with_context(|| format!("list {MODULES}"))?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        finit_module(&file, c"", 0).with_context(|| format!("load {}", path.display()))?;
    }
    Ok(())
}

/// Puts busybox's programs on the path, if the initramfs has them.
pub(crate) fn install_busybox() -> Result<()> {
    const BUSYBOX: &str = "/bin/busybox";
    if Path::new(BUSYBOX).exists() {
        Command::new(BUSYBOX)
            .args(["--install", "-s", "/bin"])
            .status()
            .with_context(|| format!("run {BUSYBOX}"))?;
    }
    Ok(())
}

/// Opens the control port as a plain stream of bytes.
pub(crate) fn open_control_port() -> Result<File> {
    let port = OpenOptions::new()
        .read(true)
        .write(true)
        .open(CONTROL_PORT)
        .with_context(|| format!("open {CONTROL_PORT}"))?;
    let mut settings = tcgetattr(&port).with_context(|| format!("tcgetattr {CONTROL_PORT}"))?;
    settings.make_raw();
    tcsetattr(&port, OptionalActions::Now, &settings)
        .with_context(|| format!("tcsetattr {CONTROL_PORT}"))?;
    Ok(port)
}

/// The release of the running kernel.
pub(crate) fn kernel_release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}
