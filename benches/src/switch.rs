//! Two guests of a switch and the connections between them.

use std::fmt;
use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use vsock_packet::{GuestCid, Header, Op, Payload, RawHeader, VsockAddr};
use vsock_router::{Groups, Limits, Member, Packet, Port, Receiver, Switch};

/// Room for payload in an RX buffer of Linux's, in bytes.
const ROOM: usize = 3732;
/// A window that no connection fills.
const BUF_ALLOC: u32 = 4 << 20;

/// An RX queue of so many buffers, all in the same place.
struct Rx(Mutex<Buffers>);

struct Buffers {
    left: usize,
    place: [u8; ROOM],
}

impl Port for Rx {
    fn is_up(&self) -> bool {
        true
    }

    fn pass(&self, fill: &mut dyn FnMut(&mut dyn Receiver)) {
        fill(&mut *self.0.lock().unwrap());
    }

    fn wake(&self) {}
}

impl Buffers {
    fn take(&mut self) -> bool {
        let taken = self.left > 0;
        self.left -= usize::from(taken);
        taken
    }
}

impl Receiver for Buffers {
    fn put(&mut self, packet: &mut Packet<'_>) -> bool {
        let taken = self.take();
        if taken {
            black_box(packet.header_for(ROOM));
            packet.payload.copy_to_bytes(&mut self.place);
        }
        taken
    }

    fn put_control(&mut self, header: &RawHeader) -> bool {
        black_box(header);
        self.take()
    }
}

/// Two guests, and connections from the first to the second: the first's port tells them
/// apart.
pub struct House {
    /// Dropped, it would take the connections along.
    _switch: Switch,
    sender: Arc<Member>,
    receiver: Arc<Member>,
    rx: Arc<Rx>,
    request: Header,
    /// Bytes sent on connection 0.
    sent: u32,
    now: Instant,
}

impl House {
    /// So many connections.
    pub fn with(connections: u32, now: Instant) -> Self {
        let limits = Limits {
            connections: connections as usize,
            ..Limits::default()
        };
        let switch = Switch::new(limits);
        let [one, other] = [3, 4].map(|cid| GuestCid::new(cid).unwrap());
        let join = |cid| {
            let rx = Arc::new(Rx(Mutex::new(Buffers {
                left: usize::MAX,
                place: [0; ROOM],
            })));
            let groups = Groups::from(["a".to_owned()]);
            let member = switch.join(cid, groups, Arc::<Rx>::clone(&rx)).unwrap();
            (member, rx)
        };
        let ((sender, _), (receiver, rx)) = (join(one), join(other));
        let [src, dst] = [VsockAddr::new(one, 0), VsockAddr::new(other, 80)];
        let house = Self {
            _switch: switch,
            sender,
            receiver,
            rx,
            request: Header {
                buf_alloc: BUF_ALLOC,
                ..Header::new(Op::Request, src, dst)
            },
            sent: 0,
            now,
        };
        for connection in 0..connections {
            let request = house.header(connection, Op::Request);
            house.sender.open(&request, &house.receiver, now).unwrap();
            house.answer(connection, Op::Response);
        }
        house
    }

    /// From now on the receiver has so many RX buffers.
    pub fn set_buffers(&self, count: usize) {
        self.rx.0.lock().unwrap().left = count;
    }

    /// Sends payload on connection 0.
    pub fn send(&mut self, bytes: &[u8]) {
        let header = Header {
            len: bytes.len() as u32,
            ..self.header(0, Op::Rw)
        };
        let packet = Packet::new(header, Payload::from_bytes(bytes));
        self.sender.send(&[packet], self.now);
        self.sent = self.sent.wrapping_add(header.len);
    }

    /// The receiver tells that it has read everything on connection 0.
    pub fn read(&self) {
        self.answer(0, Op::CreditUpdate);
    }

    /// The receiver takes what waits for it.
    pub fn flush(&self) -> bool {
        self.receiver.flush(self.now)
    }

    /// The sender tells of its credit on a connection.
    pub fn update(&self, connection: u32) {
        self.sender
            .send(&[self.credit_update(connection)], self.now);
    }

    /// The sender tells of its credit on some connections, at once.
    pub fn update_all(&self, connections: impl Iterator<Item = u32>) {
        let packets: Vec<_> = connections.map(|it| self.credit_update(it)).collect();
        self.sender.send(&packets, self.now);
    }

    fn credit_update(&self, connection: u32) -> Packet<'static> {
        Packet::new(self.header(connection, Op::CreditUpdate), Payload::EMPTY)
    }

    fn answer(&self, connection: u32, op: Op) {
        let request = self.header(connection, op);
        let header = Header {
            src: request.dst,
            dst: request.src,
            fwd_cnt: self.sent,
            ..request
        };
        let packet = Packet::new(header, Payload::EMPTY);
        self.receiver.send(&[packet], self.now);
    }

    fn header(&self, connection: u32, op: Op) -> Header {
        let src = VsockAddr::new(self.request.src.cid, connection);
        Header {
            src,
            op,
            ..self.request
        }
    }
}

impl Drop for House {
    /// What strangers' packets cost is something else.
    fn drop(&mut self) {
        for member in [&self.sender, &self.receiver] {
            assert_eq!(member.counters().strangers, 0, "a connection was gone");
        }
    }
}

impl fmt::Debug for House {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("House").finish_non_exhaustive()
    }
}
