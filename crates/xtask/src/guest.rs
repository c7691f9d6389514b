//! A guest: booted, and commanded over its control port.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use guest_agent::protocol::{
    Command, Conversation, Endpoint, Event, Notice, Order, PatternFile, UNASKED,
};
use guest_agent::script::{PATIENCE, Report, Step};

use crate::progress;
use crate::qemu::{self, Machine, Qemu};

/// A guest has booted within this time, or something is wrong.
pub(crate) const BOOT_DEADLINE: Duration = Duration::from_secs(60);
/// How often a guest is booted whose kernel panics at once.
const BOOTS: u32 = 3;
/// What a kernel says that has panicked.
const PANIC: &str = "Kernel panic - not syncing";
/// How long an order may take altogether; each of its steps has a shorter deadline.
pub(crate) const ORDER_DEADLINE: Duration = Duration::from_secs(180);

/// A running guest.
#[derive(Debug)]
pub(crate) struct Guest {
    /// Its virtual machine.
    pub(crate) qemu: Qemu,
    /// Its kernel's release, known once it is ready.
    pub(crate) kernel: String,
    machine: Machine,
    /// How much the console had printed when the guest was ready.
    boot_messages: usize,
    control: UnixStream,
    /// Who waits for notices, by the id of the order.
    waiting: Waiting,
    ready: Receiver<Event>,
    last_id: u64,
}

type Waiting = Arc<Mutex<HashMap<u64, Sender<Event>>>>;

impl Guest {
    /// Boots a machine and waits until it takes orders. A kernel that panics before it
    /// has started a process is booted again, which is said: without KVM, on a busy
    /// machine, that happens now and then, and none of ours has run by then.
    pub(crate) fn boot(machine: &Machine, deadline: Duration) -> Result<Self> {
        for boot in 1.. {
            let mut guest = Self::start(machine)?;
            match guest.await_ready(deadline) {
                Err(error) if boot < BOOTS && guest.has_panicked_early() => {
                    progress::say(format!("the guest is booted again: {error:#}"));
                }
                result => return result.map(|()| guest),
            }
        }
        unreachable!("the last boot returns");
    }

    /// Starts a machine, whose guest is not ready yet.
    fn start(machine: &Machine) -> Result<Self> {
        // What another boot has printed is not this one's.
        let _ = fs::remove_file(qemu::console(&machine.directory));
        let (qemu, control) = Qemu::start(machine)?;
        let waiting = Waiting::default();
        let (tell_ready, ready) = channel();
        lock(&waiting).insert(UNASKED, tell_ready);
        let reader = BufReader::new(control.try_clone().context("share the control port")?);
        let dispatch_to = Arc::clone(&waiting);
        thread::spawn(move || dispatch(reader, &dispatch_to));
        Ok(Self {
            qemu,
            kernel: String::new(),
            machine: machine.clone(),
            boot_messages: 0,
            control,
            waiting,
            ready,
            last_id: UNASKED,
        })
    }

    /// Whether the kernel has panicked before it started a process.
    fn has_panicked_early(&self) -> bool {
        let console = self.console();
        let console = String::from_utf8_lossy(&console);
        console.contains(PANIC) && !console.contains("Run /init")
    }

    /// Waits until the guest has booted, for the first time or again.
    pub(crate) fn await_ready(&mut self, deadline: Duration) -> Result<()> {
        self.boot_messages = self.console().len();
        let start = Instant::now();
        loop {
            match self.ready.recv_timeout(Duration::from_millis(100)) {
                Ok(Event::Ready { kernel }) => {
                    self.kernel = kernel;
                    self.boot_messages = self.console().len();
                    return Ok(());
                }
                Ok(_) => {}
                Err(_) => self.qemu.check()?,
            }
            let since = self.boot_messages.min(self.console().len());
            if String::from_utf8_lossy(&self.console()[since..]).contains(PANIC) {
                bail!("the guest's kernel has panicked; {}", self.console_tail());
            }
            if start.elapsed() > deadline {
                bail!(
                    "waited {deadline:?} for the guest to boot; {}",
                    self.console_tail()
                );
            }
        }
    }

    /// The end of what the guest's kernel has printed since it was ready.
    pub(crate) fn console_tail(&self) -> String {
        const LINES: usize = 15;
        let console = self.console();
        let since = String::from_utf8_lossy(&console[self.boot_messages.min(console.len())..]);
        let lines: Vec<_> = since.lines().filter(|line| !line.is_empty()).collect();
        let tail = &lines[lines.len().saturating_sub(LINES)..];
        if tail.is_empty() {
            return "its console is silent".to_owned();
        }
        format!("the end of its console:\n{}", tail.join("\n"))
    }

    fn console(&self) -> Vec<u8> {
        fs::read(qemu::console(&self.machine.directory)).unwrap_or_default()
    }

