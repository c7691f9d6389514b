//! Rings that are not what they should be: indices that jump, areas that overlap, memory
//! that changes while it is read, buffers that never come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::spawn;
use std::time::Duration;

use vm_memory::GuestAddress;
use vsock_packet::{Cid, HEADER_LEN, Op, VsockAddr};
use vsock_testkit::host::Client;
use vsock_testkit::{Guest, Layout, Memory, Refill, RxBuffers, Setup, Transport, queue};

use crate::hostile::{Dice, ECHO, HOSTILE, House, done, header, host};

/// Descriptor table, available ring and used ring.
type Areas = [GuestAddress; 3];

/// Kicks both rings as often as this, and gives the device the time for it.
fn kicks(guest: &mut Guest, count: usize) {
    for _ in 0..count {
        for queue in [queue::RX, queue::TX] {
            done(guest.transport().kick(queue));
        }
        done(guest.transport().wait(Duration::from_millis(1)));
    }
}

/// Overwrites the available index of a ring, and an entry or two before it.
fn jump(guest: &mut Guest, queue: usize, index: u16, entries: &[u16]) {
    let ring = guest.rings().ring(queue);
    let (size, [_, available, _]) = (ring.size(), ring.addresses());
    let memory = guest.transport().memory().clone();
    for (behind, entry) in (1..).zip(entries) {
        let slot = u64::from(index.wrapping_sub(behind) % size);
        memory.write(
            GuestAddress(available.0 + 4 + 2 * slot),
            &entry.to_le_bytes(),
        );
    }
    memory.write(GuestAddress(available.0 + 2), &index.to_le_bytes());
}

#[test]
fn available_indices_that_jump() {
    let house = House::new();
    let mut guest = house.guest();
    for queue in [queue::TX, queue::RX] {
        for distance in [1, 2, 127, 128, 129, 255, 256, 32767, 32768, 65535] {
            done(guest.connect(ECHO));
            let index = guest.rings().ring(queue).available_index();
            jump(&mut guest, queue, index.wrapping_add(distance), &[]);
            kicks(&mut guest, 3);
            done(guest.reset());
            house.works(&mut guest);
        }
    }
    drop(guest);
    house.has_counted(&["violations"]);
    house.ends_unharmed();
}

#[test]
fn heads_out_of_the_ring_and_the_same_again_and_again() {
    let house = House::new();
    let mut guest = house.guest();
    for queue in [queue::TX, queue::RX] {
        for head in [0, 127, 128, 129, 1024, 32768, u16::MAX] {
            let index = guest.rings().ring(queue).available_index();
            jump(&mut guest, queue, index.wrapping_add(100), &[head; 100]);
            kicks(&mut guest, 3);
            done(guest.reset());
            house.works(&mut guest);
        }
    }
    drop(guest);
    house.has_counted(&["malformed_chains"]);
    house.ends_unharmed();
}

/// The driver goes on making available what the device holds, as fast as it can.
#[test]
fn available_indices_that_never_stop() {
    let house = House::new();
    let mut guest = house.guest();
    for queue in [queue::TX, queue::RX] {
        let [_, available, _] = guest.rings().ring(queue).addresses();
        let memory = guest.transport().memory().clone();
        let ending = Arc::new(AtomicBool::new(false));
        let driver = spawn({
            let (memory, ending) = (memory.clone(), Arc::clone(&ending));
            move || {
                let mut index = 0u16;
                while !ending.load(Ordering::Relaxed) {
                    index = index.wrapping_add(1);
                    memory.write(GuestAddress(available.0 + 2), &index.to_le_bytes());
                }
            }
        });
        kicks(&mut guest, 200);
        ending.store(true, Ordering::Relaxed);
        driver.join().unwrap();
        done(guest.reset());
        house.works(&mut guest);
    }
    drop(guest);
    house.ends_unharmed();
}

/// Rings that lie over each other, over packets, at the end of memory or beyond it. Those
/// that the frontend may not ask for end the session, the others break their guest.
#[test]
fn rings_over_each_other_and_over_everything() {
    let house = House::new();
    let areas = |guest: &Guest, queue| guest.rings().ring(queue).addresses();
    let shapes: [fn(Areas, Areas) -> Areas; 6] = [
        |_, rx| rx,
        |tx, _| [tx[0]; 3],
        |tx, rx| [tx[0], tx[1], rx[2]],
        |tx, _| [tx[0], tx[1], GuestAddress(tx[0].0 + 64)],
        |tx, _| [tx[0], GuestAddress(tx[2].0 + 2), tx[2]],
        |tx, _| [tx[0], tx[1], GuestAddress((256 << 20) - 16)],
    ];
    for shape in shapes {
        let mut guest = house.guest();
        let stream = done(guest.connect(ECHO));
        done(guest.write_some(stream, &[7; 100_000]).map(drop));
        done(guest.stop());
        let areas = shape(areas(&guest, queue::TX), areas(&guest, queue::RX));
        let size = guest.rings().ring(queue::TX).size();
        let started = guest.transport().start_ring(queue::TX, size, areas, 0);
        if started.is_ok() && guest.transport().enable(queue::TX, true).is_ok() {
            let rx = guest.rings().ring(queue::RX).addresses();
            let _ = guest.transport().start_ring(queue::RX, size, rx, 0);
            let _ = guest.transport().enable(queue::RX, true);
            let mut dice = Dice::new(3);
            for _ in 0..20 {
                for area in areas.into_iter().filter(|area| area.0 < 255 << 20) {
                    let noise = dice.next().to_le_bytes();
                    let memory = guest.transport().memory();
                    memory.write(GuestAddress(area.0 + dice.below(100) as u64), &noise);
                }
                kicks(&mut guest, 1);
            }
        }
    }
    house.has_counted(&["malformed_chains"]);
    house.ends_unharmed();
}

