//! What one end of a connection does, step by step, and what came of it.
//!
//! The same code runs in the guest on an AF_VSOCK socket and on the host on an AF_UNIX
//! one. No step waits for ever: where a peer makes no progress within [`PATIENCE`], the
//! step fails and says how far it got.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use socket2::Socket;

use crate::meeting::Meeting;
use crate::pattern::Pattern;
use crate::uninterrupted::uninterrupted;

/// How long a step waits for any progress of its peer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// One thing that an end of a connection does.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Writes a pattern.
    Send(Send),
    /// Reads a pattern and verifies each byte.
    Receive(Receive),
    /// Does both at once.
    Exchange(Send, Receive),
    /// Shuts its direction down: the peer reads to the end, and may go on writing.
    FinishSending,
    /// Reads, and expects the end and nothing before it.
    ExpectEnd,
    /// Writes back what it reads, until the end.
    Echo,
    /// Waits until all connections of the conversation are here.
    Meet,
    /// Lets some milliseconds pass: a peer that isn't in a hurry.
    Dawdle(u64),
}

/// A pattern to write.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Send {
    /// How many bytes in all.
    pub bytes: u64,
    /// How many bytes with each `write`.
    pub write_size: usize,
    /// The pattern's seed; connection `n` of a conversation uses `seed + n`.
    pub seed: u64,
}

/// A pattern to read.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Receive {
    /// How many bytes in all.
    pub bytes: u64,
    /// How many bytes with each `read`, at most.
    pub read_size: usize,
    /// Milliseconds to pause after each `read`.
    pub pause_ms: u64,
    /// The pattern's seed; connection `n` of a conversation uses `seed + n`.
    pub seed: u64,
}

impl Send {
    /// `bytes` of the stream of `seed`, 64 KiB with each write.
    pub fn new(bytes: u64, seed: u64) -> Self {
        Self {
            bytes,
            write_size: 64 << 10,
            seed,
        }
    }
}

impl Receive {
    /// `bytes` of the stream of `seed`, as fast as they come.
    pub fn new(bytes: u64, seed: u64) -> Self {
        Self {
            bytes,
            read_size: 256 << 10,
            pause_ms: 0,
            seed,
        }
    }
}

/// What came of a script on one connection.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// How long it took until the connection was there, in milliseconds.
    pub connected_ms: f64,
    /// What each completed step did.
    pub done: Vec<Passage>,
    /// Why the script ended early, if it did.
    pub failure: Option<Failure>,
}

/// The bytes that one step passed.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Passage {
    /// How many bytes were written, or else read.
    pub bytes: u64,
    /// Their checksum.
    pub checksum: u64,
    /// How long it took, in milliseconds.
    pub elapsed_ms: f64,
}

/// Why a script ended early.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// The operating system's error number, if it was an error of a call.
    pub errno: Option<i32>,
    /// What was being done, and what was wrong.
    pub why: String,
    /// Milliseconds since the step began.
    pub after_ms: f64,
}

impl Failure {
    /// Describes `error`, met while `doing` something that began at `start`.
    pub fn new(doing: &str, error: &io::Error, start: Instant) -> Self {
        let errno = error.raw_os_error();
        Self {
            errno,
            why: format!("{doing}: {error}"),
            after_ms: milliseconds(start.elapsed()),
        }
    }
}

impl Report {
    /// The report of a connection that never came about.
    pub fn unconnected(failure: Failure) -> Self {
        Self {
            failure: Some(failure),
            ..Self::default()
        }
    }
}

/// A connection, and how long it took to come about.
#[derive(Debug)]
pub struct Connected {
    /// Its socket.
    pub socket: Socket,
    /// From the call of `connect` to its return; nothing for one that was accepted.
    pub after: Duration,
}

/// Runs `script` on all `connections` at once.
pub fn run_all(connections: Vec<Result<Connected, Failure>>, script: &[Step]) -> Vec<Report> {
    let meeting = Meeting::of(connections.len());
    thread::scope(|scope| {
        let running = connections.into_iter().zip(0..).map(|(connection, index)| {
            let meeting = &meeting;
            scope.spawn(move || match connection {
                Ok(connected) => run(connected, script, index, meeting),
                Err(failure) => Report::unconnected(failure),
            })
        });
        let running: Vec<_> = running.collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_default())
            .collect()
    })
}

/// Runs `script` on connection number `index`, and closes it.
fn run(connected: Connected, script: &[Step], index: u64, meeting: &Meeting) -> Report {
    let Connected { socket, after } = connected;
    let mut report = Report {
        connected_ms: milliseconds(after),
        ..Report::default()
    };
    let end = End {
        socket: &socket,
        index,
        meeting,
    };
    for step in script {
        let start = Instant::now();
        match end.perform(step) {
            Ok((bytes, checksum)) => {
                let elapsed_ms = milliseconds(start.elapsed());
                report.done.push(Passage {
                    bytes,
                    checksum,
                    elapsed_ms,
                });
            }
            Err((doing, error)) => {
                report.failure = Some(Failure::new(&doing, &error, start));
                break;
            }
        }
    }
    report
}

