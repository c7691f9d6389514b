//! One stream of a guest: what Linux's driver keeps of a connected socket.
//!
//! ```text
//!              RESPONSE               close: SHUTDOWN(3) sent
//!  Connecting ──────────▶ Established ───────────────────────▶ Closing
//!      │ RST                   │ RST either way                   │ RST
//!      └──────────────────▶ Closed ◀──────────────────────────────┘
//! ```

use std::collections::VecDeque;

use vsock_packet::{Header, Op, RwFlags, ShutdownFlags, SocketType, VsockAddr};

use crate::{Behaviour, Error};

/// Where a [`Stream`] is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// A REQUEST was sent.
    Connecting,
    /// Data may flow.
    Established,
    /// The guest sent a full SHUTDOWN and waits for the RST.
    Closing,
    /// Gone. Data that arrived before can still be read.
    Closed,
}

/// What a stream sends on its own: an operation and its flags.
pub(crate) type Reply = (Op, u32);

/// A stream between a port of the guest and one elsewhere.
#[derive(Debug)]
pub struct Stream {
    local: VsockAddr,
    peer: VsockAddr,
    socket_type: SocketType,
    state: State,
    was_reset: bool,
    peer_shutdown: ShutdownFlags,
    own_shutdown: ShutdownFlags,
    unread: VecDeque<u8>,
    /// Lengths of the packets that are not read to their end.
    unread_packets: VecDeque<usize>,
    /// Lengths of the messages that are there as a whole; of a stream, none.
    messages: VecDeque<usize>,
    /// Bytes of a message whose end is still to come.
    of_next_message: usize,
    pub(crate) buf_alloc: u32,
    rx_cnt: u32,
    fwd_cnt: u32,
    /// `fwd_cnt` as the device knows it.
    told_fwd_cnt: u32,
    /// What `rx_cnt` may grow to, by all the device was told.
    promised: u32,
    tx_cnt: u32,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    /// Packets that came, by the number of their operation.
    came: [u32; 8],
}

impl Stream {
    pub(crate) fn new(
        local: VsockAddr,
        peer: VsockAddr,
        socket_type: SocketType,
        state: State,
        buf_alloc: u32,
    ) -> Self {
        Self {
            local,
            peer,
            socket_type,
            state,
            was_reset: false,
            peer_shutdown: ShutdownFlags::empty(),
            own_shutdown: ShutdownFlags::empty(),
            unread: VecDeque::new(),
            unread_packets: VecDeque::new(),
            messages: VecDeque::new(),
            of_next_message: 0,
            buf_alloc,
            rx_cnt: 0,
            fwd_cnt: 0,
            told_fwd_cnt: 0,
            promised: 0,
            tx_cnt: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            came: [0; 8],
        }
    }

    /// The guest's end.
    pub fn local(&self) -> VsockAddr {
        self.local
    }

    /// The other end.
    pub fn peer(&self) -> VsockAddr {
        self.peer
    }

    /// Where the stream is in its life.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether an RST came before the guest closed.
    pub fn was_reset(&self) -> bool {
        self.was_reset
    }

    /// What the peer will do no more.
    pub fn peer_shutdown(&self) -> ShutdownFlags {
        self.peer_shutdown
    }

    /// Bytes that arrived and were not read.
    pub fn unread(&self) -> usize {
        self.unread.len()
    }

    /// Packets that arrived and were not read to their end.
    pub fn unread_packets(&self) -> usize {
        self.unread_packets.len()
    }

    /// Payload bytes that arrived in all.
    pub fn rx_cnt(&self) -> u32 {
        self.rx_cnt
    }

    /// Payload bytes sent in all.
    pub fn tx_cnt(&self) -> u32 {
        self.tx_cnt
    }

    /// The receive buffer the peer told of last, in bytes.
    pub fn peer_buf_alloc(&self) -> u32 {
        self.peer_buf_alloc
    }

    /// How many packets of `op` came.
    pub fn came(&self, op: Op) -> u32 {
        self.came[op as usize]
    }

    /// Bytes the guest sent and the peer did not tell to have forwarded.
    pub fn in_flight(&self) -> u32 {
        self.tx_cnt.wrapping_sub(self.peer_fwd_cnt)
    }

    /// Bytes that may be sent, as Linux reckons: of the smaller of both receive buffers.
    pub fn credit(&self) -> u32 {
        self.peer_buf_alloc
            .min(self.buf_alloc)
            .saturating_sub(self.in_flight())
    }

    /// Whether nothing more will arrive.
    pub fn at_end(&self) -> bool {
        self.state == State::Closed || self.peer_shutdown.contains(ShutdownFlags::SEND)
    }

    /// Whether nothing more can be sent.
    pub fn is_shut(&self) -> bool {
        self.state != State::Established
            || self.own_shutdown.contains(ShutdownFlags::SEND)
            || self.peer_shutdown.contains(ShutdownFlags::RECEIVE)
    }

    /// A header with the stream's addresses and credit: the next packet of `op`.
    pub fn header(&mut self, op: Op) -> Header {
        self.told_fwd_cnt = self.fwd_cnt;
        let promise = self.fwd_cnt.wrapping_add(self.buf_alloc);
        if (promise.wrapping_sub(self.promised) as i32) > 0 {
            self.promised = promise;
        }
        let mut header = Header::new(op, self.local, self.peer);
        header.socket_type = self.socket_type;
        header.buf_alloc = self.buf_alloc;
        header.fwd_cnt = self.fwd_cnt;
        header
    }

    pub(crate) fn data_header(&mut self, len: u32, flags: RwFlags) -> Header {
        self.tx_cnt = self.tx_cnt.wrapping_add(len);
        Header {
            len,
            flags: flags.bits(),
            ..self.header(Op::Rw)
        }
    }

