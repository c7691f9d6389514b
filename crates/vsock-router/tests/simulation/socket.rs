//! One end of a connection, as a guest's driver keeps it.

use std::collections::VecDeque;
use std::time::Instant;

use vsock_packet::{Header, Op, RwFlags, ShutdownFlags, SocketType, VsockAddr};

use crate::character::{Character, Credit};
use crate::ledger::{Sent, Way};

/// Linux tells of its buffer when less than this of the window is unsent, in bytes.
const UPDATE_BELOW: u32 = 64 * 1024;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Connecting,
    Open,
    /// A full SHUTDOWN was sent, then.
    Closing(Instant),
}

pub(crate) struct Socket {
    /// The way of what it sends.
    pub(crate) out: Way,
    pub(crate) socket_type: SocketType,
    pub(crate) state: State,
    /// What it still wants to send, in bytes.
    pub(crate) left: usize,
    /// What of the current message is not sent.
    pub(crate) message_left: usize,
    /// It closes only when the peer has ended.
    pub(crate) patient: bool,
    pub(crate) own_shutdown: ShutdownFlags,
    pub(crate) peer_shutdown: ShutdownFlags,
    pub(crate) sent: u64,
    pub(crate) peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    pub(crate) buf_alloc: u32,
    fwd_cnt: u32,
    told_fwd_cnt: u32,
    /// What may have arrived in all, by what the peer was told.
    promised: u32,
    arrived: u64,
    ends: usize,
    /// Lengths of the packets that were not read, and whether they end a message.
    unread: VecDeque<(usize, bool)>,
}

impl Socket {
    pub(crate) fn new(
        local: VsockAddr,
        peer: VsockAddr,
        socket_type: SocketType,
        buf_alloc: u32,
    ) -> Self {
        Self {
            out: Way {
                from: local,
                to: peer,
            },
            socket_type,
            state: State::Connecting,
            left: 0,
            message_left: 0,
            patient: true,
            own_shutdown: ShutdownFlags::empty(),
            peer_shutdown: ShutdownFlags::empty(),
            sent: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            buf_alloc,
            fwd_cnt: 0,
            told_fwd_cnt: 0,
            promised: 0,
            arrived: 0,
            ends: 0,
            unread: VecDeque::new(),
        }
    }

    /// The way of what it receives.
    pub(crate) fn back(&self) -> Way {
        self.out.back()
    }

    /// A header with what the peer is to know.
    pub(crate) fn header(&mut self, op: Op) -> Header {
        self.told_fwd_cnt = self.fwd_cnt;
        let promise = self.fwd_cnt.wrapping_add(self.buf_alloc);
        if promise.wrapping_sub(self.promised) < 1 << 31 {
            self.promised = promise;
        }
        Header {
            socket_type: self.socket_type,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
            ..Header::new(op, self.out.from, self.out.to)
        }
    }

    pub(crate) fn learn(&mut self, header: &Header) {
        (self.peer_buf_alloc, self.peer_fwd_cnt) = (header.buf_alloc, header.fwd_cnt);
    }

    /// Bytes that it may send.
    pub(crate) fn credit(&self, character: &Character) -> usize {
        let window = match character.credit {
            Credit::Linux => self.peer_buf_alloc.min(self.buf_alloc),
            Credit::WhenAsked | Credit::Eager => self.peer_buf_alloc,
        };
        let in_flight = (self.sent as u32).wrapping_sub(self.peer_fwd_cnt);
        window.saturating_sub(in_flight) as usize
    }

    pub(crate) fn may_send(&self) -> bool {
        self.state == State::Open
            && !self.own_shutdown.contains(ShutdownFlags::SEND)
            && !self.peer_shutdown.contains(ShutdownFlags::RECEIVE)
    }

