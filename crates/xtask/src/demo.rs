//! The main job, shown as it happens: Linux guests under QEMU talk to their host and to
//! each other through the daemon.

use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use guest_agent::script::Passage;

use crate::ctl::Ctl;
use crate::equipment::Equipment;
use crate::hybrid::{self, Listener};
use crate::kernel::Series;
use crate::progress::{detail, elapsed, say};
use crate::siblings::{Plan, Siblings, once_accepted};
use crate::suite::bulk::{self, BULK, speed};
use crate::suite::siblings::bulk::{Transfer, Way};
use crate::talk::{Direction, Initiator};

/// The guest that talks to the host, and to the other one.
const GUEST: u32 = 3;
/// The guest that only talks to the first.
const SIBLING: u32 = 4;
/// The guest that comes while the others run, and goes again.
const NEWCOMER: u32 = 5;
/// The group they share.
const GROUP: &str = "demo";

/// Shows the demo on a kernel; with `keep`, leaves it running until Ctrl-C.
pub(crate) fn run(series: Series, keep: bool) -> Result<()> {
    say("building the daemon, vhost-user-vsock");
    let equipment = Equipment::to_show(series)?;
    say(format!(
        "booting two guests with {}",
        equipment.accel.name()
    ));
    let plan = Plan {
        vms: vec![(GUEST, GROUP), (SIBLING, GROUP)],
        up: vec![GUEST, SIBLING],
        cable: None,
    };
    let mut guests = Siblings::start(&equipment, plan)?;
    say(format!(
        "both are up: Linux {}, CIDs {GUEST} and {SIBLING}",
        guests.guest(GUEST)?.kernel
    ));
    detail("the daemon runs with");
    for cid in [GUEST, SIBLING] {
        detail(format!("  --vm {}", guests.vm(cid)?.option()));
    }
    guest_calls_host(&mut guests)?;
    host_calls_guest(&mut guests)?;
    guest_calls_guest(&mut guests, GUEST, SIBLING)?;
    for direction in Direction::BOTH {
        bulk_with_host(&mut guests, direction)?;
    }
    for way in [Way::Forth, Way::Back] {
        bulk_between_guests(&mut guests, way)?;
    }
    a_guest_comes_and_goes(&mut guests)?;
    say(format!(
        "done in {:.0} s: guests and host talk both ways, and the guests to each other",
        elapsed().as_secs_f64()
    ));
    if keep {
        keep_running(guests)
    } else {
        next_steps();
        Ok(())
    }
}

/// The guest calls: socat sends a line to the host, which sends it back.
fn guest_calls_host(guests: &mut Siblings) -> Result<()> {
    let (port, uds) = (guests.port(), guests.vm(GUEST)?.uds.clone());
    let listener = Listener::bind(&uds, port)?;
    let call = format!("echo Hello from $(uname -sr) | socat -t9 - VSOCK-CONNECT:2:{port}");
    say("guest calls host:");
    detail(format!("guest$ {call}"));
    let calling = guests.guest(GUEST)?.run(&["sh", "-c", &call])?;
    let accepted = listener.accept().map_err(|failure| anyhow!(failure.why))?;
    let mut host = BufReader::new(&accepted.socket);
    let line = read_line(&mut host)?;
    detail(format!(
        "host, on {}: {line}",
        hybrid::port_path(&uds, port).display()
    ));
    host.get_mut()
        .write_all(format!("{line}, and back from the host\n").as_bytes())?;
    drop(accepted);
    detail(format!("guest: {}", calling.success()?.trim_end()));
    Ok(())
}

