//! A stream between a guest and a host, on a device of their own.

use vsock_testkit::host::{HostListener, HostStream};
use vsock_testkit::{Behaviour, Error, Guest, Setup, StreamId};

use super::Device;

/// What a pair needs to live.
pub struct Alive {
    pub host: HostListener,
    _device: Device,
}

/// A guest as Linux is, and a stream from its end to the host's.
pub fn pair() -> Result<(Alive, Guest, StreamId, HostStream), Error> {
    pair_of(Setup::default())
}

/// The same, with a guest that behaves like this.
pub fn pair_with(behaviour: Behaviour) -> Result<(Alive, Guest, StreamId, HostStream), Error> {
    pair_of(Setup {
        behaviour,
        ..Setup::default()
    })
}

/// The same, with a guest that is made of this.
pub fn pair_of(setup: Setup) -> Result<(Alive, Guest, StreamId, HostStream), Error> {
    let device = Device::start();
    let host = HostListener::bind(&device.uds(), 700)?;
    let mut guest = device.guest_with(setup)?;
    let stream = guest.connect(700)?;
    let end = host.accept()?;
    Ok((
        Alive {
            host,
            _device: device,
        },
        guest,
        stream,
        end,
    ))
}
