//! The thread that keeps the service manager informed: how many VMs there are, and that
//! the daemon is alive, which is found out each time.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::Notifier;
use super::notify::watchdog_time;

/// How often the status is looked at without a hint that it has changed.
const GLANCE: Duration = Duration::from_secs(5);

/// What the thread is woken for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hint {
    /// The status may have changed.
    Look,
    End,
}

/// What is told again and again, until this is dropped.
pub(crate) struct Pulse {
    hints: Sender<Hint>,
    thread: Option<JoinHandle<()>>,
}

impl Pulse {
    /// Tells `status` when it has changed, and that the daemon is alive as often as the
    /// service manager wants, as long as `is_alive` finds it so within the time given.
    ///
    /// # Errors
    ///
    /// There is no thread to spare.
    pub(crate) fn start(
        notifier: Arc<Notifier>,
        is_alive: impl FnMut(Duration) -> bool + Send + 'static,
        status: impl Fn() -> String + Send + 'static,
    ) -> io::Result<Self> {
        Self::with(notifier, watchdog_time(), is_alive, status)
    }

    fn with(
        notifier: Arc<Notifier>,
        watchdog: Option<Duration>,
        is_alive: impl FnMut(Duration) -> bool + Send + 'static,
        status: impl Fn() -> String + Send + 'static,
    ) -> io::Result<Self> {
        let (hints, receiver) = channel();
        // Twice in the time, so that one may be late.
        let period = watchdog.map(|time| time / 2);
        let thread = Builder::new()
            .name("notify".to_owned())
            .spawn(move || beat(&receiver, &notifier, period, is_alive, status))?;
        Ok(Self {
            hints,
            thread: Some(thread),
        })
    }

    /// Where to hint that the status may have changed.
    pub(crate) fn hints(&self) -> Sender<Hint> {
        self.hints.clone()
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        // It fails if the thread has ended, as it should.
        let _ = self.hints.send(Hint::End);
        if let Some(thread) = self.thread.take() {
            // It tells of its panic itself.
            let _ = thread.join();
        }
    }
}

fn beat(
    hints: &Receiver<Hint>,
    notifier: &Notifier,
    period: Option<Duration>,
    mut is_alive: impl FnMut(Duration) -> bool,
    status: impl Fn() -> String,
) {
    let mut told = String::new();
    let mut next_beat = Instant::now();
    loop {
        if let Some(period) = period
            && next_beat <= Instant::now()
        {
            if is_alive(period / 2) {
                notifier.tell("WATCHDOG=1");
            }
            next_beat += period;
        }
        let now = status();
        if now != told {
            notifier.tell(&format!("STATUS={now}"));
            told = now;
        }
        let until_beat = next_beat.saturating_duration_since(Instant::now());
        let wait = period.map_or(GLANCE, |_| until_beat.min(GLANCE));
        match hints.recv_timeout(wait) {
            Ok(Hint::Look) | Err(RecvTimeoutError::Timeout) => (),
            Ok(Hint::End) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn hear(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn beats_only_while_alive() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let alive = Arc::new(AtomicBool::new(true));
        let seen = Arc::clone(&alive);
        let is_alive = move |_| seen.load(Ordering::Relaxed);
        let notifier = Arc::new(Notifier::to(theirs));
        let watchdog = Some(Duration::from_millis(20));
        let pulse = Pulse::with(notifier, watchdog, is_alive, || "one".to_owned()).unwrap();
        let first = [hear(&ours), hear(&ours), hear(&ours), hear(&ours)];
        assert_eq!(
            first,
            ["WATCHDOG=1", "STATUS=one", "WATCHDOG=1", "WATCHDOG=1"]
        );
        alive.store(false, Ordering::Relaxed);
        // A beat may be under way; then there are no more.
        ours.set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        let late = (0..3).take_while(|_| ours.recv(&mut [0; 256]).is_ok());
        assert!(late.count() < 3, "goes on beating");
        drop(pulse);
    }
}
