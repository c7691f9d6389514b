//! The project's tasks, run as `cargo xtask`.

#![allow(clippy::print_stdout, reason = "a program for the terminal")]

mod accel;
mod apt;
mod cpio;
mod daemon;
mod guest;
mod hybrid;
mod initramfs;
mod kernel;
mod process;
mod progress;
mod project;
mod qemu;
mod qmp;
mod wait;

use anyhow::Result;

fn main() -> Result<()> {
    progress::elapsed();
    process::clean_up_on_signals()?;
    apt::provide(&[apt::Tool { program: "socat", package: "socat" }])?;
    for series in kernel::Series::ALL {
        let kernel = kernel::Kernel::obtain(series)?;
        progress::say(format!("{kernel:?}"));
        let initramfs = initramfs::build(&kernel)?;
        progress::say("initramfs built");
        let accel = accel::choose(&kernel.image, &initramfs)?;
        progress::say(format!("{accel:?}"));
        let scratch = process::Scratch::new()?;
        let machine = qemu::Machine {
            kernel: kernel.image,
            initramfs,
            accel,
            vhost_socket: None,
            directory: scratch.path().to_owned(),
        };
        let mut guest = guest::Guest::boot(machine, guest::BOOT_DEADLINE)?;
        progress::say(format!("booted {}", guest.kernel));
        println!("{}", guest.run(&["sh", "-c", "ls /bin | wc -l; socat -V | head -3; dmesg | tail -3; lsmod; ncat --version"])?.success()?);
        guest.qemu.execute("system_reset")?;
        guest.await_ready(guest::BOOT_DEADLINE)?;
        progress::say("and again");
    }
    Ok(())
}