/// Headers, descriptors and payload are written again and again while they are read.
///
/// The guest asks for a connection that it has, so that this is reset, and asks again. By then
/// the sibling may not have read of the reset, and its answer to the first request passes
/// for one to the second: data comes before it has answered that. So it has no streams that
/// would miss something, and only answers.
#[test]
fn memory_that_changes_while_it_is_read() {
    let house = House::new();
    let mut guest = house.guest();
    let mut sibling = house.sibling();
    sibling.leave_to_hand(80);
    let ending = Arc::new(AtomicBool::new(false));
    let changer = spawn({
        let memory = guest.transport().memory().clone();
        let [descriptors, ..] = guest.rings().ring(queue::TX).addresses();
        let ending = Arc::clone(&ending);
        move || change(&memory, descriptors, &ending)
    });
    for round in 0..100 {
        let to = if round % 2 == 0 {
            host(ECHO)
        } else {
            sibling.at(80)
        };
        let request = header(&guest, Op::Request, 1000 + round, to).to_raw();
        let mut packet = header(&guest, Op::Rw, 1000 + round, to).to_raw();
        packet.set_len(5000);
        for _ in 0..20 {
            for header in [&request, &packet, &packet] {
                let payload = &[1; 5000][..header.len() as usize];
                guest
                    .rings_mut()
                    .send(header, payload, &Layout::payload_in(3));
            }
            done(guest.transport().kick(queue::TX));
            done(guest.rings_mut().reclaim_tx());
        }
        while matches!(guest.rings_mut().receive(), Ok(Some(_))) {}
        done(guest.refill_rx(usize::MAX));
        answer_requests(&mut sibling);
    }
    ending.store(true, Ordering::Relaxed);
    changer.join().unwrap();
    done(guest.reset());
    house.works(&mut guest);
    house.works(&mut sibling);
    drop((guest, sibling));
    house.ends_unharmed();
}

/// Answers what asks for a connection, and takes the rest as it comes.
fn answer_requests(sibling: &mut Guest) {
    done(sibling.step());
    while let Some(packet) = sibling.inbox().pop_front() {
        if packet.op() == Some(Op::Request) {
            let guest_cid = Cid::from_wire(HOSTILE.into()).unwrap();
            let to = VsockAddr::new(guest_cid, packet.header.src_port());
            let response = header(sibling, Op::Response, packet.header.dst_port(), to).to_raw();
            done(sibling.send_packet(&response, &[], &Layout::linux()));
        }
    }
}

/// Flips lengths and flags in a descriptor table, and headers where buffers lie.
fn change(memory: &Memory, descriptors: GuestAddress, ending: &AtomicBool) {
    let mut dice = Dice::new(4);
    while !ending.load(Ordering::Relaxed) {
        let entry = descriptors.0 + 16 * dice.below(128) as u64;
        let old = memory.read(GuestAddress(entry + 8), 4);
        let len = dice.pick(&[0u32, 1, 43, 44, 5000, 1 << 20, u32::MAX]);
        memory.write(GuestAddress(entry + 8), &len.to_le_bytes());
        let address = memory.read(GuestAddress(entry), 8);
        let address = u64::from_le_bytes(*address.first_chunk().unwrap());
        if (1 << 12..200 << 20).contains(&address) {
            let field = dice.below(HEADER_LEN / 4) as u64 * 4;
            let value = dice.pick(&[0u32, 1, 3, 5, 64, 5000, u32::MAX]);
            memory.write(GuestAddress(address + field), &value.to_le_bytes());
        }
        memory.write(GuestAddress(entry + 8), &old);
    }
}

/// A guest that takes nothing: what waits for it is bounded, and the host's applications
/// and its sibling are served.
#[test]
fn rx_is_never_refilled() {
    let house = House::new();
    let mut guest = house.guest_with(Setup {
        rx: RxBuffers {
            refill: Refill::ByHand,
            ..RxBuffers::default()
        },
        ..Setup::default()
    });
    let mut sibling = house.sibling();
    for round in 0..2000u32 {
        let to = if round % 2 == 0 {
            host(ECHO)
        } else {
            sibling.at(80)
        };
        for op in [Op::Request, Op::CreditRequest, Op::Shutdown, Op::Rw] {
            let packet = header(&guest, op, 1000 + round, to).to_raw();
            done(guest.send_packet(&packet, &[], &Layout::linux()));
        }
        done(sibling.step());
    }
    done(guest.expect_tx_returned());
    let clients: Vec<_> = (0..100)
        .map(|port| done(Client::dial(&house.uds(HOSTILE), port)))
        .collect();
    let mut to_guest = Vec::new();
    for _ in 0..50 {
        to_guest.push(done(sibling.start_connect(guest.at(80))));
    }
    house.works(&mut sibling);
    drop(clients);
    guest.rings_mut().set_rx_buffers(RxBuffers::default());
    done(guest.reset());
    house.works(&mut guest);
    drop((guest, sibling));
    house.has_counted(&["violations"]);
    house.ends_unharmed();
}

#[test]
fn kicks_without_work() {
    let house = House::new();
    let mut guest = house.guest();
    for _ in 0..50_000 {
        for queue in [queue::RX, queue::TX] {
            done(guest.transport().kick(queue));
        }
    }
    house.works_again(&mut guest);
    drop(guest);
    house.ends_unharmed();
}
