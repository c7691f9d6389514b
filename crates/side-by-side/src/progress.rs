//! Where a long run is: one line that changes, or a line a round where it can't.

use std::io::{IsTerminal, Write, stdout};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How far a run has come.
#[derive(Debug)]
pub(crate) struct Progress {
    rounds: usize,
    /// Steps of a round.
    steps: usize,
    /// Steps that have begun.
    begun: usize,
    start: Instant,
    is_terminal: bool,
}

/// Goes to the start of the line and clears it.
const CLEAR: &str = "\r\x1b[K";

impl Progress {
    pub(crate) fn new(rounds: usize, steps: usize) -> Self {
        Self {
            rounds,
            steps,
            begun: 0,
            start: Instant::now(),
            is_terminal: stdout().is_terminal(),
        }
    }

    /// A step begins.
    pub(crate) fn step(&mut self, name: &str) -> Result<()> {
        let round = self.begun / self.steps + 1;
        let position = format!("round {round} of {}", self.rounds);
        let is_new = self.begun.is_multiple_of(self.steps);
        let to_go = self.to_go().map(seconds);
        let to_go = to_go.map_or_else(String::new, |to_go| format!(", {to_go} to go"));
        self.begun += 1;
        match (self.is_terminal, is_new) {
            (true, _) => show(&format!("{CLEAR}{position}{to_go}: {name}")),
            (false, true) => show(&format!("{position}{to_go}\n")),
            (false, false) => Ok(()),
        }
    }

    /// Something went wrong that does not end the run.
    pub(crate) fn complain(&self, what: &str) -> Result<()> {
        let clear = if self.is_terminal { CLEAR } else { "" };
        show(&format!("{clear}{what}\n"))
    }

    /// The last step has ended.
    pub(crate) fn finish(&self) -> Result<()> {
        let took = seconds(self.start.elapsed());
        self.complain(&format!("measured for {took}"))
    }

    /// The time the steps that have not begun will take, if those before tell.
    fn to_go(&self) -> Option<Duration> {
        let left = u32::try_from(self.rounds * self.steps - self.begun).ok()?;
        let begun = u32::try_from(self.begun).ok().filter(|&begun| begun > 0)?;
        Some(self.start.elapsed() / begun * left)
    }
}

fn seconds(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02} min", seconds / 60, seconds % 60)
}

fn show(text: &str) -> Result<()> {
    let mut stdout = stdout();
    let written = stdout.write_all(text.as_bytes());
    written
        .and_then(|()| stdout.flush())
        .context("write to the terminal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_the_time_to_go_once_there_is_something_to_tell_it_by() {
        let mut progress = Progress::new(2, 2);
        assert_eq!(progress.to_go(), None);
        progress.begun = 2;
        progress.start = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        let to_go = progress.to_go().unwrap();
        assert_eq!(to_go.as_secs(), 60);
        assert_eq!(seconds(to_go), "1:00 min");
    }
}
