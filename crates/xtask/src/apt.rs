//! Debian's packages: installed where that is allowed, or only downloaded, by way of
//! private package lists that leave the machine's own configuration alone.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};
use std::{env, fs};

use anyhow::{Context, Result, bail};
use rustix::process::geteuid;

use crate::process::{lines, output};
use crate::progress::say;
use crate::project;

/// A program that is needed, and the package it comes from.
pub(crate) struct Tool {
    /// The program's name.
    pub(crate) program: &'static str,
    /// Debian's package.
    pub(crate) package: &'static str,
}

/// The packages of those `tools` that aren't there; an error if they can't be installed.
pub(crate) fn missing(tools: &[Tool]) -> Result<Vec<&'static str>> {
    let missing = tools.iter().filter(|tool| find(tool.program).is_none());
    let missing: Vec<_> = missing.map(|tool| tool.package).collect();
    let why = match (find("apt-get").is_some(), geteuid().is_root()) {
        (true, true) => return Ok(missing),
        _ if missing.is_empty() => return Ok(missing),
        (false, _) => "there is no apt-get",
        (true, false) => "this needs root",
    };
    let packages = missing.join(" ");
    bail!(
        "these Debian packages are missing, and cannot be installed since {why}: {packages}\n\
         Install them first: apt-get install --no-install-recommends {packages}"
    );
}

/// Installs packages.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    say(format!("installing {}", packages.join(" ")));
    output(Command::new("apt-get").args(["-q", "update"])).context("fetch package lists")?;
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive");
    install.args(["-q", "-y", "install", "--no-install-recommends"]);
    output(install.args(packages))?;
    Ok(())
}

/// A program's path, looked for as the shell does and where the system's own are.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    let mut candidates = env::split_paths(&path)
        .chain(system)
        .map(|dir| dir.join(program));
    candidates.find(|path| path.is_file())
}

/// How long package lists are taken as new.
const LISTS_KEEP: Duration = Duration::from_secs(24 * 3600);
/// The Debian release whose kernels are taken.
const RELEASE: &str = "bookworm";

/// Package lists of our own: the machine's archive, and the backports of [`RELEASE`].
#[derive(Debug)]
pub(crate) struct Lists {
    directory: PathBuf,
}

impl Lists {
    /// Makes the lists, or brings old ones up to date; where that fails, old ones do.
    pub(crate) fn open() -> Result<Self> {
        let lists = Self {
            directory: project::cache().join("apt"),
        };
        if !lists.are_new()
            && let Err(error) = lists.refresh()
        {
            if !lists.stamp().exists() {
                return Err(error);
            }
            say(format!("taking the package lists of before: {error:#}"));
        }
        Ok(lists)
    }

