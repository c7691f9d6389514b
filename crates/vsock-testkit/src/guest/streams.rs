//! What an application in the guest does with its sockets.

use vsock_packet::{Cid, Op, RwFlags, ShutdownFlags, SocketType, VsockAddr};

use crate::{Error, Guest, State, Stream, StreamId, Transport, queue};

impl<T: Transport> Guest<T> {
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
            return Err(Error::Refused {
                port: peer.port.value(),
            });
        }
        Ok(id)
    }

    /// Sends a REQUEST to `peer` without waiting for the answer.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] for what the device did meanwhile.
    pub fn start_connect(&mut self, peer: VsockAddr) -> Result<StreamId, Error> {
        self.start_connect_as(SocketType::Stream, peer)
    }

    /// The same for either type of socket.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] for what the device did meanwhile.
    pub fn start_connect_as(
        &mut self,
        socket_type: SocketType,
        peer: VsockAddr,
    ) -> Result<StreamId, Error> {
        let local = self.at(self.next_port);
        self.next_port += 1;
        let buf_alloc = self.behaviour.buf_alloc;
        let id = self.sockets.connect(local, peer, socket_type, buf_alloc);
        self.step()?;
        Ok(id)
    }

    /// Accepts stream connections to `port` from now on.
    pub fn listen(&mut self, port: u32) {
        self.listen_as(SocketType::Stream, port);
    }

    /// Accepts connections of this type to `port`, which nobody listens to, from now on.
    pub fn listen_as(&mut self, socket_type: SocketType, port: u32) {
        self.sockets.listen(port, socket_type);
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
        self.wait_for(&format!("a REQUEST to port {port}"), |guest| {
            guest.sockets.accepted(port)
        })
    }

    /// A connection to `port` that has come already, without waiting.
    pub fn accepted(&mut self, port: u32) -> Option<StreamId> {
        self.sockets.accepted(port)
    }

    /// How many REQUESTs the guest refused, since nobody listened.
    pub fn refused(&self) -> usize {
        self.sockets.refused()
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
            missing => Err(Error::Ended {
                missing,
                action: "written",
            }),
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

    /// Writes all of `bytes` while reading `len`, as two threads of an application would.
    ///
    /// # Errors
    ///
    /// [`Error::Ended`] when the stream ends before.
    pub fn exchange(&mut self, id: StreamId, bytes: &[u8], len: usize) -> Result<Vec<u8>, Error> {
        let (mut written, mut read) = (0, Vec::new());
        self.wait_for("all to be written and read", |guest| {
            written += guest.put_data(id, &bytes[written..]);
            read.extend(guest.sockets.read(id, len - read.len(), &guest.behaviour));
            let stream = guest.stream(id);
            let all_written = written == bytes.len() || stream.is_shut();
            let all_read = read.len() == len || (stream.at_end() && stream.unread() == 0);
            (all_written && all_read).then_some(())
        })?;
        match (bytes.len() - written, len - read.len()) {
            (0, 0) => Ok(read),
            (0, missing) => Err(Error::Ended {
                missing,
                action: "read",
            }),
            (missing, _) => Err(Error::Ended {
                missing,
                action: "written",
            }),
        }
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
            missing => Err(Error::Ended {
                missing,
                action: "read",
            }),
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

    /// Writes a message whole, or not at all while credit or room is missing: without
    /// waiting. `true` when it was written.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] for what the device did meanwhile.
    pub fn write_message(&mut self, id: StreamId, bytes: &[u8]) -> Result<bool, Error> {
        self.take_in()?;
        let written = self.put_message(id, bytes);
        self.give_out().map(|()| written)
    }

    /// Reads the next message that has arrived as a whole, without waiting.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] for what the device did meanwhile.
    pub fn read_message(&mut self, id: StreamId) -> Result<Option<Vec<u8>>, Error> {
        self.take_in()?;
        let message = self.sockets.read_message(id, &self.behaviour);
        self.give_out().map(|()| message)
    }

    /// Drops what a stream received and nobody will read, with the memory for it.
    pub fn drop_unread(&mut self, id: StreamId) {
        self.sockets.stream_mut(id).drop_unread();
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

    /// Sends a packet of `op` with the stream's addresses and credit.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] for what the device did meanwhile.
    pub fn send_op(&mut self, id: StreamId, op: Op) -> Result<(), Error> {
        self.sockets.say(id, Some((op, 0)));
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
        self.wait_until(&format!("an RST for {local}"), |guest| {
            guest.stream(id).was_reset()
        })
    }

    /// Puts packets into the TX ring as long as credit and room allow.
    fn put_data(&mut self, id: StreamId, bytes: &[u8]) -> usize {
        let mut written = 0;
        if !self.has_said_all() {
            return 0;
        }
        while written < bytes.len() && !self.stream(id).is_shut() {
            let credit = self.stream(id).credit() as usize;
            let allowed = if self.behaviour.obeys_credit {
                credit
            } else {
                usize::MAX
            };
            let len = (bytes.len() - written)
                .min(self.behaviour.max_packet)
                .min(allowed);
            let payload = &bytes[written..written + len];
            if len == 0 || !self.send_data(id, payload, RwFlags::empty()) {
                break;
            }
            written += len;
        }
        written
    }

    /// Puts the packets of a message into the TX ring, if there is credit and room for all.
    fn put_message(&mut self, id: StreamId, bytes: &[u8]) -> bool {
        let max = self.behaviour.max_packet;
        let packets = bytes.len().div_ceil(max).max(1);
        let first = bytes.len().min(max);
        let lacks_credit = bytes.len() > self.stream(id).credit() as usize;
        if !self.has_said_all()
            || self.stream(id).is_shut()
            || (lacks_credit && self.behaviour.obeys_credit)
            || self.free_tx_descriptors() < packets * self.descriptors_for(first)
        {
            return false;
        }
        let (most, last) = bytes.split_at((packets - 1) * max);
        let sent = most
            .chunks(max)
            .all(|payload| self.send_data(id, payload, RwFlags::empty()));
        sent && self.send_data(id, last, RwFlags::EOM)
    }

    /// Says what waits to be said: no payload overtakes a RESPONSE. `false` when the TX ring
    /// has no room for it.
    fn has_said_all(&mut self) -> bool {
        let (rings, layout) = (&mut self.rings, &self.behaviour.layout);
        self.sockets.flush(|header| rings.send(header, &[], layout));
        !self.sockets.has_outgoing()
    }

    fn free_tx_descriptors(&self) -> usize {
        self.rings.ring(queue::TX).free_descriptors()
    }

    /// The descriptors that a packet with so much payload takes.
    fn descriptors_for(&self, payload: usize) -> usize {
        let layout = &self.behaviour.layout;
        if layout.is_indirect() {
            1
        } else {
            layout.cut(vsock_packet::HEADER_LEN + payload).len()
        }
    }

    fn send_data(&mut self, id: StreamId, payload: &[u8], flags: RwFlags) -> bool {
        // They must be free before the stream counts the bytes.
        if self.free_tx_descriptors() < self.descriptors_for(payload.len()) {
            return false;
        }
        let stream = self.sockets.stream_mut(id);
        let header = stream.data_header(payload.len() as u32, flags);
        self.rings
            .send(&header.to_raw(), payload, &self.behaviour.layout)
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
}
