//! Waiting for a state, with a deadline that says what it waited for.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a state is looked at.
const PERIOD: Duration = Duration::from_millis(2);

/// Calls `look` until it finds something, or fails, or `deadline` has passed.
pub(crate) fn until<T>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() > deadline {
            bail!("waited {deadline:?} for {what}");
        }
        thread::sleep(PERIOD);
    }
}
