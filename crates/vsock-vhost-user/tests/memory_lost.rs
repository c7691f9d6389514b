//! A VMM that takes its guest's memory back and leaves.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use common::Device;
use vsock_testkit::host::Client;
use vsock_testkit::{Error, Memory, Setup};
use vsock_vhost_user::catch_memory_faults;

#[test]
fn its_fault_is_not_the_next_frontends() -> Result<(), Error> {
    catch_memory_faults().unwrap();
    let device = Device::start();
    for _ in 0..200 {
        let memory = Memory::unsealed(&[(0, 1 << 20)])?;
        let mut guest = device.guest_with(Setup {
            memory: Some(memory.clone()),
            ..Setup::default()
        })?;
        guest.listen(80);
        let client = Client::dial(&device.uds(), 80)?;
        guest.accept(80)?;
        let (mut host, _) = client.accepted()?;
        memory.take_back()?;
        drop(guest);
        // What it says goes to a ring in memory that is gone, while the session ends.
        let _ = host.write_all(b"hello");
        device.guest().map(drop)?;
    }
    Ok(())
}
