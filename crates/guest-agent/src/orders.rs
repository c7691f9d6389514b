//! Carries out orders, each on a thread of its own.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use guest_agent::pattern::Pattern;
use guest_agent::protocol::{Command, Conversation, Endpoint, Event, Notice, Order, PatternFile};
use guest_agent::script::{Connected, Failure, PATIENCE, run_all};
use socket2::{Domain, SockAddr, Socket, Type};

/// Any CID: where a listening guest binds.
const CID_ANY: u32 = u32::MAX;
/// How much of a program's output goes into its notice.
const OUTPUT_LIMIT: usize = 4096;

/// Where orders come in and notices go out.
#[derive(Clone)]
pub(crate) struct Desk {
    port: Arc<Mutex<File>>,
}

impl Desk {
    pub(crate) fn new(port: File) -> Self {
        Self {
            port: Arc::new(Mutex::new(port)),
        }
    }

    /// Sends a notice; if even that fails, the console tells.
    pub(crate) fn tell(&self, id: u64, event: Event) {
        let written = serde_json::to_string(&Notice { id, event }).map(|mut line| {
            line.push('\n');
            let mut port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
            port.write_all(line.as_bytes())
        });
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => eprintln!("guest-agent: the control port: {error}"),
            Err(error) => eprintln!("guest-agent: encode a notice: {error}"),
        }
    }

    /// Begins an order.
    pub(crate) fn take(&self, order: Order) {
        let desk = self.clone();
        thread::spawn(move || {
            let Order { id, command } = order;
            let outcome = match command {
                Command::Converse(conversation) => desk.converse(id, &conversation),
                Command::Run { argv, deadline_ms } => {
                    run(&argv, deadline_ms.map(Duration::from_millis))
                }
                Command::WriteFile(file) => write_file(&file),
                Command::VerifyFile(file) => verify_file(&file),
            };
            desk.tell(
                id,
                outcome.unwrap_or_else(|error| Event::Failed(format!("{error:#}"))),
            );
        });
    }

    fn converse(&self, id: u64, conversation: &Conversation) -> Result<Event> {
        let Conversation {
            endpoint,
            connections,
            ref script,
        } = *conversation;
        let connections = match endpoint {
            Endpoint::Connect { cid, port } => {
                connect_all(connections, || connect(&SockAddr::vsock(cid, port)))
            }
            Endpoint::Redial { cid, port } => {
                connect_all(connections, || redial(&SockAddr::vsock(cid, port)))
            }
            Endpoint::Listen { port } => {
                let listener = listen(port, connections)?;
                self.tell(id, Event::Listening);
                (0..connections).map(|_| accept(&listener)).collect()
            }
        };
        Ok(Event::Conversed(run_all(connections, script)))
    }
}

/// Connects `count` times, all at once.
fn connect_all(
    count: usize,
    connect: impl Fn() -> Result<Connected, Failure> + Sync,
) -> Vec<Result<Connected, Failure>> {
    thread::scope(|scope| {
        let connecting: Vec<_> = (0..count).map(|_| scope.spawn(&connect)).collect();
        connecting
            .into_iter()
            .filter_map(|thread| thread.join().ok())
            .collect()
    })
}

fn connect(address: &SockAddr) -> Result<Connected, Failure> {
    let start = Instant::now();
    let connected = Socket::new(Domain::VSOCK, Type::STREAM, None).and_then(|socket| {
        socket.connect(address)?;
        Ok(Connected {
            socket,
            after: start.elapsed(),
        })
    });
    connected.map_err(|error| Failure::new("connect", &error, start))
}

/// Connects until it is not refused; any other failure, a timeout for instance, is final.
fn redial(address: &SockAddr) -> Result<Connected, Failure> {
    const REFUSED: i32 = rustix::io::Errno::CONNRESET.raw_os_error();
    const PAUSE: Duration = Duration::from_millis(5);
    const BOOT_DEADLINE: Duration = Duration::from_secs(90);
    let start = Instant::now();
    loop {
        match connect(address) {
            Err(failure) if failure.errno == Some(REFUSED) && start.elapsed() < BOOT_DEADLINE => {
                thread::sleep(PAUSE);
            }
            connected => {
                let after = start.elapsed();
                return connected.map(|connected| Connected { after, ..connected });
            }
        }
    }
}

fn listen(port: u32, backlog: usize) -> Result<Socket> {
    let listener = Socket::new(Domain::VSOCK, Type::STREAM, None).context("make a socket")?;
    listener
        .bind(&SockAddr::vsock(CID_ANY, port))
        .with_context(|| format!("bind to port {port}"))?;
    listener
        .listen(backlog as i32)
        .with_context(|| format!("listen on port {port}"))?;
    // An accepting socket's deadline is its receive deadline.
    listener
        .set_read_timeout(Some(PATIENCE))
        .context("set the accept deadline")?;
    Ok(listener)
}

fn accept(listener: &Socket) -> Result<Connected, Failure> {
    let start = Instant::now();
    match listener.accept() {
        Ok((socket, _)) => Ok(Connected {
            socket,
            after: Duration::ZERO,
        }),
        Err(error) => Err(Failure::new("accept", &error, start)),
    }
}

/// Runs a program, its output in a file so that no pipe can fill up.
fn run(argv: &[String], deadline: Option<Duration>) -> Result<Event> {
    let (program, arguments) = argv.split_first().context("no program named")?;
    let path = format!("/tmp/output-{:?}", thread::current().id());
    let output = File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(&path)?;
    let mut child = std::process::Command::new(program)
        .args(arguments)
        .env("PATH", "/bin:/usr/bin")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status.code();
        }
        if deadline.is_some_and(|deadline| start.elapsed() > deadline) {
            child.kill()?;
            child.wait()?;
            break None;
        }
        thread::sleep(Duration::from_millis(5));
    };
    Ok(Event::Ran {
        status,
        output: tail(output)?,
    })
}

fn tail(mut file: File) -> Result<String> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(OUTPUT_LIMIT as u64)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn write_file(file: &PatternFile) -> Result<Event> {
    let mut bytes = vec![0; file.bytes as usize];
    Pattern::new(file.seed).fill(&mut bytes);
    std::fs::write(&file.path, bytes).with_context(|| format!("write {}", file.path))?;
    Ok(Event::Done)
}

fn verify_file(file: &PatternFile) -> Result<Event> {
    let bytes = std::fs::read(&file.path).with_context(|| format!("read {}", file.path))?;
    Pattern::new(file.seed)
        .verify(&bytes)
        .with_context(|| file.path.clone())?;
    let (found, wanted) = (bytes.len() as u64, file.bytes);
    anyhow::ensure!(
        found == wanted,
        "{} has {found} bytes, not {wanted}",
        file.path
    );
    Ok(Event::Done)
}
