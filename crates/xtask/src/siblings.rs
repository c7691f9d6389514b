//! A daemon with several guests, and conversations between them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow};
use guest_agent::protocol::Endpoint;
use guest_agent::script::{Report, Step};

use crate::ctl::Ctl;
use crate::daemon::{Daemon, Vm};
use crate::equipment::Equipment;
use crate::guest::{BOOT_DEADLINE, Guest, Ongoing};
use crate::process::Scratch;
use crate::qemu::{self, Cable, Machine};
use crate::talk;

/// The VMs of a daemon.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Every VM's CID and groups.
    pub(crate) vms: Vec<(u32, &'static str)>,
    /// Whose guests boot at the start.
    pub(crate) up: Vec<u32>,
    /// Two guests with an Ethernet cable between them.
    pub(crate) cable: Option<(u32, u32)>,
}

/// The first of the ports that conversations take in turn.
const FIRST_PORT: u32 = 6000;
const DAEMON_LOG: &str = "daemon.log";
const CONTROL: &str = "control.sock";

/// A daemon, and the guests that are up.
#[derive(Debug)]
pub(crate) struct Siblings {
    // Guests end before what they stand on, and the daemon before its directory.
    guests: BTreeMap<u32, Guest>,
    daemon: Daemon,
    pub(crate) ctl: Ctl,
    vms: Vec<Vm>,
    cable: Option<(u32, u32)>,
    equipment: Equipment,
    last_port: u32,
    scratch: Scratch,
}

/// What the two ends do on a number of connections.
#[derive(Clone, Debug)]
pub(crate) struct Dialogue {
    /// The guest that connects.
    pub(crate) from: u32,
    /// The guest that listens.
    pub(crate) to: u32,
    /// How many connections there are, all at once.
    pub(crate) connections: usize,
    /// What the guest that connects does on each.
    pub(crate) dialler: Vec<Step>,
    /// What the guest that listens does on each.
    pub(crate) listener: Vec<Step>,
}

/// A dialogue that is going on.
#[derive(Debug)]
pub(crate) struct Begun {
    /// The end of the guest that connects.
    pub(crate) dialler: Ongoing,
    /// The end of the guest that listens.
    pub(crate) listener: Ongoing,
}

/// How a dialogue went at both ends.
#[derive(Debug)]
pub(crate) struct Said {
    /// The reports of the guest that connects.
    pub(crate) dialler: Vec<Report>,
    /// The reports of the guest that listens.
    pub(crate) listener: Vec<Report>,
}

impl Siblings {
    /// Starts the daemon, and boots the guests that are to be up.
    pub(crate) fn start(equipment: &Equipment, plan: Plan) -> Result<Self> {
        let Plan { vms, up, cable } = plan;
        let scratch = Scratch::new()?;
        let vm = |(cid, groups)| Vm::within(scratch.path(), cid).in_groups(groups);
        let vms: Vec<_> = vms.into_iter().map(vm).collect();
        let (control, log) = (scratch.join(CONTROL), scratch.join(DAEMON_LOG));
        let daemon = Daemon::start_managed(&equipment.daemon, &vms, &control, &log)?;
        let mut siblings = Self {
            guests: BTreeMap::new(),
            daemon,
            ctl: Ctl::new(&equipment.daemon, &control),
            vms,
            cable,
            equipment: equipment.clone(),
            last_port: FIRST_PORT,
            scratch,
        };
        siblings.boot(&up)?;
        Ok(siblings)
    }

    /// Boots guests, all at once.
    pub(crate) fn boot(&mut self, cids: &[u32]) -> Result<()> {
        let machines = cids.iter().map(|&cid| self.machine(cid));
        let machines = machines.collect::<Result<Vec<_>>>()?;
        let booted = thread::scope(|scope| {
            let boot = |machine: Machine| scope.spawn(move || Guest::boot(&machine, BOOT_DEADLINE));
            let booting: Vec<_> = machines.into_iter().map(boot).collect();
            let booted = booting.into_iter().map(|guest| {
                let guest = guest.join();
                guest.map_err(|_| anyhow!("the boot of a guest has panicked"))?
            });
            booted.collect::<Vec<_>>()
        });
        for (&cid, guest) in cids.iter().zip(booted) {
            let guest = guest.with_context(|| format!("boot guest {cid}"))?;
            self.guests.insert(cid, guest);
        }
        Ok(())
    }

    /// A VM that the daemon does not know yet.
    pub(crate) fn newcomer(&self, cid: u32, groups: &'static str) -> Vm {
        Vm::within(self.scratch.path(), cid).in_groups(groups)
    }

    /// Has the daemon serve one more VM.
    pub(crate) fn add(&mut self, vm: Vm) -> Result<()> {
        self.ctl.run(&Ctl::adding(&vm))?;
        self.vms.push(vm);
        Ok(())
    }

    /// Has the daemon serve a VM no more.
    pub(crate) fn remove(&mut self, cid: u32) -> Result<()> {
        self.ctl.run(&Ctl::removing(cid))?;
        self.vms.retain(|vm| vm.cid != cid);
        Ok(())
    }

