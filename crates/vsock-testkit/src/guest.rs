//! A guest: rings, sockets and a transport, driven by blocking calls with a deadline.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use vsock_packet::{Cid, Op, RawHeader, ShutdownFlags, VsockAddr};

use crate::sockets::Sockets;
use crate::vhost_user::feature;
use crate::{
    Behaviour, Error, Layout, Memory, Packet, PacketRings, RxBuffers, State, Stream, StreamId,
    Transport, VhostUser, queue,
};

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
            rx: RxBuffers::default(),
            behaviour: Behaviour::linux(),
            patience: Duration::from_secs(10),
        }
    }
}

/// A guest with its driver, single-threaded: nothing happens but in its calls.
///
/// Each blocking call handles what the device sends meanwhile, for all streams, and
/// fails with [`Error::Timeout`] when the guest's patience is over.
#[derive(Debug)]
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

impl Guest<VhostUser> {
    /// Connects to the vhost-user back end at `socket` and starts all rings.
    ///
    /// # Errors
    ///
    /// [`Error::VhostUser`], or [`Error::Io`] when the system gives no memory.
    pub fn start(socket: impl AsRef<Path>, setup: Setup) -> Result<Self, Error> {
        let memory = match &setup.memory {
            Some(memory) => memory.clone(),
            None => Memory::one_region()?,
        };
        let transport =
            VhostUser::connect(socket.as_ref(), setup.queues, setup.features, &memory)?;
        let cid = transport.guest_cid();
        let event_idx = transport.negotiated() & feature::EVENT_IDX != 0;
        let mut guest = Self::assemble(transport, cid, &memory, event_idx, setup)?;
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
        self.rings.reset();
        self.sockets.reset();
        self.inbox.clear();
        self.resume_at(None)
    }

    fn resume_at(&mut self, bases: Option<&[u16]>) -> Result<(), Error> {
        self.rings.refill_rx_when_due();
        let zeros = vec![0; self.rings.rings().len()];
        self.transport.start(self.rings.rings(), bases.unwrap_or(&zeros))
    }
}

impl<T: Transport> Guest<T> {
    /// A guest over any transport, with empty rings that are the caller's to show to the
    /// device. `setup.features` are in use as they are.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the system gives no memory.
    pub fn over(transport: T, cid: Cid, setup: Setup) -> Result<Self, Error> {
        let memory = match &setup.memory {
            Some(memory) => memory.clone(),
            None => Memory::one_region()?,
        };
        let event_idx = setup.features & feature::EVENT_IDX != 0;
        let mut guest = Self::assemble(transport, cid.into(), &memory, event_idx, setup)?;
        guest.rings.refill_rx_when_due();
        Ok(guest)
    }

