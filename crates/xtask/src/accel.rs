//! Whether KVM really boots a guest here.
//!
//! A machine may have a `/dev/kvm` that opens while its guests hang, so the only proof
//! is a guest. The verdict is kept until the host reboots.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::guest::Guest;
use crate::process::Scratch;
use crate::progress::say;
use crate::project;
use crate::qemu::{Accel, Machine};

/// Under KVM a guest boots in a second or two.
const DEADLINE: Duration = Duration::from_secs(8);

/// Chooses how to execute guests, by booting one if nobody has yet.
pub(crate) fn choose(kernel: &Path, initramfs: &Path) -> Result<Accel> {
    if File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err()
    {
        return Ok(Accel::Tcg);
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let verdicts = project::cache().join("kvm-verdict");
    let known = fs::read_to_string(&verdicts).unwrap_or_default();
    let accel = match known.strip_prefix(&boot) {
        Some("boots\n") => Accel::Kvm,
        Some("hangs\n") => Accel::Tcg,
        _ => {
            let accel = probe(kernel, initramfs)?;
            let verdict = if accel == Accel::Kvm {
                "boots"
            } else {
                "hangs"
            };
            fs::write(verdicts, format!("{boot}{verdict}\n")).context("keep KVM's verdict")?;
            accel
        }
    };
    Ok(accel)
}

fn probe(kernel: &Path, initramfs: &Path) -> Result<Accel> {
    say(format!(
        "trying whether KVM boots a guest here (at most {} s)",
        DEADLINE.as_secs()
    ));
    let scratch = Scratch::new()?;
    let machine = Machine {
        kernel: kernel.to_owned(),
        initramfs: initramfs.to_owned(),
        accel: Accel::Kvm,
        vhost_socket: None,
        cable: None,
        directory: scratch.path().to_owned(),
    };
    let booted = Guest::boot(&machine, DEADLINE).is_ok();
    Ok(if booted { Accel::Kvm } else { Accel::Tcg })
}