/// The host calls: it connects to a socat in the guest that sends back what it gets.
fn host_calls_guest(guests: &mut Siblings) -> Result<()> {
    let (port, uds) = (guests.port(), guests.vm(GUEST)?.uds.clone());
    let serve = format!("socat VSOCK-LISTEN:{port} EXEC:cat");
    say("host calls guest:");
    detail(format!("guest$ {serve}"));
    let serving = guests.guest(GUEST)?.run(&["sh", "-c", &serve])?;
    let connected = hybrid::dial_until_accepted(&uds, port)?;
    detail(format!("host$ socat - UNIX-CONNECT:{}", uds.display()));
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

/// One guest calls the other, which answers with a word of its own.
fn guest_calls_guest(guests: &mut Siblings, from: u32, to: u32) -> Result<()> {
    let port = guests.port();
    let answer = format!("read line; echo $line and back from guest {to}");
    let serve = format!("socat VSOCK-LISTEN:{port} SYSTEM:'{answer}'");
    let call = format!("echo Hello from guest {from} | socat -t9 - VSOCK-CONNECT:{to}:{port}");
    say("guest calls guest:");
    detail(format!("guest {to}$ {serve}"));
    detail(format!("guest {from}$ {call}"));
    let serving = guests.guest(to)?.run(&["sh", "-c", &serve])?;
    let call = once_accepted(&call);
    let calling = guests.guest(from)?.run(&["sh", "-c", &call])?;
    let answer = calling.success()?;
    let answer = answer.lines().last().unwrap_or_default();
    detail(format!("guest {from}: {answer}"));
    serving.success()?;
    Ok(())
}

/// An operator adds a VM while the others run; its guest boots and calls one of them; the
/// operator removes it.
fn a_guest_comes_and_goes(guests: &mut Siblings) -> Result<()> {
    let newcomer = guests.newcomer(NEWCOMER, GROUP);
    say(format!(
        "a guest comes while the others run, CID {NEWCOMER}:"
    ));
    detail(format!(
        "host$ {}",
        guests.ctl.line(&Ctl::adding(&newcomer))
    ));
    guests.add(newcomer)?;
    guests.boot(&[NEWCOMER])?;
    let list = vec!["list".into()];
    detail(format!("host$ {}", guests.ctl.line(&list)));
    for line in guests.ctl.run(&list)?.lines() {
        detail(line);
    }
    guest_calls_guest(guests, NEWCOMER, GUEST)?;
    say("and goes:");
    let remove = Ctl::removing(NEWCOMER);
    detail(format!("host$ {}", guests.ctl.line(&remove)));
    guests.remove(NEWCOMER)?;
    guests.kill(NEWCOMER)
}

fn read_line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line).context("await a line")?;
    Ok(line.trim_end().to_owned())
}

fn bulk_with_host(guests: &mut Siblings, direction: Direction) -> Result<()> {
    let transfer = bulk::Transfer {
        initiator: Initiator::Guest,
        direction,
        bytes: BULK,
        write_size: 64 << 10,
    };
    let (port, uds) = (guests.port(), guests.vm(GUEST)?.uds.clone());
    let received = transfer.carry(guests.guest(GUEST)?, &uds, port)?;
    tell_bulk(direction.name(), &received);
    Ok(())
}

fn bulk_between_guests(guests: &mut Siblings, way: Way) -> Result<()> {
    let transfer = Transfer {
        from: GUEST,
        to: SIBLING,
        way,
        bytes: BULK,
        write_size: 64 << 10,
    };
    let received = transfer.transfer(guests)?;
    tell_bulk(&transfer.way(), &received);
    Ok(())
}

fn tell_bulk(way: &str, received: &Passage) {
    let (megabytes, speed) = (received.bytes / 1_000_000, speed(received));
    let checksum = received.checksum;
    say(format!(
        "{megabytes} MB, {way}: {speed}, checksum {checksum:016x} at both ends"
    ));
}

fn next_steps() {
    println!(
        "
What to try next:
  cargo xtask demo --keep    leaves guests and daemon running, to play with
  cargo xtask test           everything, with real guests on two kernels

With a guest of your own:
  target/release/vhost-user-vsock --vm guest-cid=3,socket=/tmp/vm3.sock,uds-path=/tmp/vm3.vsock
  qemu-system-x86_64 ... -m 1G -machine q35,memory-backend=mem0 \\
    -object memory-backend-memfd,id=mem0,size=1G,share=on \\
    -chardev socket,id=vsock,path=/tmp/vm3.sock -device vhost-user-vsock-pci,chardev=vsock"
    );
}

/// Ports of the services in guests that are kept.
const ECHO_PORT: u32 = 7;
const SHELL_PORT: u32 = 1024;

fn keep_running(mut guests: Siblings) -> Result<()> {
    let listen = |port| format!("VSOCK-LISTEN:{port},fork");
    let shell = "EXEC:sh -i,pty,echo=0,setsid,ctty,stderr";
    for cid in [GUEST, SIBLING] {
        let guest = guests.guest(cid)?;
        guest.spawn(&["socat", &listen(ECHO_PORT), "EXEC:cat"])?;
        guest.spawn(&["socat", &listen(SHELL_PORT), shell])?;
    }
    let uds = guests.vm(GUEST)?.uds.display().to_string();
    println!(
        "
Guests and daemon go on running. In another terminal, a shell in guest {GUEST}:
  (echo CONNECT {SHELL_PORT}; cat) | socat - UNIX-CONNECT:{uds}
What you type comes back from the guest:
  (echo CONNECT {ECHO_PORT}; cat) | socat - UNIX-CONNECT:{uds}
Wait on port 5000 of the host,
  socat - UNIX-LISTEN:{uds}_5000
and call it from the guest's shell:
  socat - VSOCK-CONNECT:2:5000
From there, have guest {SIBLING} echo, too:
  echo hello | socat - VSOCK-CONNECT:{SIBLING}:{ECHO_PORT}

Ctrl-C ends all of it."
    );
    loop {
        guests.check()?;
        thread::sleep(Duration::from_millis(200));
    }
}
