//! The kernel's own tests of vsock and its benchmark, built from Debian's packages of the
//! kernel's sources: downloaded, never installed, and unpacked as far as the build needs
//! them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::Lists;
use crate::kernel::Series;
use crate::process::output;
use crate::progress::say;
use crate::project;

/// The tests of a series; its guests run those.
const TESTS: &str = "vsock_test";
/// The benchmark.
const BENCHMARK: &str = "vsock_perf";
/// Which series' sources have the benchmark; it runs on any kernel.
const BENCHMARK_SERIES: Series = Series::V6_12;
/// Where the tests are in the sources, and what they include.
const DIRECTORY: &str = "tools/testing/vsock";
const INCLUDED: &str = "tools/include";

/// The programs for guests with a kernel of `series`, built if they aren't there yet.
pub(crate) fn obtain(series: Series) -> Result<Vec<PathBuf>> {
    let tests = built(series)?.join(TESTS);
    let benchmark = built(BENCHMARK_SERIES)?.join(BENCHMARK);
    Ok(vec![tests, benchmark])
}

/// The directory with a series' programs.
fn built(series: Series) -> Result<PathBuf> {
    let lists = Lists::open()?;
    let package = format!("linux-source-{}", series.name());
    let cache = project::cache().join("kernel-tests");
    let place = |version| cache.join(format!("{package}_{version}"));
    let mut built = place(lists.version(&package)?);
    if !built.exists() {
        // A download needs the archive's latest word; what it replaced may be gone.
        lists.refresh()?;
        built = place(lists.version(&package)?);
        say(format!("downloading {package}, to build its {TESTS}"));
        let [downloaded, unpacked] =
            ["package", "sources"].map(|what| cache.join(format!("{what}-{}", series.name())));
        remove(&downloaded)?;
        lists.unpack(&package, &downloaded)?;
        remove(&unpacked)?;
        unpack(&downloaded, &package, &unpacked)?;
        remove(&downloaded)?;
        build(&unpacked.join(DIRECTORY), series)?;
        fs::rename(&unpacked, &built).context("put the kernel's tests in their place")?;
    }
    Ok(built.join(DIRECTORY))
}

/// Removes a directory, if it is there.
fn remove(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("remove {}", directory.display()))?;
    }
    Ok(())
}

/// Takes the tests and what they include out of the archive in the package.
fn unpack(downloaded: &Path, package: &str, to: &Path) -> Result<()> {
    fs::create_dir_all(to).context("make a directory for sources")?;
    let archive = downloaded.join(format!("usr/src/{package}.tar.xz"));
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--xz", "--strip-components=1", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(to);
    tar.args([DIRECTORY, INCLUDED].map(|path| format!("{package}/{path}")));
    output(&mut tar).map(|_| ())
}

/// Builds programs that need no library of the guest, nor headers newer than the host's.
fn build(directory: &Path, series: Series) -> Result<()> {
    let mut make = Command::new("make");
    make.arg("-C").arg(directory).args([
        "CFLAGS=-O2 -I. -I../../include -D_GNU_SOURCE -U_FORTIFY_SOURCE",
        "LDFLAGS=-static -s",
        TESTS,
    ]);
    if series == BENCHMARK_SERIES {
        make.arg(BENCHMARK);
    }
    output(&mut make).context("build the kernel's tests")?;
    Ok(())
}
