//! A stream socket of the guest: its credit, as Linux counts it.

use vsock_packet::{Header, Op, VsockAddr};

/// The receive buffer of each stream, in bytes.
pub(crate) const BUF_ALLOC: u32 = 256 << 10;
/// The peer is told of free space when it knows of less than this.
const UPDATE_BELOW: u32 = 64 << 10;

/// Where a stream is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Connecting,
    Open,
    /// A SHUTDOWN was sent; the RST has not come.
    Closing,
}

/// A stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) local: VsockAddr,
    pub(crate) peer: VsockAddr,
    pub(crate) state: State,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    tx_cnt: u32,
    fwd_cnt: u32,
    told_fwd_cnt: u32,
}

impl Stream {
    pub(crate) fn new(local: VsockAddr, peer: VsockAddr, state: State) -> Self {
        Self {
            local,
            peer,
            state,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            tx_cnt: 0,
            fwd_cnt: 0,
            told_fwd_cnt: 0,
        }
    }

    /// Takes the credit that any packet brings.
    pub(crate) fn learn(&mut self, header: &Header) {
        (self.peer_buf_alloc, self.peer_fwd_cnt) = (header.buf_alloc, header.fwd_cnt);
    }

    /// How many bytes may be sent.
    pub(crate) fn credit(&self) -> u32 {
        let in_flight = self.tx_cnt.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.min(BUF_ALLOC).saturating_sub(in_flight)
    }

    /// Counts payload that came, which the application reads at once.
    pub(crate) fn read(&mut self, len: u32) {
        self.fwd_cnt = self.fwd_cnt.wrapping_add(len);
    }

    /// Whether the peer is to be told of the space that reading has freed.
    pub(crate) fn update_is_due(&self) -> bool {
        let untold = self.fwd_cnt.wrapping_sub(self.told_fwd_cnt);
        BUF_ALLOC.saturating_sub(untold) < UPDATE_BELOW
    }

    /// The header of a packet of this stream, which is certain to be sent.
    pub(crate) fn packet(&mut self, op: Op, len: u32) -> Header {
        self.tx_cnt = self.tx_cnt.wrapping_add(len);
        self.told_fwd_cnt = self.fwd_cnt;
        Header {
            len,
            buf_alloc: BUF_ALLOC,
            fwd_cnt: self.fwd_cnt,
            ..Header::new(op, self.local, self.peer)
        }
    }
}

#[cfg(test)]
mod tests {
    use vsock_packet::Cid;

    use super::*;

    fn stream(peer_buf_alloc: u32) -> Stream {
        let mut stream = Stream::new(
            VsockAddr::new(Cid::new(3), 1),
            VsockAddr::new(Cid::HOST, 2),
            State::Open,
        );
        stream.peer_buf_alloc = peer_buf_alloc;
        stream
    }

    #[test]
    fn sends_within_the_smaller_window() {
        let mut stream = stream(100);
        assert_eq!(stream.packet(Op::Rw, 60).len, 60);
        assert_eq!(stream.credit(), 40);
        stream.peer_buf_alloc = 1 << 20;
        assert_eq!(stream.credit(), BUF_ALLOC - 60);
        stream.peer_fwd_cnt = 60;
        assert_eq!(stream.credit(), BUF_ALLOC);
    }

    #[test]
    fn tells_of_space_when_three_quarters_of_the_window_are_read() {
        let mut stream = stream(0);
        stream.read(192 << 10);
        assert!(!stream.update_is_due());
        stream.read(1);
        assert!(stream.update_is_due());
        let update = stream.packet(Op::CreditUpdate, 0);
        assert_eq!(update.fwd_cnt, (192 << 10) + 1);
        assert!(!stream.update_is_due());
    }
}
