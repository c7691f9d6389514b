//! Siblings: guests of one server, in groups.

use vsock_packet::VsockAddr;
use vsock_testkit::{Error, Guest, StreamId};

use super::{CID, Device};

/// The port at which siblings listen.
pub const PORT: u32 = 1234;

/// A server whose guests of these CIDs are in these groups.
pub fn house(guests: &[(u64, &[&str])]) -> Device {
    let device = Device::start();
    device.remove(CID);
    for (cid, groups) in guests {
        let mut config = device.config(*cid);
        config.groups = groups.iter().map(ToString::to_string).collect();
        device.server.add(config).unwrap();
    }
    device
}

/// Waits until a guest's device serves its rings: it answers.
pub fn is_up(guest: &mut Guest) {
    assert!(guest.connect(1).is_err(), "nobody is at the host's port 1");
}

/// A connection from the first guest to the second, while both are in this thread.
pub fn connect(one: &mut Guest, other: &mut Guest) -> Result<(StreamId, StreamId), Error> {
    is_up(other);
    other.listen(PORT);
    let theirs: VsockAddr = other.at(PORT);
    let stream = one.start_connect(theirs)?;
    let accepted = other.accept(PORT)?;
    one.wait_until("the RESPONSE", |one| {
        one.stream(stream).peer_buf_alloc() > 0
    })?;
    Ok((stream, accepted))
}
