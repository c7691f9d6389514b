//! What happens to the machine: paused, reset, killed.

use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use guest_agent::protocol::Endpoint;
use guest_agent::script::{Connected, Receive, Send, Step, milliseconds, run_all};
use guest_agent::uninterrupted::uninterrupted;
use socket2::Socket;

use super::bulk::Transfer;
use super::{Bench, Case, NO_LAB};
use crate::guest::{BOOT_DEADLINE, Ongoing};
use crate::hybrid::{self, Listener};
use crate::lab::{HOST_CID, Lab};
use crate::talk::{Direction, Initiator, succeeded};
use crate::wait;

/// How soon the host's end of a connection has to end with its guest.
const END_DEADLINE: Duration = Duration::from_millis(100);
/// How soon after its last connection a daemon has let everything go: a guest's close
/// waits 8 s for an answer.
const IDLE_DEADLINE: Duration = Duration::from_secs(15);
/// How soon the daemon has ended after SIGTERM.
const TERMINATE_DEADLINE: Duration = Duration::from_secs(5);

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("connections survive stop and cont", stop_and_cont),
        Case::new(
            "closed connections leave no descriptor behind",
            no_descriptor_left,
        ),
        Case::new(
            "a guest's reset ends its connections; it works again",
            reset,
        ),
        Case::destructive(
            "a killed guest's connections end; the next one works",
            killed,
        ),
        Case::destructive(
            "a host that redials while the guest boots gets through",
            redial,
        ),
        Case::destructive("SIGTERM ends the daemon in order", terminated),
    ]
}

/// What a stopped machine is sent, it gets when it goes on, over the same connection.
fn stop_and_cont(lab: &mut Lab) -> Result<String> {
    const BYTES: u64 = 100_000;
    let port = lab.port();
    let listener = Listener::bind(lab.uds(), port)?;
    let endpoint = Endpoint::Connect {
        cid: HOST_CID,
        port,
    };
    let guest = lab.guest.converse(endpoint, 1, vec![Step::Echo])?;
    let socket = listener
        .accept()
        .map_err(|failure| anyhow!(failure.why))?
        .socket;

    let turn = |seed| {
        [
            Step::Send(Send::new(BYTES, seed)),
            Step::Receive(Receive::new(BYTES, seed)),
        ]
    };
    host_does(&socket, &turn(1)).context("before the stop")?;
    lab.guest.qemu.execute("stop")?;
    let [send, receive] = turn(2);
    host_does(&socket, &[send]).context("while stopped")?;
    ensure!(
        is_silent(&socket)?,
        "the connection did not just wait while stopped"
    );
    lab.guest.qemu.execute("cont")?;
    host_does(&socket, &[receive]).context("after the stop")?;
    host_does(&socket, &turn(3)).context("after the stop")?;
    drop(socket);
    succeeded(&guest.reports()?[0]).context("guest")?;
    Ok(String::new())
}

/// Carries out a script on a connection that stays open.
fn host_does(socket: &Socket, script: &[Step]) -> Result<()> {
    let socket = socket.try_clone().context("share a socket")?;
    let connected = Connected {
        socket,
        after: Duration::ZERO,
    };
    succeeded(&run_all(vec![Ok(connected)], script).remove(0))
}

/// Whether neither data nor an end comes for some while.
fn is_silent(socket: &Socket) -> Result<bool> {
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    let heard = uninterrupted(|| socket.peek(&mut [MaybeUninit::uninit()]));
    Ok(heard.is_err_and(|error| error.kind() == ErrorKind::WouldBlock))
}

/// When all is quiet, the daemon has as many descriptors as when the guest had booted,
/// whatever went over it since.
fn no_descriptor_left(lab: &mut Lab) -> Result<String> {
    let before = lab.idle_descriptors;
    for initiator in Initiator::BOTH {
        for direction in Direction::BOTH {
            let transfer = Transfer {
                initiator,
                direction,
                bytes: 1 << 20,
                write_size: 4 << 10,
            };
            transfer.transfer(lab)?;
        }
    }
    let what = format!("the daemon to be back at {before} descriptors");
    wait::until(&what, IDLE_DEADLINE, || {
        Ok((lab.descriptors()? <= before).then_some(()))
    })?;
    Ok(String::new())
}

fn reset(lab: &mut Lab) -> Result<String> {
    let held = Held::open(lab)?;
    lab.guest.qemu.execute("system_reset")?;
    lab.guest.await_ready(BOOT_DEADLINE)?;
    // QEMU tells of a reset by starting the rings anew, when the guest's driver does.
    held.end_by(Instant::now() + END_DEADLINE)
        .context("after the guest has booted again")?;
    works_both_ways(lab)?;
    Ok(String::new())
}

fn killed(bench: &mut Bench) -> Result<String> {
    let mut lab = bench.take().context(NO_LAB)?;
    let held = Held::open(&mut lab)?;
    let start = Instant::now();
    let site = lab.kill_guest()?;
    held.end_by(start + END_DEADLINE)
        .context("after QEMU was killed")?;
    let took = milliseconds(start.elapsed());
    let next = site
        .boot()
        .context("boot the next guest on the same socket")?;
    works_both_ways(bench.insert(next))?;
    Ok(format!("{took:.1} ms"))
}