    /// Payload has arrived.
    pub(crate) fn arrived(&mut self, header: &Header, bytes: &[u8], sent: &Sent, consistent: bool) {
        let (at, len) = (self.arrived, bytes.len());
        self.arrived += len as u64;
        let eom = header.flags & RwFlags::EOM.bits() != 0;
        self.unread.push_back((len, eom));
        if consistent {
            self.check_arrived(header, bytes, at, sent);
        }
    }

    fn check_arrived(&mut self, header: &Header, bytes: &[u8], at: u64, sent: &Sent) {
        let over = (self.arrived as u32).wrapping_sub(self.promised);
        assert!(
            over == 0 || over >= 1 << 31,
            "{header} exceeds the credit by {over}"
        );
        assert!(
            !self.peer_shutdown.contains(ShutdownFlags::SEND),
            "{header} after a SHUTDOWN"
        );
        assert!(
            !bytes.is_empty() || self.socket_type == SocketType::Seqpacket,
            "{header} is void"
        );
        if sent.forged {
            return;
        }
        let right = self.back().bytes(at, bytes.len()) == bytes;
        assert!(right, "{header}: wrong bytes after {at}");
        if self.socket_type == SocketType::Seqpacket && !sent.reused {
            self.check_message(header, sent);
        }
    }

    fn check_message(&mut self, header: &Header, sent: &Sent) {
        let eom = header.flags & RwFlags::EOM.bits() != 0;
        let eor = header.flags & RwFlags::EOR.bits() != 0;
        let expected = sent.ends.get(self.ends).copied();
        if eom {
            assert_eq!(expected, Some((self.arrived, eor)), "{header}: not its end");
            self.ends += 1;
        } else {
            let within = expected.is_none_or(|(end, _)| self.arrived <= end);
            assert!(within && !eor, "{header}: two messages in one");
        }
    }

    /// Whatever the peer sent must be here.
    pub(crate) fn expect_whole(&self, sent: &Sent, why: &str) {
        if !sent.forged && !sent.reused {
            let way = self.back();
            assert_eq!(
                self.arrived, sent.bytes,
                "{way:?} is not whole at its {why}"
            );
            assert_eq!(self.ends, sent.ends.len(), "{way:?} lacks messages");
        }
    }

    /// Packets that were not read.
    pub(crate) fn unread(&self) -> usize {
        self.unread.len()
    }

    /// Those of them that credit tells of: nothing says when an empty message was read.
    pub(crate) fn unread_with_bytes(&self) -> usize {
        self.unread.iter().filter(|(len, _)| *len > 0).count()
    }

    /// Reads up to `max` bytes. `true` when there was something to read.
    pub(crate) fn read(&mut self, max: usize, character: &Character) -> bool {
        if character.credit == Credit::Linux && self.socket_type == SocketType::Seqpacket {
            return self.read_message();
        }
        let mut room = max;
        while let Some((len, _)) = self.unread.front_mut() {
            let count = (*len).min(room);
            (*len, room) = (*len - count, room - count);
            self.fwd_cnt = self.fwd_cnt.wrapping_add(count as u32);
            if *len > 0 {
                break;
            }
            self.unread.pop_front();
        }
        room < max
    }

    /// Linux hands out whole messages only.
    fn read_message(&mut self) -> bool {
        let Some(end) = self.unread.iter().position(|(_, eom)| *eom) else {
            return false;
        };
        for (len, _) in self.unread.drain(..=end) {
            self.fwd_cnt = self.fwd_cnt.wrapping_add(len as u32);
        }
        true
    }

    /// Whether the peer is to be told what was read.
    pub(crate) fn update_is_due(&self, character: &Character) -> bool {
        let untold = self.fwd_cnt.wrapping_sub(self.told_fwd_cnt);
        match character.credit {
            Credit::WhenAsked => false,
            Credit::Eager => untold > 0,
            Credit::Linux if self.socket_type == SocketType::Seqpacket => true,
            Credit::Linux => untold > 0 && self.buf_alloc.saturating_sub(untold) < UPDATE_BELOW,
        }
    }
}
