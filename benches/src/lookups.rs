//! Many connections, one of which a packet belongs to.

use std::hint::black_box;
use std::time::Instant;

use vsock_connection::{Connection, Found, Table, Timeouts};
use vsock_packet::{Cid, Header, Op, VsockAddr};

use crate::switch::House;

/// Packets that a worker takes from a busy TX ring at once.
pub const PASS: usize = Found::AT_MOST;

/// Connections in turn: from one end of a table to the other, not along it.
#[derive(Debug)]
struct Turns {
    count: u32,
    next: u32,
}

impl Turns {
    const STRIDE: u32 = 61_803;

    fn new(count: u32) -> Self {
        Self { count, next: 0 }
    }

    fn next(&mut self) -> u32 {
        self.next = (self.next + Self::STRIDE) % self.count;
        self.next
    }

    fn pass(&mut self) -> [u32; PASS] {
        std::array::from_fn(|_| self.next())
    }
}

/// The table of a guest's connections with the host.
#[derive(Debug)]
pub struct Connections {
    table: Table<()>,
    turns: Turns,
}

impl Connections {
    /// So many connections.
    pub fn new(count: u32) -> Self {
        let mut table = Table::new(count as usize);
        for port in 0..count {
            let connection = Connection::accepted(&request(port), 65_536, Timeouts::default());
            table.insert(connection, ()).unwrap();
        }
        Self {
            table,
            turns: Turns::new(count),
        }
    }

    /// Finds the connection of a packet, each time of another.
    pub fn find_next(&mut self) {
        let port = self.turns.next();
        black_box(self.table.find(&request(port)).unwrap());
    }

    /// Finds the connections of the packets of a [`PASS`], each of another.
    pub fn find_pass(&mut self) {
        let ports = self.turns.pass();
        let packets = ports.map(request);
        let ends = packets.iter().map(|packet| Some((packet.src, packet.dst)));
        let found = self.table.find_all(ends);
        for (index, packet) in packets.iter().enumerate() {
            black_box(self.table.find_again(&found, index, packet).unwrap());
        }
    }
}

fn request(port: u32) -> Header {
    let guest = VsockAddr::new(Cid::new(3), port);
    Header::new(Op::Request, guest, VsockAddr::new(Cid::HOST, 80))
}

/// The connections between two guests of a switch.
#[derive(Debug)]
pub struct Flows {
    house: House,
    turns: Turns,
}

impl Flows {
    /// So many connections.
    pub fn new(count: u32) -> Self {
        Self {
            house: House::with(count, Instant::now()),
            turns: Turns::new(count),
        }
    }

    /// Sends a packet without payload, each time of another connection.
    pub fn send_next(&mut self) {
        self.house.update(self.turns.next());
    }

    /// Sends the packets of a [`PASS`], without payload and each of another connection.
    pub fn send_pass(&mut self) {
        self.house.update_all(self.turns.pass().into_iter());
    }
}
