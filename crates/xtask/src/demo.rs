//! The main job, shown as it happens: a Linux guest under QEMU and its host talk to each
//! other through the daemon.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use guest_agent::script::{Receive, Send, Step};

use crate::kernel::Series;
use crate::lab::{self, Equipment, Initiator, Lab, Talk};
use crate::progress::{detail, elapsed, say};
use crate::suite::bulk::{BULK, Direction, Transfer, speed};

/// Shows the demo on a kernel; with `keep`, leaves it running until Ctrl-C.
pub(crate) fn run(series: Series, keep: bool) -> Result<()> {
    say("building the daemon, vhost-user-vsock");
    let daemon = lab::build_daemon()?;
    let equipment = Equipment::get(series, &daemon)?;
    say(format!("booting a guest with {}", equipment.accel.name()));
    let mut lab = Lab::start(&equipment)?;
    say(format!(
        "the guest is up: Linux {}, CID {}",
        lab.guest.kernel, lab.vm.cid
    ));
    detail(format!("the daemon runs with --vm {}", lab.vm.option()));
    echo(&mut lab, Initiator::Guest)?;
    echo(&mut lab, Initiator::Host)?;
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
        next_steps(&lab)
    }
}

/// One end connects and sends; the other sends it back.
fn echo(lab: &mut Lab, initiator: Initiator) -> Result<()> {
    const BYTES: u64 = 64;
    let asks = vec![Step::Exchange(Send::new(BYTES, 1), Receive::new(BYTES, 1))];
    let (guest, host, way) = match initiator {
        Initiator::Guest => (asks, vec![Step::Echo], "guest to host and back"),
        Initiator::Host => (vec![Step::Echo], asks, "host to guest and back (CONNECT)"),
    };
    let ends = lab.talk(&Talk {
        initiator,
        connections: 1,
        guest,
        host,
    })?;
    let asker = match initiator {
        Initiator::Guest => &ends.guest[0],
        Initiator::Host => &ends.host[0],
    };
    let (connected, echoed) = (asker.connected_ms, asker.done[0].elapsed_ms);
    say(format!(
        "echo, {way}: connected in {connected:.1} ms, echoed in {echoed:.1} ms"
    ));
    Ok(())
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

fn next_steps(lab: &Lab) -> Result<()> {
    detail("");
    detail("What to try next:");
    detail("  cargo xtask demo --keep    the same, and leaves guest and daemon to play with");
    detail("  cargo xtask test           everything, with real guests on two kernels");
    detail("Your own guest: start QEMU with memory shared through a memfd, and");
    detail("  -chardev socket,id=vsock,path=SOCKET -device vhost-user-vsock-pci,chardev=vsock");
    detail(format!(
        "where SOCKET is the daemon's, here {}.",
        lab.vm.socket.display()
    ));
    Ok(())
}

/// Ports of the services in a guest that is kept.
const ECHO_PORT: u32 = 7;
const SHELL_PORT: u32 = 1024;

fn keep_running(mut lab: Lab) -> Result<()> {
    let echo = format!("socat VSOCK-LISTEN:{ECHO_PORT},fork EXEC:cat");
    let shell = "'/bin/sh -i',pty,echo=0,setsid,ctty,stderr";
    let shell = format!("socat VSOCK-LISTEN:{SHELL_PORT},fork EXEC:{shell}");
    let _services = [&echo, &shell].map(|command| lab.guest.spawn(&["sh", "-c", command]));
    let uds = lab.vm.uds.display();
    detail("");
    detail("Guest and daemon go on running. In another terminal, a shell in the guest:");
    detail(format!(
        "  (echo CONNECT {SHELL_PORT}; cat) | socat - UNIX-CONNECT:{uds}"
    ));
    detail("What you type comes back from the guest:");
    detail(format!(
        "  (echo CONNECT {ECHO_PORT}; cat) | socat - UNIX-CONNECT:{uds}"
    ));
    detail("Wait for the guest on port 5000 of the host:");
    detail(format!("  socat - UNIX-LISTEN:{uds}_5000"));
    detail("and call from the guest's shell:");
    detail("  socat - VSOCK-CONNECT:2:5000");
    detail("");
    detail("Ctrl-C ends all of it.");
    loop {
        lab.daemon.check()?;
        lab.guest.qemu.check()?;
        thread::sleep(Duration::from_millis(200));
    }
}
