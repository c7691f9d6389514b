//! Many connections, one of which a packet belongs to.

use std::hint::black_box;
use std::time::Instant;

use vsock_connection::{Connection, Table, Timeouts};
use vsock_packet::{Cid, Header, Op, VsockAddr};

use crate::switch::House;

/// From one connection to the next: from one end of a table to the other, not along it.
const STRIDE: u32 = 61_803;

/// The table of a guest's connections with the host.
#[derive(Debug)]
pub struct Connections {
    table: Table<()>,
    count: u32,
    next: u32,
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
            count,
            next: 0,
        }
    }

    /// Finds the connection of a packet, each time of another.
    pub fn find_next(&mut self) {
        self.next = (self.next + STRIDE) % self.count;
        black_box(self.table.find(&request(self.next)).unwrap());
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
    count: u32,
    next: u32,
}

impl Flows {
    /// So many connections.
    pub fn new(count: u32) -> Self {
        let house = House::with(count, Instant::now());
        Self {
            house,
            count,
            next: 0,
        }
    }

    /// Sends a packet without payload, each time of another connection.
    pub fn send_next(&mut self) {
        self.next = (self.next + STRIDE) % self.count;
        self.house.update(self.next);
    }
}
