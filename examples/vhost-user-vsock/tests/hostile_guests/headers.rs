//! Headers: every field at every edge.

use std::time::Duration;

use vsock_packet::{HEADER_LEN, Op, RawHeader};
use vsock_testkit::{Error, Guest, Layout};

use crate::hostile::{Dice, ECHO, HOSTILE, House, SIBLING, WITNESS, done, header, host};

/// Offset and length of each field (virtio 1.4, §5.10.6), in bytes.
const FIELDS: [(usize, usize); 10] = [
    (0, 8),
    (8, 8),
    (16, 4),
    (20, 4),
    (24, 4),
    (28, 2),
    (30, 2),
    (32, 4),
    (36, 4),
    (40, 4),
];

/// Values at which something may change.
fn edges(bytes: usize) -> Vec<u64> {
    let mut edges: Vec<u64> = (0..10)
        .chain(u64::from(ECHO) - 1..=u64::from(ECHO) + 1)
        .collect();
    for shift in [7, 8, 15, 16, 31, 32, 63] {
        edges.extend([(1 << shift) - 1, 1 << shift]);
    }
    edges.extend([u64::from(u32::MAX) - 1, u64::MAX - 1, u64::MAX]);
    let mask = u64::MAX >> (64 - 8 * bytes);
    edges.iter_mut().for_each(|edge| *edge &= mask);
    edges.sort_unstable();
    edges.dedup();
    edges
}

fn spoiled(header: &RawHeader, (at, len): (usize, usize), value: u64) -> RawHeader {
    let mut bytes = [0; HEADER_LEN];
    bytes.copy_from_slice(header.as_bytes());
    bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
    RawHeader::from_bytes(bytes)
}

/// Sends a packet and forgets the answers, as far as they have come.
fn send(guest: &mut Guest, header: &RawHeader, payload: &[u8]) -> Result<(), Error> {
    guest.send_packet(header, payload, &Layout::linux())?;
    guest.inbox().clear();
    Ok(())
}

#[test]
fn every_field_at_every_edge_with_every_operation() {
    let house = House::new();
    let mut guest = house.guest();
    done(every_field(&mut guest));
    house.works_again(&mut guest);
    drop(guest);
    house.has_counted(&["invalid_headers", "strangers", "violations"]);
    house.ends_unharmed();
}

fn every_field(guest: &mut Guest) -> Result<(), Error> {
    let mut port = 2000;
    for (field, len) in FIELDS {
        for value in edges(len) {
            // On a connection that is there, and on none.
            port += 1;
            send(
                guest,
                &header(guest, Op::Request, port, host(ECHO)).to_raw(),
                &[],
            )?;
            for op in 0..=8 {
                let mut packet = header(guest, Op::Rw, port, host(ECHO)).to_raw();
                packet = spoiled(&packet, (30, 2), op);
                packet = spoiled(&packet, (24, 4), 8);
                send(guest, &spoiled(&packet, (field, len), value), b"payload.")?;
                let stranger = spoiled(&packet, (16, 4), u64::from(port) + 10_000);
                send(guest, &spoiled(&stranger, (field, len), value), b"payload.")?;
            }
        }
    }
    guest.expect_tx_returned()
}

#[test]
fn every_type_and_operation_there_could_be() {
    let house = House::new();
    let mut guest = house.guest();
    let packet = header(&guest, Op::Rw, 50, host(ECHO)).to_raw();
    for value in (0..=u16::MAX).step_by(7) {
        for field in [(28, 2), (30, 2)] {
            done(send(
                &mut guest,
                &spoiled(&packet, field, value.into()),
                &[],
            ));
        }
    }
    house.works_again(&mut guest);
    drop(guest);
    house.has_counted(&["invalid_headers"]);
    house.ends_unharmed();
}

#[test]
fn headers_of_noise_to_everybody() {
    let house = House::new();
    let mut guest = house.guest();
    let mut sibling = house.sibling();
    let mut dice = Dice::new(1);
    for _ in 0..20_000 {
        let mut packet = header(&guest, Op::Rw, 50, host(ECHO)).to_raw();
        let cids = [0, 1, 2, HOSTILE, WITNESS, SIBLING, 77, u32::MAX].map(u64::from);
        packet = spoiled(&packet, (8, 8), dice.pick(&cids));
        packet = spoiled(&packet, (16, 4), dice.next() % 8);
        packet = spoiled(&packet, (20, 4), dice.pick(&[0, 1, ECHO.into(), u64::MAX]));
        packet = spoiled(&packet, (30, 2), dice.next() % 9);
        packet = spoiled(&packet, (24, 4), dice.next() % 12);
        for _ in 0..dice.below(3) {
            let field = dice.pick(&FIELDS);
            let value = dice.pick(&edges(field.1));
            packet = spoiled(&packet, field, value);
        }
        done(send(&mut guest, &packet, b"payload."));
        done(sibling.step());
        sibling.inbox().clear();
    }
    house.works_again(&mut guest);
    house.works_again(&mut sibling);
    drop((guest, sibling));
    house.has_counted(&["invalid_headers", "strangers"]);
    house.ends_unharmed();
}

/// The source is somebody else's: nobody takes it for theirs.
#[test]
fn forged_sources_reach_nobody() {
    let house = House::new();
    let mut guest = house.guest();
    let mut sibling = house.sibling();
    sibling.listen(80);
    for cid in [0, 1, 2, WITNESS, SIBLING, u32::MAX] {
        for op in 0..=8 {
            let to = sibling.at(80);
            let forged = header(&guest, Op::Request, 50, to).to_raw();
            let forged = spoiled(&spoiled(&forged, (0, 8), cid.into()), (30, 2), op);
            done(send(&mut guest, &forged, &[]));
        }
    }
    done(guest.expect_tx_returned());
    done(sibling.pump(Duration::from_millis(20)));
    assert!(sibling.inbox().is_empty(), "{:?}", sibling.inbox());
    assert_eq!(sibling.refused(), 0);
    house.works_again(&mut guest);
    drop((guest, sibling));
    house.has_counted(&["refused_requests"]);
    house.ends_unharmed();
}
