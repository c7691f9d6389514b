//! The guest's only file system: the agent, the kernel modules it loads, and tools to
//! play and test with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use anyhow::{Context, Result};

use crate::apt;
use crate::cpio::Archive;
use crate::kernel::Kernel;
use crate::process::{lines, output};
use crate::project;

/// The machine the guests are, and this host must be.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Programs that go into the guest as they come from Debian.
const PROGRAMS: [&str; 3] = ["busybox", "socat", "ncat"];

/// Builds the initramfs for a kernel, with the agent as its first process and `programs`
/// that need no library, and returns its path.
pub(crate) fn build(kernel: &Kernel, agent: &Path, programs: &[PathBuf]) -> Result<PathBuf> {
    let mut archive = Archive::default();
    archive.device("/dev/console", 5, 1);
    for directory in ["/proc", "/sys", "/tmp", "/root"] {
        archive.directory(directory);
    }
    archive.file("/init", 0o755, &read(agent)?);
    for (number, module) in kernel.modules.iter().enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        archive.file(
            &format!("/modules/{number:02}-{name}"),
            0o644,
            &read(module)?,
        );
    }
    let mut libraries = Vec::new();
    for program in PROGRAMS {
        let path = apt::find(program).with_context(|| format!("{program} is not there"))?;
        archive.file(&format!("/bin/{program}"), 0o755, &read(&path)?);
        libraries.extend(libraries_of(&path));
    }
    for program in programs {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("/bin/{name}"), 0o755, &read(program)?);
    }
    libraries.sort();
    libraries.dedup();
    for library in libraries {
        archive.file(&library, 0o755, &read(Path::new(&library))?);
    }
    let series = kernel.series.name();
    let name = match programs {
        [] => format!("initramfs-{series}.cpio"),
        _ => format!("initramfs-{series}-tests.cpio"),
    };
    let path = project::cache().join(name);
    // Another run may be booting the one before.
    let part = path.with_extension(format!("part-{}", process::id()));
    fs::write(&part, archive.finish()).with_context(|| format!("write {}", part.display()))?;
    fs::rename(&part, &path).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// Builds the guest agent, which needs no library of the guest.
pub(crate) fn build_agent() -> Result<PathBuf> {
    let directory = project::target().join("guest");
    output(
        project::cargo()
            .args(["build", "--quiet", "--release", "--package", "guest-agent"])
            .args(["--target", TARGET, "--target-dir"])
            .arg(&directory)
            .env(
                "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
                "-Ctarget-feature=+crt-static",
            )
            .env("CARGO_PROFILE_RELEASE_STRIP", "true")
            // Built sooner, and as fast where it matters.
            .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    )
    .context("build the guest agent")?;
    Ok(directory.join(TARGET).join("release/guest-agent"))
}

/// The libraries that the dynamic linker would load; none for a static program, where
/// `ldd` fails.
fn libraries_of(program: &Path) -> Vec<String> {
    let listed = lines(Command::new("ldd").arg(program)).unwrap_or_default();
    listed
        .iter()
        .filter_map(|line| library(line))
        .map(str::to_owned)
        .collect()
}

/// The path in one of these lines: `libc.so.6 => /lib/libc.so.6 (0x…)`, or the linker's
/// own, `/lib64/ld-linux.so.2 (0x…)`.
fn library(line: &str) -> Option<&str> {
    let path = line.split_once("=> ").map_or(line, |(_, path)| path);
    path.split_whitespace()
        .next()
        .filter(|path| path.starts_with('/'))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn understands_the_lines_of_ldd() {
        let path = |line| library(line);
        assert_eq!(
            path("\tlibc.so.6 => /lib/libc.so.6 (0x00007f)"),
            Some("/lib/libc.so.6")
        );
        assert_eq!(
            path("\t/lib64/ld-linux.so.2 (0x00007f)"),
            Some("/lib64/ld-linux.so.2")
        );
        assert_eq!(path("\tlinux-vdso.so.1 (0x00007f)"), None);
        assert_eq!(path("\tlibx.so => not found"), None);
    }
}
