//! The main job, shown as it happens: a Linux guest under QEMU and its host talk to each
//! other through the daemon.

use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::equipment::Equipment;
use crate::hybrid::{self, Listener};
use crate::kernel::Series;
use crate::lab::Lab;
use crate::progress::{detail, elapsed, say};
use crate::suite::bulk::{BULK, Transfer, speed};
use crate::talk::{Direction, Initiator};

/// Shows the demo on a kernel; with `keep`, leaves it running until Ctrl-C.
pub(crate) fn run(series: Series, keep: bool) -> Result<()> {
    say("building the daemon, vhost-user-vsock");
    let equipment = Equipment::to_show(series)?;
    say(format!("booting a guest with {}", equipment.accel.name()));
    let mut lab = Lab::start(&equipment)?;
    say(format!(
        "the guest is up: Linux {}, CID {}",
        lab.guest.kernel,
        lab.vm().cid
    ));
    detail(format!("the daemon runs with --vm {}", lab.vm().option()));
    guest_calls(&mut lab)?;
    host_calls(&mut lab)?;
    for direction in Direction::BOTH {
        bulk(&mut lab, direction)?;
    }
    say(format!(
        "done in {:.0} s: guest and host talk both ways",
        elapsed().as_secs_f64()
    ));
    if keep {
        keep_running(lab)
    } else {
        next_steps();
        Ok(())
    }
}

/// The guest calls: socat sends a line to the host, which sends it back.
fn guest_calls(lab: &mut Lab) -> Result<()> {
    let port = lab.port();
    let listener = Listener::bind(lab.uds(), port)?;
    let call = format!("echo Hello from $(uname -sr) | socat -t9 - VSOCK-CONNECT:2:{port}");
    say("guest calls host:");
    detail(format!("guest$ {call}"));
    let calling = lab.guest.run(&["sh", "-c", &call])?;
    let accepted = listener.accept().map_err(|failure| anyhow!(failure.why))?;
    let mut host = BufReader::new(&accepted.socket);
    let line = read_line(&mut host)?;
    detail(format!(
        "host, on {}: {line}",
        hybrid::port_path(lab.uds(), port).display()
    ));
    host.get_mut()
        .write_all(format!("{line}, and back from the host\n").as_bytes())?;
    drop(accepted);
    detail(format!("guest: {}", calling.success()?.trim_end()));
    Ok(())
}

/// The host calls: it connects to a socat in the guest that sends back what it gets.
fn host_calls(lab: &mut Lab) -> Result<()> {
    let port = lab.port();
    let serve = format!("socat VSOCK-LISTEN:{port} EXEC:cat");
    say("host calls guest:");
    detail(format!("guest$ {serve}"));
    let serving = lab.guest.run(&["sh", "-c", &serve])?;
    let connected = hybrid::dial_until_accepted(lab.uds(), port)?;
    detail(format!(
        "host$ socat - UNIX-CONNECT:{}",
        lab.uds().display()
    ));
    detail(format!("host:  CONNECT {port}"));
    detail(format!("guest: OK {}", connected.host_port));
    let mut host = BufReader::new(&connected.connection.socket);
    let hello = "Hello from the host";
    detail(format!("host:  {hello}"));
    host.get_mut().write_all(format!("{hello}\n").as_bytes())?;
    detail(format!("guest: {}", read_line(&mut host)?));
    connected.connection.socket.shutdown(Shutdown::Write)?;
    serving.success()?;
    Ok(())
}

fn read_line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line).context("await a line")?;
    Ok(line.trim_end().to_owned())
}

fn bulk(lab: &mut Lab, direction: Direction) -> Result<()> {
    let (initiator, bytes, write_size) = (Initiator::Guest, BULK, 64 << 10);
    let received = Transfer {
        initiator,
        direction,
        bytes,
        write_size,
    }
    .transfer(lab)?;
    let (megabytes, speed) = (bytes / 1_000_000, speed(&received));
    let (way, checksum) = (direction.name(), received.checksum);
    say(format!(
        "{megabytes} MB, {way}: {speed}, checksum {checksum:016x} at both ends"
    ));
    Ok(())
}

fn next_steps() {
    println!(
        "
What to try next:
  cargo xtask demo --keep    leaves guest and daemon running, to play with
  cargo xtask test           everything, with real guests on two kernels

With a guest of your own:
  target/release/vhost-user-vsock --vm guest-cid=3,socket=/tmp/vm3.sock,uds-path=/tmp/vm3.vsock
  qemu-system-x86_64 ... -m 1G -machine q35,memory-backend=mem0 \\
    -object memory-backend-memfd,id=mem0,size=1G,share=on \\
    -chardev socket,id=vsock,path=/tmp/vm3.sock -device vhost-user-vsock-pci,chardev=vsock"
    );
}

/// Ports of the services in a guest that is kept.
const ECHO_PORT: u32 = 7;
const SHELL_PORT: u32 = 1024;

fn keep_running(mut lab: Lab) -> Result<()> {
    let listen = |port| format!("VSOCK-LISTEN:{port},fork");
    lab.guest
        .spawn(&["socat", &listen(ECHO_PORT), "EXEC:cat"])?;
    let shell = "EXEC:sh -i,pty,echo=0,setsid,ctty,stderr";
    lab.guest.spawn(&["socat", &listen(SHELL_PORT), shell])?;
    let uds = lab.uds().display();
    println!(
        "
Guest and daemon go on running. In another terminal, a shell in the guest:
  (echo CONNECT {SHELL_PORT}; cat) | socat - UNIX-CONNECT:{uds}
What you type comes back from the guest:
  (echo CONNECT {ECHO_PORT}; cat) | socat - UNIX-CONNECT:{uds}
Wait on port 5000 of the host,
  socat - UNIX-LISTEN:{uds}_5000
and call it from the guest's shell:
  socat - VSOCK-CONNECT:2:5000

Ctrl-C ends all of it."
    );
    loop {
        lab.check()?;
        thread::sleep(Duration::from_millis(200));
    }
}
