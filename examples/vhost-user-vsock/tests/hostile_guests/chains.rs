//! Descriptor chains of every shape but the right one, in both rings: each comes back.

use std::time::{Duration, Instant};

use vm_memory::GuestAddress;
use vsock_packet::Op;
use vsock_testkit::{
    Guest, Layout, Memory, RawDescriptor, Refill, Ring, RxBuffers, Setup, Transport, queue,
};

use crate::hostile::{Dice, ECHO, House, done, header, host};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Addresses worth trying in a guest of 256 MiB.
const END: u64 = 256 << 20;
/// Where nothing else lies.
const SCRATCH: u64 = 128 << 20;
const PLACES: [u64; 9] = [
    0,
    1,
    SCRATCH,
    END - 44,
    END - 1,
    END,
    1 << 40,
    u64::MAX - 43,
    u64::MAX,
];
/// Lengths worth trying.
const LENGTHS: [u32; 11] = [0, 1, 15, 16, 43, 44, 45, 3776, 65536, 1 << 31, u32::MAX];

fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> RawDescriptor {
    RawDescriptor {
        address,
        len,
        flags,
        next,
    }
}

/// A guest whose RX ring is filled by hand.
fn by_hand(house: &House) -> Guest {
    house.guest_with(Setup {
        rx: RxBuffers {
            refill: Refill::ByHand,
            ..RxBuffers::default()
        },
        ..Setup::default()
    })
}