    /// Whether the daemon serves a VM.
    pub(crate) fn has(&self, cid: u32) -> bool {
        self.vms.iter().any(|vm| vm.cid == cid)
    }

    /// Ends a guest's QEMU with SIGKILL.
    pub(crate) fn kill(&mut self, cid: u32) -> Result<()> {
        let guest = self.guests.remove(&cid);
        guest.with_context(|| not_up(cid))?.qemu.kill()
    }

    /// A guest that is up.
    pub(crate) fn guest(&mut self, cid: u32) -> Result<&mut Guest> {
        self.guests.get_mut(&cid).with_context(|| not_up(cid))
    }

    /// Whether a guest is up.
    pub(crate) fn is_up(&self, cid: u32) -> bool {
        self.guests.contains_key(&cid)
    }

    /// Fails if the daemon or a guest that is up has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.daemon.check()?;
        let mut guests = self.guests.iter_mut();
        guests.try_for_each(|(cid, guest)| {
            let check = guest.qemu.check();
            check.with_context(|| format!("guest {cid}"))
        })
    }

    /// A VM as the daemon knows it.
    pub(crate) fn vm(&self, cid: u32) -> Result<&Vm> {
        let mut vms = self.vms.iter();
        vms.find(|vm| vm.cid == cid)
            .with_context(|| format!("the daemon has no guest {cid}"))
    }

    /// A port that no conversation has used yet.
    pub(crate) fn port(&mut self) -> u32 {
        self.last_port += 1;
        self.last_port
    }

    /// Has both ends carry out their scripts; an error if anything fails at either end.
    pub(crate) fn talk(&mut self, dialogue: &Dialogue) -> Result<Said> {
        self.begin(dialogue)?.succeeded()
    }

    /// Has both ends begin: one listens, and the other connects.
    pub(crate) fn begin(&mut self, dialogue: &Dialogue) -> Result<Begun> {
        let Dialogue {
            from,
            to,
            connections,
            ref dialler,
            ref listener,
        } = *dialogue;
        let port = self.port();
        let endpoint = Endpoint::Listen { port };
        let listener = self
            .guest(to)?
            .converse(endpoint, connections, listener.clone())?;
        let endpoint = Endpoint::Connect { cid: to, port };
        let dialler = self
            .guest(from)?
            .converse(endpoint, connections, dialler.clone())?;
        Ok(Begun { dialler, listener })
    }

    fn machine(&self, cid: u32) -> Result<Machine> {
        let directory = self.directory(cid);
        let mut machine = self.equipment.machine(self.vm(cid)?, &directory);
        let end = |cid: u32| self.scratch.join(&format!("cable{cid}"));
        let remote = match self.cable {
            Some((one, other)) if cid == one => Some(other),
            Some((one, other)) if cid == other => Some(one),
            _ => None,
        };
        machine.cable = remote.map(|remote| Cable {
            local: end(cid),
            remote: end(remote),
            number: cid as u8,
        });
        Ok(machine)
    }

    fn directory(&self, cid: u32) -> PathBuf {
        self.scratch.join(&format!("vm{cid}"))
    }

    /// The ends of what the daemon has logged and the guests' kernels have printed.
    pub(crate) fn log_tails(&self) -> String {
        let guests = self.guests.iter();
        let consoles = guests.map(|(cid, guest)| format!("guest {cid}: {}", guest.console_tail()));
        let consoles = consoles.collect::<Vec<_>>().join("\n");
        format!("{}\n{consoles}", self.daemon.log_tail())
    }

    /// Copies the logs to a directory that stays.
    pub(crate) fn keep_logs(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).context("make a directory for logs")?;
        let mut logs = vec![(self.daemon.log().to_owned(), DAEMON_LOG.to_owned())];
        for &cid in self.guests.keys() {
            let guest = self.directory(cid);
            logs.push((qemu::console(&guest), format!("console-{cid}.log")));
            logs.push((qemu::log(&guest), format!("qemu-{cid}.log")));
        }
        for (log, name) in logs {
            fs::copy(&log, directory.join(name))
                .with_context(|| format!("keep {}", log.display()))?;
        }
        Ok(())
    }
}

impl Begun {
    /// Waits for both ends to come to the end of their scripts.
    pub(crate) fn finish(self) -> Result<Said> {
        Ok(Said {
            dialler: self.dialler.reports()?,
            listener: self.listener.reports()?,
        })
    }

    /// The same, an error if anything failed at either end.
    pub(crate) fn succeeded(self) -> Result<Said> {
        let said = self.finish()?;
        talk::all_succeeded(&[("dialler", &said.dialler), ("listener", &said.listener)])?;
        Ok(said)
    }
}

/// A shell's command for a client whose server is about to listen: it is repeated while it
/// fails, but not for ever.
pub(crate) fn once_accepted(command: &str) -> String {
    format!("for try in $(seq 500); do {command} && exit; usleep 20000; done; exit 1")
}

fn not_up(cid: u32) -> String {
    format!("guest {cid} is not up")
}
