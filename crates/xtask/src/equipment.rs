//! All that a lab needs: tools installed, the daemon and the guest's agent built, kernels
//! downloaded.

use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow};

use crate::accel;
use crate::apt::{self, Tool};
use crate::daemon::{self, Vm};
use crate::initramfs;
use crate::kernel::{Kernel, Series};
use crate::kernel_tests;
use crate::progress::say;
use crate::qemu::{Accel, Machine};

/// What guests need that cargo doesn't bring.
const TOOLS: [Tool; 8] = [
    Tool {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
    },
    Tool {
        program: "busybox",
        package: "busybox-static",
    },
    Tool {
        program: "socat",
        package: "socat",
    },
    Tool {
        program: "ncat",
        package: "ncat",
    },
    Tool {
        program: "zstd",
        package: "zstd",
    },
    Tool {
        program: "lz4",
        package: "lz4",
    },
    Tool {
        program: "make",
        package: "make",
    },
    Tool {
        program: "xz",
        package: "xz-utils",
    },
];

/// A daemon's program and a kernel for its guests, with all that belongs to them.
#[derive(Clone, Debug)]
pub(crate) struct Equipment {
    /// What guests boot.
    pub(crate) kernel: Kernel,
    /// How they are executed.
    pub(crate) accel: Accel,
    /// The daemon's program.
    pub(crate) daemon: PathBuf,
    initramfs: PathBuf,
}

/// What guests are for.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    /// To be shown.
    Demo,
    /// To be tested, with the kernel's own tests too.
    Tests,
}

impl Equipment {
    /// All that tests need, downloaded and built if it isn't there yet; one set for each
    /// kernel.
    pub(crate) fn get(kernels: &[Series]) -> Result<Vec<Self>> {
        Self::for_purpose(kernels, Purpose::Tests)
    }

    /// The same, without what only tests need.
    pub(crate) fn to_show(kernel: Series) -> Result<Self> {
        let mut equipment = Self::for_purpose(&[kernel], Purpose::Demo)?;
        equipment.pop().context("one kernel, one set")
    }

    fn for_purpose(kernels: &[Series], purpose: Purpose) -> Result<Vec<Self>> {
        let missing = apt::missing(&TOOLS)?;
        // The compiler is busy while the network is.
        let (daemon, guests) = thread::scope(|scope| {
            let daemon = scope.spawn(daemon::build);
            let guests = apt::install(&missing).and_then(|()| guests(kernels, purpose));
            (daemon.join(), guests)
        });
        let daemon = daemon.map_err(|_| anyhow!("the build of the daemon has panicked"))??;
        let equip = |(kernel, initramfs): (Kernel, PathBuf)| {
            let accel = accel::choose(&kernel.image, &initramfs)?;
            Ok(Self {
                kernel,
                accel,
                daemon: daemon.clone(),
                initramfs,
            })
        };
        guests?.into_iter().map(equip).collect()
    }

    /// A machine for a VM of the daemon, its sockets and logs in `directory`.
    pub(crate) fn machine(&self, vm: &Vm, directory: &Path) -> Machine {
        Machine {
            kernel: self.kernel.image.clone(),
            initramfs: self.initramfs.clone(),
            accel: self.accel,
            vhost_socket: Some(vm.socket.clone()),
            cable: None,
            directory: directory.to_owned(),
        }
    }
}

/// Fails if a tool is missing and can't be installed.
pub(crate) fn check_tools() -> Result<()> {
    apt::missing(&TOOLS).map(|_| ())
}

/// Each kernel with its first file system.
fn guests(kernels: &[Series], purpose: Purpose) -> Result<Vec<(Kernel, PathBuf)>> {
    let kernels = kernels.iter().map(|&series| Kernel::obtain(series));
    let kernels = kernels.collect::<Result<Vec<_>>>()?;
    say("building the guest's file system");
    let agent = initramfs::build_agent()?;
    let with_initramfs = |kernel: Kernel| {
        let programs = match purpose {
            Purpose::Demo => Vec::new(),
            Purpose::Tests => kernel_tests::obtain(kernel.series)?,
        };
        let initramfs = initramfs::build(&kernel, &agent, &programs)?;
        Ok((kernel, initramfs))
    };
    kernels.into_iter().map(with_initramfs).collect()
}
