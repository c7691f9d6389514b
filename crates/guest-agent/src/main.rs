//! PID 1 of the guests: boots the little there is to boot, then takes orders over the
//! second serial port.

mod boot;
mod orders;

use std::io::{BufRead, BufReader};

use anyhow::{Context, Result};
use guest_agent::protocol::{Event, Order, UNASKED};

use crate::orders::Desk;

fn main() -> Result<()> {
    boot::mount_file_systems()?;
    boot::load_modules()?;
    boot::install_busybox()?;
    let port = boot::open_control_port()?;
    let desk = Desk::new(port.try_clone()?);
    desk.tell(
        UNASKED,
        Event::Ready {
            kernel: boot::kernel_release(),
        },
    );
    for line in BufReader::new(port).lines() {
        let line = line.context("read the control port")?;
        match serde_json::from_str::<Order>(&line) {
            Ok(order) => desk.take(order),
            Err(error) => eprintln!("guest-agent: not an order ({error}): {line}"),
        }
    }
    anyhow::bail!("the control port has closed")
}
