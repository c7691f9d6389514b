//! What a process has: descriptors, threads, memory; and whether it rests.

use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{fs, io};

use super::witness::Witness;

/// What the allocator may keep of what a scenario used, in KiB.
const MEMORY: u64 = 16 << 10;
/// How long what was used may take to be given back.
const PATIENCE: Duration = Duration::from_secs(10);
/// A window in which the process is watched, and what of it it may run.
const WATCHED: Duration = Duration::from_millis(150);
const MAY_RUN: Duration = Duration::from_millis(10);

/// What a process has at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Usage {
    pid: u32,
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
    /// Memory of its own, that of guests not included, in KiB.
    pub(crate) memory: u64,
}

/// Whether a thread is one that answers at the control socket, of which some stay for a while.
fn is_a_job(task: &io::Result<fs::DirEntry>) -> bool {
    let name = |task: &fs::DirEntry| fs::read_to_string(task.path().join("comm"));
    let name = task.as_ref().ok().and_then(|task| name(task).ok());
    name.is_none_or(|name| name.trim_end() == "control-job")
}

impl Usage {
    /// What the process has now.
    pub(crate) fn now(pid: u32) -> Self {
        let entries = |what| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let anonymous = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let memory = anonymous.unwrap().trim().trim_end_matches(" kB");
        Self {
            pid,
            descriptors: entries("fd").count(),
            threads: entries("task").filter(|task| !is_a_job(task)).count(),
            memory: memory.parse().unwrap(),
        }
    }

    /// What the process has while the witness rests.
    pub(crate) fn at_rest(pid: u32, witness: &Witness) -> Self {
        witness.resting(|| Self::now(pid))
    }

    /// The process has no more than this again, and is at rest while the witness is.
    #[track_caller]
    pub(crate) fn is_all_there_is(&self, witness: &Witness) {
        let deadline = Instant::now() + PATIENCE;
        witness.resting(|| {
            while let Err(why) = self.compare() {
                assert!(Instant::now() < deadline, "{why}");
                sleep(Duration::from_millis(5));
            }
        });
    }

    fn compare(&self) -> Result<(), String> {
        let now = Self::now(self.pid);
        let same = (now.descriptors, now.threads) == (self.descriptors, self.threads);
        if !same || now.memory > self.memory + MEMORY {
            let open = fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap();
            let open = open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
            let open: Vec<_> = open.map(|path| path.display().to_string()).collect();
            return Err(format!(
                "before {self:?}, now {now:?} with {}",
                open.join(", ")
            ));
        }
        let before = self.time_run();
        sleep(WATCHED);
        let run = self.time_run().saturating_sub(before);
        if run > MAY_RUN {
            return Err(format!(
                "the process ran {run:?} of {WATCHED:?} with nothing to do"
            ));
        }
        Ok(())
    }

    /// The time all threads of the process have run. One that ends takes its share along.
    fn time_run(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).unwrap();
        let run = |task: io::Result<fs::DirEntry>| {
            let path = task.ok()?.path().join("schedstat");
            let text = fs::read_to_string(path).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        };
        Duration::from_nanos(tasks.filter_map(run).sum())
    }
}
