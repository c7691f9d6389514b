//! The host's side of hybrid vsock: AF_UNIX sockets by the convention the field shares.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use guest_agent::script::{Connected, Failure, PATIENCE};
use guest_agent::uninterrupted::uninterrupted;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::wait;

/// Where connections of a guest to `port` of the host arrive.
pub(crate) fn port_path(uds: &Path, port: u32) -> PathBuf {
    PathBuf::from(format!("{}_{port}", uds.display()))
}

/// A listener for what a guest sends to one port of the host; its socket is removed with
/// it.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: Socket,
    path: PathBuf,
}

impl Listener {
    /// Listens, with room for 1024 that nobody has accepted yet.
    pub(crate) fn bind(uds: &Path, port: u32) -> Result<Self> {
        let path = port_path(uds, port);
        let bind = || {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.bind(&SockAddr::unix(&path)?)?;
            socket.listen(1024)?;
            // An accepting socket's deadline is its receive deadline.
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok::<_, std::io::Error>(socket)
        };
        let socket = bind().with_context(|| format!("listen on {}", path.display()))?;
        Ok(Self { socket, path })
    }

    /// Accepts one connection, or fails after a while.
    pub(crate) fn accept(&self) -> Result<Connected, Failure> {
        let start = Instant::now();
        match uninterrupted(|| self.socket.accept()) {
            Ok((socket, _)) => Ok(Connected {
                socket,
                after: Duration::ZERO,
            }),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let why = format!("accept: no connection came in {PATIENCE:?}");
                Err(Failure::new(&why, &error, start))
            }
            Err(error) => Err(Failure::new("accept", &error, start)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A connection to a port of the guest.
#[derive(Debug)]
pub(crate) struct Dialled {
    /// The connection itself.
    pub(crate) connection: Connected,
    /// The port that the host was given for it.
    pub(crate) host_port: u16,
}

/// Connects to a port of the guest; `None` if that was refused.
pub(crate) fn dial(uds: &Path, port: u32) -> Result<Option<Dialled>> {
    let start = Instant::now();
    let mut stream =
        UnixStream::connect(uds).with_context(|| format!("connect to {}", uds.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let connect = format!("CONNECT {port}");
    stream
        .write_all(format!("{connect}\n").as_bytes())
        .context("send CONNECT")?;
    let Some(answer) = read_line(&mut stream).context("await the answer to CONNECT")? else {
        return Ok(None);
    };
    let host_port = answer
        .strip_prefix("OK ")
        .and_then(|port| port.parse().ok());
    let host_port = host_port.with_context(|| {
        format!("the answer to {connect} should be `OK` and a host port, but is {answer:?}")
    })?;
    let connection = Connected {
        socket: stream.into(),
        after: start.elapsed(),
    };
    Ok(Some(Dialled {
        connection,
        host_port,
    }))
}

/// Connects to a port where something in the guest listens.
pub(crate) fn dial_open(uds: &Path, port: u32) -> Result<Connected> {
    let dialled = dial(uds, port)?.with_context(|| format!("CONNECT {port} was refused"))?;
    Ok(dialled.connection)
}

/// Connects to a port where something in the guest is about to listen.
pub(crate) fn dial_until_accepted(uds: &Path, port: u32) -> Result<Dialled> {
    let what = format!("the guest to accept on port {port}");
    wait::until(&what, PATIENCE, || dial(uds, port))
}

/// Reads to the end of a line and not a byte more; `None` if the stream ends before.
fn read_line(stream: &mut UnixStream) -> std::io::Result<Option<String>> {
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        match uninterrupted(|| stream.read(&mut byte)) {
            Ok(0) => return Ok(None),
            Ok(_) if byte[0] == b'\n' => {
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
            Ok(_) => line.push(byte[0]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{self, Command};
    use std::thread;

    use guest_agent::script::{Receive, Send, Step, run_all};

    use super::*;

    /// Has this process stopped and going on again, a number of times, as Ctrl-Z and `fg`
    /// do: whoever waits at a socket with a deadline is interrupted.
    fn stop_for_moments() {
        let script = "for _ in 1 2 3 4 5; do kill -STOP $0; sleep 0.02; kill -CONT $0; done";
        let status = Command::new("sh")
            .args(["-c", script, &process::id().to_string()])
            .status();
        assert!(status.expect("a shell starts").success());
    }

    /// Acts as a guest's hybrid vsock socket: accepts a connection, and answers CONNECT.
    fn answer_connect(listener: &Listener) -> Connected {
        let accepted = listener.accept().expect("somebody connects");
        let mut stream = UnixStream::from(accepted.socket.try_clone().expect("a descriptor"));
        let line = read_line(&mut stream).expect("a line comes");
        assert_eq!(line.as_deref(), Some("CONNECT 1"));
        stop_for_moments();
        stream.write_all(b"OK 1024\n").expect("somebody reads");
        accepted
    }

    #[test]
    fn both_ends_go_on_after_their_process_was_stopped() {
        let scratch = crate::process::Scratch::new().expect("a scratch directory");
        let listener = Listener::bind(&scratch.join("uds"), 1).expect("a free path");
        let path = port_path(&scratch.join("uds"), 1);
        let sends = [Step::Send(Send::new(100, 1)), Step::ExpectEnd];
        let receives = [Step::Receive(Receive::new(100, 1))];
        let reports = thread::scope(|scope| {
            let accepting = scope.spawn(|| {
                let accepted = answer_connect(&listener);
                stop_for_moments();
                run_all(vec![Ok(accepted)], &sends)
            });
            stop_for_moments();
            let dialled = dial(&path, 1).expect("an answer").expect("no refusal");
            let dialler = dialled.connection;
            let kept = dialler.socket.try_clone().expect("a descriptor");
            let received = run_all(vec![Ok(dialler)], &receives);
            stop_for_moments();
            drop(kept);
            [accepting.join().expect("no panic"), received].concat()
        });
        for report in reports {
            assert!(report.failure.is_none(), "{:?}", report.failure);
        }
    }
}