    /// Runs `script` on `connections` connections to `port` of the guest, or from the
    /// guest. A listening guest listens when this returns.
    pub(crate) fn converse(
        &mut self,
        endpoint: Endpoint,
        connections: usize,
        script: Vec<Step>,
    ) -> Result<Ongoing> {
        let conversation = Conversation {
            endpoint,
            connections,
            script,
        };
        let ongoing = self.order(Command::Converse(conversation))?;
        if let Endpoint::Listen { port } = endpoint {
            match ongoing
                .next(PATIENCE)
                .with_context(|| format!("listen on port {port}"))?
            {
                Event::Listening => {}
                other => bail!("the guest should listen on port {port}, but says {other:?}"),
            }
        }
        Ok(ongoing)
    }

    /// Runs a program in the guest, which has to end in time.
    pub(crate) fn run(&mut self, argv: &[&str]) -> Result<Ongoing> {
        let deadline_ms = Some(ORDER_DEADLINE.as_millis() as u64 / 2);
        self.order(Command::Run {
            argv: owned(argv),
            deadline_ms,
        })
    }

    /// Starts a program in the guest, for as long as the guest runs.
    pub(crate) fn spawn(&mut self, argv: &[&str]) -> Result<Ongoing> {
        self.order(Command::Run {
            argv: owned(argv),
            deadline_ms: None,
        })
    }

    /// Writes a file with a pattern.
    pub(crate) fn write_file(&mut self, path: &str, bytes: u64, seed: u64) -> Result<()> {
        self.order(Command::WriteFile(PatternFile {
            path: path.to_owned(),
            bytes,
            seed,
        }))?
        .done()
    }

    /// Verifies a file with a pattern.
    pub(crate) fn verify_file(&mut self, path: &str, bytes: u64, seed: u64) -> Result<()> {
        self.order(Command::VerifyFile(PatternFile {
            path: path.to_owned(),
            bytes,
            seed,
        }))?
        .done()
    }

    fn order(&mut self, command: Command) -> Result<Ongoing> {
        self.last_id += 1;
        let (sender, events) = channel();
        lock(&self.waiting).insert(self.last_id, sender);
        let order = Order {
            id: self.last_id,
            command,
        };
        let line = serde_json::to_string(&order).context("encode an order")? + "\n";
        self.control
            .write_all(line.as_bytes())
            .context("send an order to the guest")?;
        Ok(Ongoing { events })
    }
}

/// An order that the guest is carrying out.
#[derive(Debug)]
pub(crate) struct Ongoing {
    events: Receiver<Event>,
}

impl Ongoing {
    /// The reports of a conversation.
    pub(crate) fn reports(&self) -> Result<Vec<Report>> {
        match self.next(ORDER_DEADLINE)? {
            Event::Conversed(reports) => Ok(reports),
            other => bail!("the guest should report on its connections, but says {other:?}"),
        }
    }

    /// A program's output, if it succeeded.
    pub(crate) fn success(&self) -> Result<String> {
        match self.next(ORDER_DEADLINE)? {
            Event::Ran {
                status: Some(0),
                output,
            } => Ok(output),
            Event::Ran { status, output } => {
                let status = status.map_or("a signal".to_owned(), |code| format!("status {code}"));
                bail!(
                    "the guest's program ended with {status}: {}",
                    output.trim_end()
                )
            }
            other => bail!("the guest's program should end, but the guest says {other:?}"),
        }
    }

    fn done(&self) -> Result<()> {
        match self.next(ORDER_DEADLINE)? {
            Event::Done => Ok(()),
            other => bail!("the guest should be done, but says {other:?}"),
        }
    }

    fn next(&self, deadline: Duration) -> Result<Event> {
        match self.events.recv_timeout(deadline) {
            Ok(Event::Failed(why)) => bail!("in the guest: {why}"),
            Ok(event) => Ok(event),
            Err(RecvTimeoutError::Timeout) => bail!("the guest said nothing for {deadline:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the guest is gone"),
        }
    }
}

fn owned(argv: &[&str]) -> Vec<String> {
    argv.iter().map(|&argument| argument.to_owned()).collect()
}

/// Hands each notice to whoever waits for it, until the guest is gone.
fn dispatch(reader: BufReader<UnixStream>, waiting: &Waiting) {
    for line in reader.lines().map_while(Result::ok) {
        // Firmware may write to the port too.
        let Ok(Notice { id, event }) = serde_json::from_str(line.trim_start_matches('\0')) else {
            continue;
        };
        if matches!(event, Event::Ready { .. }) {
            // Orders from before the boot are forgotten.
            lock(waiting).retain(|&id, _| id == UNASKED);
        }
        if let Some(sender) = lock(waiting).get(&id) {
            let _ = sender.send(event);
        }
    }
    lock(waiting).clear();
}

fn lock(waiting: &Waiting) -> std::sync::MutexGuard<'_, HashMap<u64, Sender<Event>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