    /// Takes a message that arrived; it counts as forwarded.
    pub(crate) fn read_message(&mut self) -> Option<Vec<u8>> {
        let len = self.messages.pop_front()?;
        Some(self.read(len))
    }

    /// Drops what arrived and was not read, with the memory for it.
    pub(crate) fn drop_unread(&mut self) {
        self.unread = VecDeque::new();
        self.unread_packets = VecDeque::new();
        self.messages = VecDeque::new();
    }

    /// Takes up to `max` bytes that arrived; they count as forwarded.
    pub(crate) fn read(&mut self, max: usize) -> Vec<u8> {
        let bytes: Vec<u8> = self.unread.drain(..max.min(self.unread.len())).collect();
        self.fwd_cnt = self.fwd_cnt.wrapping_add(bytes.len() as u32);
        let mut left = bytes.len();
        while let Some(packet) = self.unread_packets.front_mut() {
            if *packet > left {
                *packet -= left;
                break;
            }
            left -= *packet;
            self.unread_packets.pop_front();
        }
        bytes
    }

    /// What is to be sent after data was read.
    pub(crate) fn after_read(&mut self, rules: &Behaviour) -> Option<Reply> {
        if self.state != State::Established {
            return None;
        }
        let untold = self.fwd_cnt.wrapping_sub(self.told_fwd_cnt);
        if rules.answers_shutdown && self.peer_shutdown.is_all() && self.unread.is_empty() {
            self.state = State::Closed;
            return Some((Op::Rst, 0));
        }
        let due = untold > 0
            && (self.socket_type == SocketType::Seqpacket
                || self.buf_alloc.saturating_sub(untold) < rules.update_below);
        (rules.updates_unasked && due).then_some((Op::CreditUpdate, 0))
    }

    /// Sends a SHUTDOWN with these flags; a full one when the stream closes.
    pub(crate) fn shut(&mut self, flags: ShutdownFlags) -> Option<Reply> {
        let open = self.state == State::Established;
        self.own_shutdown |= flags;
        open.then_some((Op::Shutdown, flags.bits()))
    }

    /// Closes the stream as `close(2)` does on Linux.
    pub(crate) fn close(&mut self) -> Option<Reply> {
        match self.state {
            State::Established if self.peer_shutdown.is_all() => {
                self.state = State::Closed;
                Some((Op::Rst, 0))
            }
            State::Established => {
                let shutdown = self.shut(ShutdownFlags::all());
                self.state = State::Closing;
                shutdown
            }
            State::Connecting => {
                self.state = State::Closed;
                None
            }
            State::Closing | State::Closed => None,
        }
    }

    /// Drops the stream without a word.
    pub(crate) fn forget(&mut self) {
        (self.state, self.was_reset) = (State::Closed, true);
    }

    /// Takes a packet from the peer; returns what answers it.
    pub(crate) fn handle(
        &mut self,
        header: &Header,
        payload: &[u8],
        rules: &Behaviour,
    ) -> Result<Option<Reply>, Error> {
        self.came[header.op as usize] += 1;
        // A refusal carries no credit.
        if header.op != Op::Rst {
            self.learn_credit(header);
        }
        match (self.state, header.op) {
            (_, Op::Rst) => {
                self.was_reset = self.state != State::Closing;
                self.state = State::Closed;
            }
            (State::Connecting, Op::Response) => self.state = State::Established,
            (State::Connecting, _) => return Err(broken("answers a REQUEST", header)),
            (State::Established, Op::Rw) => return self.arrived(header, payload, rules),
            (State::Established, Op::CreditRequest) => {
                return Ok(rules
                    .answers_credit_requests
                    .then_some((Op::CreditUpdate, 0)));
            }
            (State::Established, Op::Shutdown) => {
                self.peer_shutdown |= header.shutdown_flags();
                return Ok(self.after_read(rules));
            }
            (State::Established, Op::Request | Op::Response) => {
                return Err(broken("comes on an established stream", header));
            }
            (State::Established | State::Closing | State::Closed, _) => (),
        }
        Ok(None)
    }

    /// Notes the peer's credit.
    pub(crate) fn learn_credit(&mut self, header: &Header) {
        (self.peer_buf_alloc, self.peer_fwd_cnt) = (header.buf_alloc, header.fwd_cnt);
    }

    fn arrived(
        &mut self,
        header: &Header,
        payload: &[u8],
        rules: &Behaviour,
    ) -> Result<Option<Reply>, Error> {
        self.rx_cnt = self.rx_cnt.wrapping_add(header.len);
        if (self.rx_cnt.wrapping_sub(self.promised) as i32) > 0 {
            let by = self.rx_cnt.wrapping_sub(self.promised);
            let how = format!("exceeds the guest's credit by {by} bytes");
            return Err(broken(&how, header));
        }
        if self.peer_shutdown.contains(ShutdownFlags::SEND) {
            return Err(broken("comes after the peer's SHUTDOWN", header));
        }
        self.unread.extend(payload);
        self.unread_packets.push_back(payload.len());
        if self.socket_type == SocketType::Seqpacket {
            self.of_next_message += payload.len();
            if RwFlags::from_bits_truncate(header.flags).contains(RwFlags::EOM) {
                let len = std::mem::take(&mut self.of_next_message);
                self.messages.push_back(len);
            }
        }
        let cost = (self.unread_packets.len() + 1) as u64 * u64::from(rules.cost_of_a_packet);
        if cost > u64::from(self.buf_alloc) && self.unread_packets.len() > 1 {
            self.forget();
            return Ok(Some((Op::Rst, 0)));
        }
        Ok(None)
    }
}

fn broken(how: &str, header: &Header) -> Error {
    Error::Device(format!("a packet that {how}: {header}"))
}
