//! QEMU: its command line, its process, and its sockets.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::Running;
use crate::qmp::Qmp;
use crate::wait;

/// How a guest's instructions are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accel {
    /// By the processor.
    Kvm,
    /// By translation.
    Tcg,
}

impl Accel {
    fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "qemu64"],
        }
    }

    /// As people write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG, without KVM",
        }
    }
}

/// What a guest is made of.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// Its kernel's image.
    pub(crate) kernel: PathBuf,
    /// Its first and only file system.
    pub(crate) initramfs: PathBuf,
    /// How it is executed.
    pub(crate) accel: Accel,
    /// The daemon's vhost-user socket, if it has a vsock device.
    pub(crate) vhost_socket: Option<PathBuf>,
    /// Its end of an Ethernet cable, if it has one.
    pub(crate) cable: Option<Cable>,
    /// Where its sockets and logs go.
    pub(crate) directory: PathBuf,
}

/// One end of a cable between two guests: what the kernel's tests agree over while they
/// test the vsock device. It consists of two datagram sockets; a guest may come and go.
#[derive(Clone, Debug)]
pub(crate) struct Cable {
    /// The socket of this end.
    pub(crate) local: PathBuf,
    /// The socket of the other end.
    pub(crate) remote: PathBuf,
    /// The last byte of this end's Ethernet address.
    pub(crate) number: u8,
}

impl Cable {
    fn arguments(&self) -> [String; 4] {
        let (local, remote) = (self.local.display(), self.remote.display());
        let sockets =
            format!("local.type=unix,local.path={local},remote.type=unix,remote.path={remote}");
        [
            "-netdev".to_owned(),
            format!("dgram,id=cable,{sockets}"),
            "-device".to_owned(),
            // Nobody boots from it.
            format!(
                "virtio-net-pci,netdev=cable,romfile=,mac=52:54:00:00:00:{:02x}",
                self.number
            ),
        ]
    }
}

/// Guest memory; one size for `-m` and for the shared memory behind it.
const MEMORY: &str = "512M";
/// How long QEMU may take to open its sockets.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// A running QEMU.
#[derive(Debug)]
pub(crate) struct Qemu {
    process: Running,
    qmp: Qmp,
}

impl Qemu {
    /// Starts a machine; returns it with the host's end of the guest's control port.
    pub(crate) fn start(machine: &Machine) -> Result<(Self, UnixStream)> {
        let directory = &machine.directory;
        fs::create_dir_all(directory).context("make a directory for the guest")?;
        let control = listen(&directory.join("control.sock"))?;
        let monitor = listen(&directory.join("qmp.sock"))?;
        let mut process = Running::start("QEMU", &mut command(machine), &log(directory))?;
        let monitor = accept(&monitor, "QEMU's monitor", &mut process)?;
        let control = accept(&control, "the guest's control port", &mut process)?;
        Ok((
            Self {
                process,
                qmp: Qmp::new(monitor)?,
            },
            control,
        ))
    }

    /// Has QEMU carry out a QMP command, such as `system_reset`.
    pub(crate) fn execute(&mut self, command: &str) -> Result<()> {
        self.qmp.execute(command).map(|_| ())
    }

    /// Whether the vhost-user socket is connected, as QEMU sees it.
    pub(crate) fn has_device(&mut self) -> Result<bool> {
        let answer = self.qmp.execute("query-chardev")?;
        let mut devices = answer.as_array().into_iter().flatten();
        let vsock = devices
            .find(|device| device["label"] == "vsock")
            .context("QEMU has no character device 'vsock'")?;
        let name = vsock["filename"].as_str().unwrap_or_default();
        Ok(!name.starts_with("disconnected:"))
    }

    /// Fails if QEMU has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.process.check()
    }

    /// Ends QEMU with SIGKILL.
    pub(crate) fn kill(self) -> Result<()> {
        self.process.kill()
    }
}

/// In a guest's directory, what its kernel prints.
pub(crate) fn console(directory: &Path) -> PathBuf {
    directory.join("console.log")
}

/// In a guest's directory, what QEMU prints.
pub(crate) fn log(directory: &Path) -> PathBuf {
    directory.join("qemu.log")
}

fn command(machine: &Machine) -> Command {
    let Machine {
        kernel,
        initramfs,
        accel,
        vhost_socket,
        cable,
        directory,
    } = machine;
    let path = |name: &str| directory.join(name).display().to_string();
    let mut command = Command::new("qemu-system-x86_64");
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-smp",
        "2",
    ]);
    command.args(accel.arguments());
    command.args(["-m", MEMORY, "-machine", "q35,memory-backend=mem0"]);
    command.arg("-object").arg(format!(
        "memory-backend-memfd,id=mem0,size={MEMORY},share=on"
    ));
    command
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs);
    command.args([
        "-append",
        "console=ttyS0 panic=0 mitigations=off random.trust_cpu=on",
    ]);
    command
        .arg("-serial")
        .arg(format!("file:{}", console(directory).display()));
    command
        .arg("-chardev")
        .arg(format!("socket,id=control,path={}", path("control.sock")));
    command.args(["-serial", "chardev:control"]);
    command
        .arg("-chardev")
        .arg(format!("socket,id=qmp,path={}", path("qmp.sock")));
    command.args(["-mon", "chardev=qmp,mode=control"]);
    if let Some(socket) = vhost_socket {
        command
            .arg("-chardev")
            .arg(format!("socket,id=vsock,path={}", socket.display()));
        command.args(["-device", "vhost-user-vsock-pci,chardev=vsock"]);
    }
    command.args(cable.iter().flat_map(Cable::arguments));
    command
}

fn listen(path: &Path) -> Result<UnixListener> {
    // A guest that was here before has left its socket.
    let _ = fs::remove_file(path);
    let listener =
        UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn accept(listener: &UnixListener, what: &str, qemu: &mut Running) -> Result<UnixStream> {
    wait::until(what, START_DEADLINE, || {
        qemu.check()?;
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                Ok(Some(stream))
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    })
}
