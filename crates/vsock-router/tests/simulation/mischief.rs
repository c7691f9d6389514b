//! What misbehaving guests put into their TX rings.

use vsock_packet::{Header, Op, SocketType, VsockAddr};
use vsock_testkit::Random;

use crate::character::Misbehaviour;
use crate::guest::{Guest, Outgoing};
use crate::ledger::{Ledger, Way};
use crate::socket::State;

impl Guest {
    /// Does something that it should not, if it is of that kind.
    pub(crate) fn misbehave(&mut self, to: VsockAddr, ledger: &mut Ledger, random: &mut Random) {
        let ways: Vec<Way> = self.sockets.keys().copied().collect();
        for _ in 0..random.below(30) {
            let way = match ways.is_empty() || random.chance(10) {
                true => Way {
                    from: VsockAddr::new(self.cid, 1 + random.below(9) as u32),
                    to,
                },
                false => random.pick(&ways),
            };
            match self.character.misbehaves {
                Some(Misbehaviour::Floods) => self.flood(way, ledger, random),
                Some(Misbehaviour::WrongOps) => self.blunder(way, ledger, random),
                _ => return,
            }
        }
    }

    fn flood(&mut self, way: Way, ledger: &mut Ledger, random: &mut Random) {
        let open = |guest: &Self| {
            let socket = guest.sockets.get(&way)?;
            let may = socket.may_send() && socket.socket_type == SocketType::Stream;
            (may && socket.credit(&guest.character) > 0).then_some(())
        };
        let op = random.pick(&[Op::Rw, Op::CreditUpdate, Op::CreditRequest, Op::Request]);
        match (op, open(self)) {
            (Op::Request, _) => self.connect(way.to, ledger, random),
            (Op::Rw, Some(())) => {
                let at = ledger.of(way).bytes;
                if let Some(socket) = self.sockets.get_mut(&way) {
                    let header = Header {
                        len: 1,
                        ..socket.header(Op::Rw)
                    };
                    socket.sent += 1;
                    ledger.of(way).bytes = socket.sent;
                    self.tx.push_back(Outgoing { header, at });
                }
            }
            (Op::CreditUpdate | Op::CreditRequest, Some(())) => {
                if let Some(socket) = self.sockets.get_mut(&way) {
                    let header = socket.header(op);
                    self.tx.push_back(Outgoing { header, at: 0 });
                }
            }
            // Of no connection, most likely.
            _ => self.blunder(way, ledger, random),
        }
    }

    fn blunder(&mut self, way: Way, ledger: &mut Ledger, random: &mut Random) {
        let op = random.pick(&Op::ALL);
        let mut header = match self.sockets.get_mut(&way) {
            Some(socket) if socket.state != State::Connecting => socket.header(op),
            _ => Header::new(op, way.from, way.to),
        };
        if op == Op::Rw {
            header.len = random.size(65_536) as u32;
        }
        header.flags = random.below(4) as u32;
        if random.chance(20) {
            header.socket_type = random.pick(&[SocketType::Stream, SocketType::Seqpacket]);
        }
        if random.chance(20) {
            header.buf_alloc = random.pick(&[0, 1, u32::MAX]);
            header.fwd_cnt = random.size(u32::MAX as usize) as u32;
        }
        let sent = ledger.of(way);
        sent.forged = true;
        sent.rst |= op == Op::Rst;
        self.tx.push_back(Outgoing { header, at: 0 });
    }
}
