//! Packets sent and received by hand: for all that sockets never do.

use std::collections::VecDeque;

use vsock_packet::{Op, RawHeader};

use crate::{Error, Guest, Layout, Packet, Transport, queue};

impl<T: Transport> Guest<T> {
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
        self.wait_until("room in the TX ring", |guest| {
            guest.rings.send(header, payload, layout)
        })
    }

    /// Waits for a packet of `op` in the inbox, and takes it out.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`].
    pub fn expect_packet(&mut self, op: Op) -> Result<Packet, Error> {
        self.wait_for(&format!("a packet of {op}"), |guest| {
            let index = guest
                .inbox
                .iter()
                .position(|packet| packet.op() == Some(op))?;
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
}