/// Bytes passed and their checksum; or what was being done, and what was wrong.
type Outcome = Result<(u64, u64), (String, io::Error)>;

struct End<'a> {
    socket: &'a Socket,
    index: u64,
    meeting: &'a Meeting,
}

impl End<'_> {
    fn perform(&self, step: &Step) -> Outcome {
        let while_doing = |doing: &str| {
            let doing = doing.to_owned();
            move |error| (doing, error)
        };
        self.socket
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| self.socket.set_write_timeout(Some(PATIENCE)))
            .map_err(while_doing("set the deadlines"))?;
        match step {
            Step::Send(send) => self.send(send),
            Step::Receive(receive) => self.receive(receive),
            Step::Exchange(send, receive) => self.exchange(send, receive),
            Step::FinishSending => {
                self.socket
                    .shutdown(Shutdown::Write)
                    .map_err(while_doing("finish sending"))?;
                Ok((0, 0))
            }
            Step::ExpectEnd => self.expect_end().map_err(while_doing("await the end")),
            Step::Echo => self.echo(),
            Step::Meet => {
                self.meeting
                    .join(PATIENCE)
                    .map_err(io::Error::other)
                    .map_err(while_doing("meet"))?;
                Ok((0, 0))
            }
            Step::Dawdle(ms) => {
                thread::sleep(Duration::from_millis(*ms));
                Ok((0, 0))
            }
        }
    }

    fn send(&self, send: &Send) -> Outcome {
        let mut pattern = Pattern::new(send.seed + self.index);
        let mut buffer = vec![0; send.write_size];
        while pattern.position() < send.bytes {
            let size = buffer.len().min((send.bytes - pattern.position()) as usize);
            let passed = pattern.position();
            pattern.fill(&mut buffer[..size]);
            let mut socket = self.socket;
            socket.write_all(&buffer[..size]).map_err(|error| {
                (
                    format!("send, with {passed} of {} bytes sent", send.bytes),
                    impatient(error),
                )
            })?;
        }
        Ok((pattern.position(), pattern.checksum()))
    }

    fn receive(&self, receive: &Receive) -> Outcome {
        let mut pattern = Pattern::new(receive.seed + self.index);
        let mut buffer = vec![0; receive.read_size];
        while pattern.position() < receive.bytes {
            let size = buffer
                .len()
                .min((receive.bytes - pattern.position()) as usize);
            let passed = pattern.position();
            self.receive_some(&mut buffer[..size], &mut pattern)
                .map_err(|error| {
                    let total = receive.bytes;
                    (
                        format!("receive, with {passed} of {total} bytes received"),
                        error,
                    )
                })?;
            if receive.pause_ms > 0 {
                thread::sleep(Duration::from_millis(receive.pause_ms));
            }
        }
        Ok((pattern.position(), pattern.checksum()))
    }

    fn receive_some(&self, buffer: &mut [u8], pattern: &mut Pattern) -> io::Result<()> {
        let mut socket = self.socket;
        let received = uninterrupted(|| socket.read(buffer)).map_err(impatient)?;
        if received == 0 {
            return Err(io::Error::other("the peer ended the stream"));
        }
        pattern
            .verify(&buffer[..received])
            .map_err(io::Error::other)
    }

    fn exchange(&self, send: &Send, receive: &Receive) -> Outcome {
        thread::scope(|scope| {
            let sending = scope.spawn(|| self.send(send));
            let received = self.receive(receive);
            let sent = sending
                .join()
                .unwrap_or_else(|_| Err(("send".to_owned(), io::Error::other("panicked"))));
            sent.and(received)
        })
    }

    fn expect_end(&self) -> io::Result<(u64, u64)> {
        let mut socket = self.socket;
        match uninterrupted(|| socket.read(&mut [0; 16])).map_err(impatient)? {
            0 => Ok((0, 0)),
            n => Err(io::Error::other(format!(
                "{n} bytes or more came before the end"
            ))),
        }
    }

    fn echo(&self) -> Outcome {
        let mut buffer = vec![0; 64 << 10];
        let mut passed = 0;
        loop {
            match self.echo_some(&mut buffer) {
                Ok(0) => return Ok((passed, 0)),
                Ok(echoed) => passed += echoed as u64,
                Err(error) => return Err((format!("echo, with {passed} bytes echoed"), error)),
            }
        }
    }

    fn echo_some(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut socket = self.socket;
        let received = uninterrupted(|| socket.read(buffer)).map_err(impatient)?;
        socket.write_all(&buffer[..received]).map_err(impatient)?;
        Ok(received)
    }
}

/// Says in plain words that a socket's deadline has passed.
fn impatient(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            io::Error::new(ErrorKind::TimedOut, format!("no progress in {PATIENCE:?}"))
        }
        _ => error,
    }
}

/// A duration as the reports have it.
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
