//! Lines that tell what happens, each with the time since the beginning.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

static START: OnceLock<Instant> = OnceLock::new();

/// How long the program has been running.
pub(crate) fn elapsed() -> Duration {
    START.get_or_init(Instant::now).elapsed()
}

/// Prints a line with the elapsed time before it.
pub(crate) fn say(text: impl AsRef<str>) {
    println!("[{:6.1} s] {}", elapsed().as_secs_f64(), text.as_ref());
}

/// Prints lines under the one before, without a time.
pub(crate) fn detail(text: impl AsRef<str>) {
    for line in text.as_ref().lines() {
        println!("           {line}");
    }
}