/// Makes descriptors available as they are, and waits until the device returned the chain.
#[track_caller]
fn comes_back(guest: &mut Guest, queue: usize, descriptors: &[RawDescriptor], head: u16) {
    let ring = guest.rings_mut().ring_mut(queue);
    ring.add_raw(descriptors, head);
    ring.needs_kick();
    // What an RX buffer is for: an answer.
    if queue == queue::RX {
        let stranger = header(guest, Op::CreditRequest, 99, host(9)).to_raw();
        while !guest.rings_mut().send(&stranger, &[], &Layout::linux()) {
            done(guest.rings_mut().reclaim_tx());
        }
    }
    for queue in [queue::RX, queue::TX] {
        done(guest.transport().kick(queue));
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while is_there(guest.rings_mut().ring_mut(queue)) {
        assert!(
            Instant::now() < deadline,
            "did not come back: {descriptors:x?}"
        );
        done(guest.transport().wait(Duration::from_millis(20)));
        if queue == queue::RX {
            done(guest.rings_mut().reclaim_tx());
        }
    }
}

/// Whether the device still has a chain.
fn is_there(ring: &mut Ring) -> bool {
    while done(ring.pop_used()).is_some() {}
    ring.in_flight() > 0
}

/// Tries shapes in one ring of a guest, which then works.
fn all_come_back(queue: usize, shapes: impl Fn(&Memory) -> Vec<Vec<RawDescriptor>>) {
    let house = House::new();
    let mut guest = by_hand(&house);
    let memory = guest.transport().memory().clone();
    for shape in shapes(&memory) {
        comes_back(&mut guest, queue, &shape, 0);
    }
    guest.rings_mut().set_rx_buffers(RxBuffers::default());
    done(guest.reset());
    house.works(&mut guest);
    drop(guest);
    house.has_counted(&[match queue {
        queue::TX => "malformed_chains",
        _ => "useless_buffers",
    }]);
    house.ends_unharmed();
}

/// One descriptor, and two, of every length at every place, of the right and the wrong
/// direction.
fn anywhere(_: &Memory) -> Vec<Vec<RawDescriptor>> {
    let mut shapes = Vec::new();
    for place in PLACES {
        for len in LENGTHS {
            for flags in [0, WRITE, INDIRECT, WRITE | INDIRECT, 0xfff8] {
                shapes.push(vec![descriptor(place, len, flags, 0)]);
            }
            for (one, other) in [(0, 0), (WRITE, WRITE), (0, WRITE), (WRITE, 0)] {
                let first = descriptor(SCRATCH, 20, NEXT | one, 1);
                shapes.push(vec![first, descriptor(place, len, other, 0)]);
            }
        }
    }
    shapes
}

#[test]
fn tx_chains_of_every_length_at_every_place() {
    all_come_back(queue::TX, anywhere);
}

#[test]
fn rx_chains_of_every_length_at_every_place() {
    all_come_back(queue::RX, anywhere);
}

/// Chains that lead back, out of the ring, or on and on.
fn astray(_: &Memory) -> Vec<Vec<RawDescriptor>> {
    let mut shapes = Vec::new();
    for flags in [NEXT, NEXT | WRITE] {
        for next in [0, 1, 127, 128, 129, 32767, u16::MAX] {
            for len in [0, 1, 44, 3776] {
                shapes.push(vec![descriptor(SCRATCH, len, flags, next)]);
                let first = descriptor(SCRATCH, len, flags, 1);
                shapes.push(vec![first, descriptor(SCRATCH, len, flags, next)]);
            }
        }
        let on = |index: u16| descriptor(SCRATCH, 1, flags, (index + 1) % 128);
        shapes.push((0..128).map(on).collect());
    }
    shapes
}

#[test]
fn tx_chains_that_go_astray() {
    all_come_back(queue::TX, astray);
}

#[test]
fn rx_chains_that_go_astray() {
    all_come_back(queue::RX, astray);
}

/// Indirect tables that are cut short, out of memory, too long, or hold each other.
fn tables(memory: &Memory) -> Vec<Vec<RawDescriptor>> {
    let table = memory.alloc(64 * 1024 * 16);
    let write = |index: u64, (address, len, flags, next): (u64, u32, u16, u16)| {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        memory.write(GuestAddress(table.0 + 16 * index), &bytes);
    };
    // Its entries: one that goes on to itself, one that is a table, one that leads out.
    write(0, (SCRATCH, 1, NEXT, 0));
    write(1, (table.0, 64, INDIRECT, 0));
    write(2, (SCRATCH, 44, NEXT | WRITE, u16::MAX));
    for index in 3..65_536 {
        let next = if index < 65_535 { index as u16 + 1 } else { 3 };
        write(
            index,
            (SCRATCH, 1, NEXT | ((index as u16 % 2) * WRITE), next),
        );
    }
    let mut shapes = Vec::new();
    for start in [
        table.0,
        table.0 + 16,
        table.0 + 32,
        table.0 + 48,
        table.0 + 8,
    ] {
        for len in [
            0,
            1,
            8,
            15,
            16,
            17,
            32,
            48,
            16 * 1024,
            16 * 65_536,
            u32::MAX,
        ] {
            for flags in [INDIRECT, INDIRECT | WRITE, INDIRECT | NEXT] {
                shapes.push(vec![descriptor(start, len, flags, 0)]);
                let first = descriptor(SCRATCH, 44, NEXT | (flags & WRITE), 1);
                shapes.push(vec![first, descriptor(start, len, flags, 0)]);
            }
        }
    }
    for place in [END - 16, END - 15, END, u64::MAX - 15, u64::MAX] {
        shapes.push(vec![descriptor(place, 32, INDIRECT, 0)]);
    }
    shapes
}

#[test]
fn tx_chains_in_broken_tables() {
    all_come_back(queue::TX, tables);
}

#[test]
fn rx_chains_in_broken_tables() {
    all_come_back(queue::RX, tables);
}

/// Chains of noise, on a connection that is there.
#[test]
fn chains_of_noise() {
    let house = House::new();
    let mut guest = house.guest();
    let memory = guest.transport().memory().clone();
    let request = header(&guest, Op::Request, 50, host(ECHO)).to_raw();
    let mut packet = header(&guest, Op::Rw, 50, host(ECHO)).to_raw();
    packet.set_len(100);
    let mut dice = Dice::new(2);
    for _ in 0..200 {
        done(guest.send_packet(&request, &[], &Layout::linux()));
        done(guest.expect_tx_returned());
        for _ in 0..5 {
            memory.write(GuestAddress(SCRATCH), packet.as_bytes());
            let noise: Vec<_> = (0..4).map(|_| random(&mut dice)).collect();
            guest.rings_mut().ring_mut(queue::TX).add_raw(&noise, 0);
            done(guest.step());
            done(guest.expect_tx_returned());
        }
        guest.inbox().clear();
        // A well-formed packet finds the ring as it was.
        done(guest.reset());
    }
    house.works_again(&mut guest);
    drop(guest);
    house.has_counted(&["invalid_headers", "malformed_chains"]);
    house.ends_unharmed();
}

fn random(dice: &mut Dice) -> RawDescriptor {
    let place = if dice.below(3) == 0 {
        dice.pick(&PLACES)
    } else {
        SCRATCH
    };
    let len = if dice.below(3) == 0 {
        dice.pick(&LENGTHS)
    } else {
        dice.below(150) as u32
    };
    let flags = dice.pick(&[0, NEXT, NEXT, NEXT, WRITE, INDIRECT, NEXT | WRITE]);
    descriptor(place, len, flags, dice.below(5) as u16)
}
