//! A guest's life on a vhost-user connection: start, stop, reset.

use std::path::Path;

use vsock_packet::Cid;

use crate::{Error, Guest, Setup, VhostUser};

impl Guest<VhostUser> {
    /// Connects to the vhost-user back end at `socket` and starts all rings.
    ///
    /// # Errors
    ///
    /// [`Error::VhostUser`], or [`Error::Io`] when the system gives no memory.
    pub fn start(socket: impl AsRef<Path>, setup: Setup) -> Result<Self, Error> {
        let memory = setup.memory()?;
        let Setup {
            queues,
            features,
            protocol,
            ..
        } = setup;
        let transport = VhostUser::connect(socket.as_ref(), queues, features, protocol, &memory)?;
        let cid = transport.guest_cid();
        let cid = Cid::from_wire(cid)
            .ok_or_else(|| Error::Device(format!("it gave the guest CID {cid:#x}")))?;
        let rings = setup.rings(&memory, transport.negotiated());
        let mut guest = Self::assemble(transport, cid, rings, setup);
        guest.resume_at(None)?;
        Ok(guest)
    }

    /// Stops all rings, as QEMU does for `stop`; tells their bases.
    ///
    /// # Errors
    ///
    /// [`Error::VhostUser`].
    pub fn stop(&mut self) -> Result<Vec<u16>, Error> {
        self.transport.stop()
    }

    /// Starts all rings where they stopped, as QEMU does for `cont`.
    ///
    /// # Errors
    ///
    /// [`Error::VhostUser`].
    pub fn resume(&mut self, bases: &[u16]) -> Result<(), Error> {
        self.resume_at(Some(bases))
    }

    /// Resets the device as QEMU 7.2 does: stops all rings, and starts them from zero.
    /// Streams are gone; listeners stay.
    ///
    /// # Errors
    ///
    /// [`Error::VhostUser`].
    pub fn reset(&mut self) -> Result<(), Error> {
        self.stop()?;
        self.start_afresh()
    }

    /// Resets the device as QEMU 10.0 does: the same, with RESET_DEVICE in between.
    ///
    /// # Errors
    ///
    /// [`Error::VhostUser`].
    pub fn reset_device(&mut self) -> Result<(), Error> {
        self.stop()?;
        self.transport.reset_device()?;
        self.start_afresh()
    }

    /// Starts all rings, which are stopped, from zero. Streams are gone; listeners stay.
    ///
    /// # Errors
    ///
    /// [`Error::VhostUser`].
    pub fn start_afresh(&mut self) -> Result<(), Error> {
        self.forget_all();
        self.resume_at(None)
    }

    fn resume_at(&mut self, bases: Option<&[u16]>) -> Result<(), Error> {
        self.rings.refill_rx_when_due();
        let zeros = vec![0; self.rings.rings().len()];
        self.transport
            .start(self.rings.rings(), bases.unwrap_or(&zeros))
    }
}