/// From before the guest is there, the host dials in a tight loop: it is refused at once
/// each time, and connected once the guest's program listens.
fn redial(bench: &mut Bench) -> Result<String> {
    const MOST: Duration = Duration::from_secs(3);
    let mut lab = bench.take().context(NO_LAB)?;
    let (port, uds) = (lab.port(), lab.uds().to_owned());
    let site = lab.kill_guest()?;
    let redialling = thread::spawn(move || dial_on_and_on(&uds, port));
    let lab = bench.insert(site.boot()?);
    let guest = lab
        .guest
        .converse(Endpoint::Listen { port }, 1, vec![Step::Echo])?;
    let redialled = redialling
        .join()
        .map_err(|_| anyhow!("the host's end has panicked"))??;
    let Redialled {
        socket,
        refusals,
        late,
        slowest,
    } = redialled;
    // Hundreds of them in the time of a boot: the machine may pause during one.
    ensure!(
        100 * late <= refusals && slowest < MOST,
        "{late} of {refusals} refusals were late, one took {slowest:?}"
    );
    let exchange = Step::Exchange(Send::new(1000, 1), Receive::new(1000, 1));
    host_does(&socket, &[exchange]).context("host")?;
    drop(socket);
    succeeded(&guest.reports()?[0]).context("guest")?;
    Ok(format!("{refusals} refusals"))
}

/// A connection, and what it took to get it.
struct Redialled {
    socket: Socket,
    refusals: usize,
    /// Those of them that took longer than [`END_DEADLINE`].
    late: usize,
    slowest: Duration,
}

fn dial_on_and_on(uds: &Path, port: u32) -> Result<Redialled> {
    let (mut refusals, mut late, mut slowest) = (0, 0, Duration::ZERO);
    let dialled = wait::until("the guest to accept", 2 * BOOT_DEADLINE, || {
        let start = Instant::now();
        let dialled = hybrid::dial(uds, port)?;
        if dialled.is_none() {
            refusals += 1;
            let took = start.elapsed();
            late += usize::from(took > END_DEADLINE);
            slowest = slowest.max(took);
        }
        Ok(dialled)
    })?;
    Ok(Redialled {
        socket: dialled.connection.socket,
        refusals,
        late,
        slowest,
    })
}

/// With a guest connected and connections open, the daemon ends with success and takes
/// its sockets along.
fn terminated(bench: &mut Bench) -> Result<String> {
    let mut lab = bench.take().context(NO_LAB)?;
    let held = Held::open(&mut lab)?;
    let sockets = [lab.vm().socket.clone(), lab.uds().to_owned()];
    let (status, _ruin) = lab.terminate_daemon(TERMINATE_DEADLINE)?;
    ensure!(status.success(), "the daemon ended with {status}");
    let left: Vec<_> = sockets.iter().filter(|socket| socket.exists()).collect();
    ensure!(left.is_empty(), "the daemon has left {left:?}");
    held.end_by(Instant::now() + END_DEADLINE)
        .context("after the daemon's end")?;
    Ok(String::new())
}

/// The host's ends of two idle connections, one of each initiator.
struct Held {
    sockets: Vec<Socket>,
    /// The guest's ends; nobody waits for them.
    _ongoing: Vec<Ongoing>,
}

impl Held {
    fn open(lab: &mut Lab) -> Result<Self> {
        let script = vec![Step::Send(Send::new(1, 5)), Step::ExpectEnd];
        let port = lab.port();
        let listener = Listener::bind(lab.uds(), port)?;
        let endpoint = Endpoint::Connect {
            cid: HOST_CID,
            port,
        };
        let from_guest = lab.guest.converse(endpoint, 1, script.clone())?;
        let accepted = listener.accept().map_err(|failure| anyhow!(failure.why))?;

        let port = lab.port();
        let to_guest = lab.guest.converse(Endpoint::Listen { port }, 1, script)?;
        let dialled = hybrid::dial(lab.uds(), port)?.context("CONNECT was refused")?;

        let mut sockets = Vec::new();
        for Connected { socket, .. } in [accepted, dialled.connection] {
            // The first byte shows that the connection is whole.
            host_does(&socket, &[Step::Receive(Receive::new(1, 5))])?;
            sockets.push(socket);
        }
        Ok(Self {
            sockets,
            _ongoing: vec![from_guest, to_guest],
        })
    }

    /// Waits for the end of both connections.
    fn end_by(&self, deadline: Instant) -> Result<()> {
        for (socket, initiator) in self.sockets.iter().zip(Initiator::BOTH) {
            let whose = initiator.connects();
            let received = uninterrupted(|| {
                let left = deadline.saturating_duration_since(Instant::now());
                socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
                socket.recv(&mut [MaybeUninit::uninit()])
            });
            match received {
                Ok(0) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                Ok(_) => bail!("data came instead of the end ({whose})"),
                Err(_) => bail!("the host's end did not end within {END_DEADLINE:?} ({whose})"),
            }
        }
        Ok(())
    }
}

fn works_both_ways(lab: &mut Lab) -> Result<()> {
    for initiator in Initiator::BOTH {
        for direction in Direction::BOTH {
            let transfer = Transfer {
                initiator,
                direction,
                bytes: 1 << 20,
                write_size: 64 << 10,
            };
            transfer
                .transfer(lab)
                .with_context(|| initiator.connects())?;
        }
    }
    Ok(())
}