    fn assemble(
        transport: T,
        cid: u64,
        memory: &Memory,
        event_idx: bool,
        setup: Setup,
    ) -> Result<Self, Error> {
        let Some(cid) = Cid::from_wire(cid) else {
            return Err(Error::Device(format!("it gave the guest CID {cid:#x}")));
        };
        let Setup { queues, queue_size, rx, behaviour, patience, .. } = setup;
        Ok(Self {
            behaviour,
            patience,
            cid,
            rings: PacketRings::new(memory, queues, queue_size, event_idx, rx),
            transport,
            sockets: Sockets::default(),
            inbox: VecDeque::new(),
            next_port: 50_000,
        })
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

    // ---- streams ----------------------------------------------------------------

    /// Connects to the host's `port` from a port of the guest's choice.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] for an RST.
    pub fn connect(&mut self, port: u32) -> Result<StreamId, Error> {
        self.connect_to(VsockAddr::new(Cid::HOST, port))
    }

    /// Connects to `peer` from a port of the guest's choice.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] for an RST.
    pub fn connect_to(&mut self, peer: VsockAddr) -> Result<StreamId, Error> {
        let id = self.start_connect(peer)?;
        self.wait_until(&format!("an answer to the REQUEST to {peer}"), |guest| {
            guest.stream(id).state() != State::Connecting
        })?;
        if self.stream(id).was_reset() {
            return Err(Error::Refused { port: peer.port.value() });
        }
        Ok(id)
    }

    /// Sends a REQUEST to `peer` without waiting for the answer.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] for what the device did meanwhile.
    pub fn start_connect(&mut self, peer: VsockAddr) -> Result<StreamId, Error> {
        let local = self.at(self.next_port);
        self.next_port += 1;
        let id = self.sockets.connect(local, peer, self.behaviour.buf_alloc);
        self.step()?;
        Ok(id)
    }

    /// Accepts connections to `port` from now on.
    pub fn listen(&mut self, port: u32) {
        self.sockets.listen(port);
    }

    /// Refuses connections to `port` from now on.
    pub fn stop_listening(&mut self, port: u32) {
        self.sockets.stop_listening(port);
    }

    /// Waits for a connection to `port`, which is listened to.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`].
    pub fn accept(&mut self, port: u32) -> Result<StreamId, Error> {
        self.wait_for(&format!("a REQUEST to port {port}"), |guest| guest.sockets.accepted(port))
    }

    /// A stream, to look at.
    pub fn stream(&self, id: StreamId) -> &Stream {
        self.sockets.stream(id)
    }

    /// Changes the receive buffer of a stream; the device learns it with the next packet.
    pub fn set_buf_alloc(&mut self, id: StreamId, bytes: u32) {
        self.sockets.stream_mut(id).buf_alloc = bytes;
    }

    /// Writes all of `bytes`, in packets as large as credit and rules allow.
    ///
    /// # Errors
    ///
    /// [`Error::Ended`] when the stream can take no more.
    pub fn write_all(&mut self, id: StreamId, bytes: &[u8]) -> Result<(), Error> {
        let mut written = 0;
        self.wait_for("credit, or room in the TX ring, to write", |guest| {
            written += guest.put_data(id, &bytes[written..]);
            (written == bytes.len() || guest.stream(id).is_shut()).then_some(())
        })?;
        match bytes.len() - written {
            0 => Ok(()),
            missing => Err(Error::Ended { missing, action: "written" }),
        }
    }

    /// Writes what can be written without waiting; tells how many bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] for what the device did meanwhile.
    pub fn write_some(&mut self, id: StreamId, bytes: &[u8]) -> Result<usize, Error> {
        self.take_in()?;
        let written = self.put_data(id, bytes);
        self.give_out().map(|()| written)
    }

    /// Reads `len` bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Ended`] when the stream ends before.
    pub fn read_exact(&mut self, id: StreamId, len: usize) -> Result<Vec<u8>, Error> {
        let bytes = self.read_up_to(id, len)?;
        match len - bytes.len() {
            0 => Ok(bytes),
            missing => Err(Error::Ended { missing, action: "read" }),
        }
    }

    /// Reads to the stream's end: the peer's SHUTDOWN or RST.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`].
    pub fn read_to_end(&mut self, id: StreamId) -> Result<Vec<u8>, Error> {
        self.read_up_to(id, usize::MAX)
    }

    /// Reads what has arrived, at most `max` bytes, without waiting.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] for what the device did meanwhile.
    pub fn read_some(&mut self, id: StreamId, max: usize) -> Result<Vec<u8>, Error> {
        self.take_in()?;
        let bytes = self.sockets.read(id, max, &self.behaviour);
        self.give_out().map(|()| bytes)
    }

    /// Says that the guest will send no more, will receive no more, or both.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] for what the device did meanwhile.
    pub fn shutdown(&mut self, id: StreamId, flags: ShutdownFlags) -> Result<(), Error> {
        self.sockets.shutdown(id, flags);
        self.step().map(drop)
    }

    /// Closes a stream and waits for the RST that ends it.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`].
    pub fn close(&mut self, id: StreamId) -> Result<(), Error> {
        self.start_close(id)?;
        let local = self.stream(id).local();
        self.wait_until(&format!("an RST for {local}, which was closed"), |guest| {
            guest.stream(id).state() == State::Closed
        })
    }

    /// Closes a stream without waiting for the RST.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] for what the device did meanwhile.
    pub fn start_close(&mut self, id: StreamId) -> Result<(), Error> {
        self.sockets.close(id);
        self.step().map(drop)
    }

    /// Waits for the stream's RST.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`].
    pub fn expect_reset(&mut self, id: StreamId) -> Result<(), Error> {
        let local = self.stream(id).local();
        self.wait_until(&format!("an RST for {local}"), |guest| guest.stream(id).was_reset())
    }

    // ---- packets by hand --------------------------------------------------------

    /// Sends any packet, in any layout, and waits until the TX ring has room for it.
    ///
    /// Unless a stream is there, its source port is the caller's from now on: packets to
    /// that port go to the inbox, and nothing answers them.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`].
    pub fn send_packet(
        &mut self,
        header: &RawHeader,
        payload: &[u8],
        layout: &Layout,
    ) -> Result<(), Error> {
        self.sockets.leave_to_hand(header.src_port());
        self.wait_until("room in the TX ring", |guest| guest.rings.send(header, payload, layout))
    }

    /// Waits for a packet of `op` in the inbox, and takes it out.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`].
    pub fn expect_packet(&mut self, op: Op) -> Result<Packet, Error> {
        self.wait_for(&format!("a packet of {op}"), |guest| {
            let index = guest.inbox.iter().position(|packet| packet.op() == Some(op))?;
            guest.inbox.remove(index)
        })
    }

    /// Packets that came for no stream, in order.
    pub fn inbox(&mut self) -> &mut VecDeque<Packet> {
        &mut self.inbox
    }

    /// Leaves packets to `port` to the inbox, as [`Self::send_packet`] does.
    pub fn leave_to_hand(&mut self, port: u32) {
        self.sockets.leave_to_hand(port);
    }

    /// Adds up to `count` RX buffers, whatever the rules of refilling say.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the device cannot be told.
    pub fn refill_rx(&mut self, count: usize) -> Result<(), Error> {
        self.rings.refill_rx(count);
        self.kick(queue::RX)
    }

    /// Waits until the device has returned every TX chain.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`].
    pub fn expect_tx_returned(&mut self) -> Result<(), Error> {
        self.wait_until("all TX chains to be returned", |guest| {
            guest.rings.ring(queue::TX).in_flight() == 0
        })
    }

    // ---- time -------------------------------------------------------------------

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

    /// Puts packets into the TX ring as long as credit and room allow.
    fn put_data(&mut self, id: StreamId, bytes: &[u8]) -> usize {
        let mut written = 0;
        while written < bytes.len() && !self.stream(id).is_shut() {
            let credit = self.stream(id).credit() as usize;
            let allowed = if self.behaviour.obeys_credit { credit } else { usize::MAX };
            let len = (bytes.len() - written).min(self.behaviour.max_packet).min(allowed);
            if len == 0 || !self.send_data(id, &bytes[written..written + len]) {
                break;
            }
            written += len;
        }
        written
    }

    fn send_data(&mut self, id: StreamId, payload: &[u8]) -> bool {
        // One descriptor for each piece must be free before the stream counts the bytes.
        let pieces = self.behaviour.layout.cut(vsock_packet::HEADER_LEN + payload.len()).len();
        let needed = if self.behaviour.layout.is_indirect() { 1 } else { pieces };
        if self.rings.ring(queue::TX).free_descriptors() < needed {
            return false;
        }
        let header = self.sockets.stream_mut(id).data_header(payload.len() as u32);
        self.rings.send(&header.to_raw(), payload, &self.behaviour.layout)
    }

    fn read_up_to(&mut self, id: StreamId, max: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        self.wait_until("data, or the stream's end, to read", |guest| {
            bytes.extend(guest.sockets.read(id, max - bytes.len(), &guest.behaviour));
            let stream = guest.stream(id);
            bytes.len() == max || (stream.at_end() && stream.unread() == 0)
        })?;
        Ok(bytes)
    }

    fn timeout(&self, what: &str) -> Error {
        let [rx, tx] = [queue::RX, queue::TX].map(|queue| self.rings.ring(queue).in_flight());
        let inbox: Vec<_> = self.inbox.iter().rev().take(3).map(|packet| packet.op()).collect();
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