    /// Fetches the lists as they are now.
    pub(crate) fn refresh(&self) -> Result<()> {
        for directory in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(self.directory.join(directory)).context("create a cache")?;
        }
        fs::write(self.sources(), sources()?).context("write the sources")?;
        output(self.apt("apt-get").args(["-q", "update"])).context("fetch package lists")?;
        fs::write(self.stamp(), "").context("write the stamp")
    }

    /// The names of the packages that match a regular expression.
    pub(crate) fn search(&self, pattern: &str) -> Result<Vec<String>> {
        let found = lines(
            self.apt("apt-cache")
                .args(["search", "--names-only", pattern]),
        )?;
        let names = found.iter().filter_map(|line| line.split(" - ").next());
        Ok(names.map(|name| name.trim().to_owned()).collect())
    }

    /// The version of a package that would be downloaded now.
    pub(crate) fn version(&self, package: &str) -> Result<String> {
        let fields = lines(
            self.apt("apt-cache")
                .args(["show", "--no-all-versions", package]),
        )?;
        let version = fields
            .iter()
            .find_map(|line| line.strip_prefix("Version: "));
        let version = version.with_context(|| format!("no version of {package} is known"))?;
        Ok(version.to_owned())
    }

    /// Downloads a package and unpacks it into `directory`, which is then complete.
    pub(crate) fn unpack(&self, package: &str, directory: &Path) -> Result<()> {
        let scratch = directory.with_extension("part");
        if scratch.exists() {
            fs::remove_dir_all(&scratch).context("remove an unfinished download")?;
        }
        fs::create_dir_all(&scratch).context("create a directory for the download")?;
        output(
            self.apt("apt-get")
                .args(["-q", "download", package])
                .current_dir(&scratch),
        )?;
        let mut files = fs::read_dir(&scratch)?.filter_map(|entry| Some(entry.ok()?.path()));
        let file = files
            .next()
            .with_context(|| format!("apt-get left no file of {package}"))?;
        output(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&scratch))?;
        fs::remove_file(&file).context("remove the package file")?;
        fs::rename(&scratch, directory).context("put the package in its place")?;
        Ok(())
    }

    fn apt(&self, program: &str) -> Command {
        let within = |name: &str| self.directory.join(name).display().to_string();
        let mut command = Command::new(program);
        for (option, value) in [
            ("Dir::Etc::SourceList", within("sources.list")),
            ("Dir::Etc::SourceParts", "/dev/null".to_owned()),
            ("Dir::State::Lists", within("lists")),
            ("Dir::Cache", within("cache")),
            ("Acquire::Languages", "none".to_owned()),
            // The unprivileged user that apt would turn into may not write here.
            ("APT::Sandbox::User", String::new()),
        ] {
            command.arg("-o").arg(format!("{option}={value}"));
        }
        command
    }

    fn sources(&self) -> PathBuf {
        self.directory.join("sources.list")
    }

    fn stamp(&self) -> PathBuf {
        self.directory.join("updated")
    }

    fn are_new(&self) -> bool {
        let updated = fs::metadata(self.stamp()).and_then(|stamp| stamp.modified());
        let age = updated.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
        age.is_ok_and(|age| age < LISTS_KEEP)
    }
}

/// The sources of [`RELEASE`] and its backports, from the archive this machine uses.
fn sources() -> Result<String> {
    let known = lines(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE)",
        "Created-By: Packages",
    ]))
    .context("ask apt for the machine's sources")?;
    let release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let codename = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    sources_from(&known, codename.unwrap_or(RELEASE))
}

fn sources_from(known: &[String], codename: &str) -> Result<String> {
    let archive = |suite: &str| {
        let suite = format!("{codename}{suite}");
        let mut known = known.iter().filter_map(|line| line.split_once(' '));
        known
            .find(|(_, release)| *release == suite)
            .map(|(uri, _)| uri.to_owned())
    };
    let main = archive("").with_context(|| {
        format!("apt has no source for {codename}; a Debian archive is needed for its kernels")
    })?;
    let mut wanted = vec![(main.clone(), ""), (main, "-backports")];
    wanted.extend(archive("-security").map(|uri| (uri, "-security")));
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let signed_by = if Path::new(keyring).exists() {
        format!("[signed-by={keyring}] ")
    } else {
        String::new()
    };
    let line = |(uri, suite)| format!("deb {signed_by}{uri} {RELEASE}{suite} main\n");
    Ok(wanted.into_iter().map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_backports_from_the_machines_own_archive() {
        let known = [
            "http://archive.test/debian/ bookworm".to_owned(),
            "http://archive.test/debian/ bookworm-updates".to_owned(),
            "http://archive.test/debian-security/ bookworm-security".to_owned(),
        ];
        let sources = sources_from(&known, "bookworm").unwrap();
        assert!(sources.contains("http://archive.test/debian/ bookworm main"));
        assert!(sources.contains("http://archive.test/debian/ bookworm-backports main"));
        assert!(sources.contains("http://archive.test/debian-security/ bookworm-security main"));
    }

    #[test]
    fn says_so_when_there_is_no_debian_archive() {
        let refusal = sources_from(&[], "noble").unwrap_err();
        assert!(refusal.to_string().contains("no source for noble"));
    }
}
