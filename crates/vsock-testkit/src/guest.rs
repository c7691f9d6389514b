//! A guest: rings, sockets and a transport, driven by blocking calls with a deadline.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use vsock_packet::{Cid, VsockAddr};

use crate::sockets::Sockets;
use crate::vhost_user::feature;
use crate::{
    Behaviour, Error, Memory, Packet, PacketRings, ProtocolFeatures, RxBuffers, Transport,
    VhostUser, queue,
};

mod by_hand;
mod life;
mod streams;

/// What a guest is made of. The default is a Linux guest under QEMU.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Its memory; by default [`Memory::one_region`].
    pub memory: Option<Memory>,
    /// Two queues, or three with the event queue.
    pub queues: usize,
    /// Descriptors in each ring: a power of two.
    pub queue_size: u16,
    /// The virtio features it asks for, of [`feature`].
    pub features: u64,
    /// The protocol features its frontend asks for.
    pub protocol: ProtocolFeatures,
    /// What it receives into.
    pub rx: RxBuffers,
    /// How its sockets behave.
    pub behaviour: Behaviour,
    /// How long each blocking call waits before it fails.
    pub patience: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            memory: None,
            queues: 2,
            queue_size: 128,
            features: feature::LINUX,
            protocol: VhostUser::QEMU,
            rx: RxBuffers::default(),
            behaviour: Behaviour::linux(),
            patience: Duration::from_secs(10),
        }
    }
}

impl Setup {
    /// The guest's memory, made if none was given.
    fn memory(&self) -> Result<Memory, Error> {
        self.memory.clone().map_or_else(Memory::one_region, Ok)
    }

    /// Empty rings, with these features negotiated.
    fn rings(&self, memory: &Memory, features: u64) -> PacketRings {
        let event_idx = features & feature::EVENT_IDX != 0;
        PacketRings::new(
            memory,
            self.queues,
            self.queue_size,
            event_idx,
            self.rx.clone(),
        )
    }
}

/// A guest with its driver, single-threaded: nothing happens but in its calls.
///
/// Each blocking call handles what the device sends meanwhile, for all streams, and
/// fails with [`Error::Timeout`] when the guest's patience is over.
pub struct Guest<T = VhostUser> {
    /// The rules its sockets keep; may be changed at any time.
    pub behaviour: Behaviour,
    /// How long each blocking call waits before it fails.
    pub patience: Duration,
    cid: Cid,
    rings: PacketRings,
    transport: T,
    sockets: Sockets,
    inbox: VecDeque<Packet>,
    next_port: u32,
}

impl<T: Transport> Guest<T> {
    /// A guest over any transport: `connect` shows its rings to the device.
    /// `setup.features` are in use as they are.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the system gives no memory.
    pub fn over(
        cid: Cid,
        setup: Setup,
        connect: impl FnOnce(&PacketRings) -> T,
    ) -> Result<Self, Error> {
        let rings = setup.rings(&setup.memory()?, setup.features);
        let mut guest = Self::assemble(connect(&rings), cid, rings, setup);
        guest.rings.refill_rx_when_due();
        Ok(guest)
    }

    fn assemble(transport: T, cid: Cid, rings: PacketRings, setup: Setup) -> Self {
        Self {
            behaviour: setup.behaviour,
            patience: setup.patience,
            cid,
            rings,
            transport,
            sockets: Sockets::default(),
            inbox: VecDeque::new(),
            next_port: 50_000,
        }
    }

    /// The guest's CID.
    pub fn cid(&self) -> Cid {
        self.cid
    }

    /// The guest's end at one of its ports.
    pub fn at(&self, port: u32) -> VsockAddr {
        VsockAddr::new(self.cid, port)
    }

    /// The transport to the device.
    pub fn transport(&mut self) -> &mut T {
        &mut self.transport
    }

    /// The rings.
    pub fn rings(&self) -> &PacketRings {
        &self.rings
    }

    /// The rings, to break rules with.
    pub fn rings_mut(&mut self) -> &mut PacketRings {
        &mut self.rings
    }

    /// Handles what the device sends for as long as this.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] for what the device did.
    pub fn pump(&mut self, time: Duration) -> Result<(), Error> {
        let end = Instant::now() + time;
        loop {
            self.step()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.transport.wait(left)?;
        }
    }

    /// Handles what the device sends until `done` holds.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`], which says that `what` was waited for.
    pub fn wait_until(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> Result<(), Error> {
        self.wait_for(what, |guest| done(guest).then_some(()))
    }

    /// Handles what the device sends until `found` finds something.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`], which says that `what` was waited for.
    pub fn wait_for<R>(
        &mut self,
        what: &str,
        mut found: impl FnMut(&mut Self) -> Option<R>,
    ) -> Result<R, Error> {
        let start = Instant::now();
        loop {
            self.take_in()?;
            let result = found(self);
            // Nothing is taken in between here and the wait, or it might wait for what
            // has come.
            self.give_out()?;
            if let Some(result) = result {
                return Ok(result);
            }
            let left = self.patience.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(self.timeout(what));
            }
            self.transport.wait(left)?;
        }
    }

    /// Handles, without waiting, what the device did up to now; tells how many packets
    /// came.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] for what the device did.
    pub fn step(&mut self) -> Result<usize, Error> {
        let count = self.take_in()?;
        self.give_out().map(|()| count)
    }

    /// Empties the rings, as a driver does that starts afresh, and ends all streams without a
    /// word; listeners stay.
    pub fn forget_all(&mut self) {
        self.rings.reset();
        self.sockets.reset();
        self.inbox.clear();
    }

    fn take_in(&mut self) -> Result<usize, Error> {
        let mut count = 0;
        self.rings.reclaim_tx()?;
        while let Some(packet) = self.rings.receive()? {
            count += 1;
            let left_over = self.sockets.handle(packet, &self.behaviour)?;
            self.inbox.extend(left_over);
        }
        Ok(count)
    }

    fn give_out(&mut self) -> Result<(), Error> {
        self.rings.refill_rx_when_due();
        let (rings, layout) = (&mut self.rings, &self.behaviour.layout);
        self.sockets.flush(|header| rings.send(header, &[], layout));
        self.kick(queue::RX)?;
        self.kick(queue::TX)
    }

    /// Notifies the device of a queue, if it wants to be.
    fn kick(&mut self, queue: usize) -> Result<(), Error> {
        if self.rings.ring_mut(queue).needs_kick() {
            self.transport.kick(queue)?;
        }
        Ok(())
    }

    fn timeout(&self, what: &str) -> Error {
        let [rx, tx] = [queue::RX, queue::TX].map(|queue| self.rings.ring(queue).in_flight());
        let inbox: Vec<_> = self.inbox.iter().rev().take(3).map(Packet::op).collect();
        Error::Timeout {
            waited_for: what.to_owned(),
            after: self.patience,
            state: format!(
                "the device holds {rx} RX and {tx} TX chains, the inbox {} packets, the last: {inbox:?}",
                self.inbox.len()
            ),
        }
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for Guest<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest")
            .field("cid", &self.cid)
            .field("rings", &self.rings)
            .field("transport", &self.transport)
            .finish_non_exhaustive()
    }
}
