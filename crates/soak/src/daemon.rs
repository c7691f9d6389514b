//! The daemon as a process: started, looked at, ended.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

/// The daemon starts, and ends, within this time.
const DEADLINE: Duration = Duration::from_secs(20);

/// A running daemon, ended when it is dropped, or this process is.
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
    /// How much of the log was read.
    log_read: u64,
    /// System calls that went wrong, as the log has it.
    pub(crate) mishaps: u64,
}

/// What the process has at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Usage {
    pub(crate) descriptors: usize,
    /// But for those that do what the control socket asks for, which stay for a while.
    pub(crate) threads: usize,
    /// Memory of its own, in KiB.
    pub(crate) memory: u64,
}

impl Daemon {
    /// Starts the daemon on a directory of configuration files.
    pub(crate) fn start(program: &Path, directory: &Path, seed: u64) -> Result<Self> {
        let log = directory.join("daemon.log");
        let output = File::create(&log).context("create the daemon's log")?;
        // It ends with this process, however that ends.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .arg("--config")
            .arg(directory.join("vms"))
            .arg("--control")
            .arg(directory.join("control"))
            .env("VSOCK_MISHAPS", seed.to_string())
            .env("RUST_LOG", "info")
            // What is kept for each thread that ever was would hide what leaks.
            .env("MALLOC_ARENA_MAX", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let mut daemon = Self {
            child,
            log,
            log_read: 0,
            mishaps: 0,
        };
        let deadline = Instant::now() + DEADLINE;
        while !fs::read_to_string(&daemon.log)?.contains("ready") {
            daemon.check()?;
            ensure!(Instant::now() < deadline, "the daemon is not ready in time");
            sleep(Duration::from_millis(5));
        }
        Ok(daemon)
    }

    /// Fails if it has ended, or a thread of it has.
    pub(crate) fn check(&mut self) -> Result<()> {
        let mut new = Vec::new();
        let mut log = File::open(&self.log).context("open the daemon's log")?;
        log.seek(SeekFrom::Start(self.log_read))?;
        self.log_read += log.read_to_end(&mut new)? as u64;
        for line in String::from_utf8_lossy(&new).lines() {
            ensure!(
                !line.contains("panicked at"),
                "a thread has panicked: {line}"
            );
            let count = line.contains("went wrong, made up").then_some(line);
            let count = count.and_then(|line| line.rsplit("count=").next()?.trim().parse().ok());
            self.mishaps = count.unwrap_or(self.mishaps);
        }
        if let Some(status) = self.child.try_wait()? {
            bail!("the daemon has ended with {status}");
        }
        Ok(())
    }

    /// The end of its log.
    pub(crate) fn log_tail(&self) -> String {
        const LINES: usize = 30;
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log
            .lines()
            .filter(|line| !line.contains("made up"))
            .collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        let pid = self.child.id();
        let list = |what| fs::read_dir(format!("/proc/{pid}/{what}"));
        let is_helper = |task: &std::io::Result<fs::DirEntry>| {
            let name = |task: &fs::DirEntry| fs::read_to_string(task.path().join("comm"));
            let name = task.as_ref().ok().and_then(|task| name(task).ok());
            name.is_some_and(|name| name.starts_with("control-job"))
        };
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let memory = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let memory = memory.context("no RssAnon in the daemon's status")?;
        Ok(Usage {
            descriptors: list("fd")?.count(),
            threads: list("task")?.filter(|task| !is_helper(task)).count(),
            memory: memory.trim().trim_end_matches(" kB").parse()?,
        })
    }

    /// What its descriptors are, and how many of each kind.
    pub(crate) fn descriptors(&self) -> BTreeMap<String, usize> {
        let open = fs::read_dir(format!("/proc/{}/fd", self.child.id()));
        let mut kinds = BTreeMap::new();
        for fd in open.into_iter().flatten().flatten() {
            let target = fs::read_link(fd.path()).unwrap_or_default();
            let kind = target.display().to_string();
            let kind = kind
                .split_once(":[")
                .map_or(kind.as_str(), |(kind, _)| kind);
            *kinds.entry(kind.to_owned()).or_default() += 1;
        }
        kinds
    }

    /// The time its threads have run.
    pub(crate) fn time_run(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let run = |task: std::io::Result<fs::DirEntry>| {
            let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        };
        Duration::from_nanos(tasks.into_iter().flatten().filter_map(run).sum())
    }

    /// Lets it open only so many descriptors more; `None`: as many as the system allows.
    pub(crate) fn limit_descriptors(&self, more: Option<u64>) -> Result<()> {
        let maximum = getrlimit(Resource::Nofile).maximum;
        let current = match more {
            Some(more) => Some(self.usage()?.descriptors as u64 + more),
            None => maximum,
        };
        let limit = Rlimit { current, maximum };
        prlimit(Some(Pid::from_child(&self.child)), Resource::Nofile, limit)
            .context("limit the daemon's descriptors")?;
        Ok(())
    }

    /// Ends it as a service manager does.
    pub(crate) fn end(mut self) -> Result<()> {
        self.check()?;
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(
                Instant::now() < deadline,
                "the daemon does not end after SIGTERM"
            );
            sleep(Duration::from_millis(5));
        };
        ensure!(status.success(), "the daemon has ended with {status}");
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail harmlessly when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
