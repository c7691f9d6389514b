//! Much data, every byte verified at the other end.

use std::path::Path;

use anyhow::{Result, ensure};
use guest_agent::script::{Passage, Receive, Send, Step};

use super::Case;
use crate::guest::Guest;
use crate::lab::Lab;
use crate::talk::{Direction, Initiator, Talk};

/// The size of a bulk transfer.
pub(crate) const BULK: u64 = 100_000_000;
const WRITE_SIZES: [usize; 4] = [1 << 10, 32 << 10, 64 << 10, 256 << 10];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for initiator in Initiator::BOTH {
        for direction in Direction::BOTH {
            for write_size in WRITE_SIZES {
                let transfer = Transfer {
                    initiator,
                    direction,
                    bytes: BULK,
                    write_size,
                };
                cases.push(Case::new(transfer.name(), move |lab| transfer.run(lab)));
            }
        }
    }
    for initiator in Initiator::BOTH {
        let name = format!("50 MB both ways at once, {}", initiator.connects());
        cases.push(Case::new(name, move |lab| duplex(lab, initiator)));
    }
    cases
}

/// One bulk transfer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    pub(crate) initiator: Initiator,
    pub(crate) direction: Direction,
    pub(crate) bytes: u64,
    pub(crate) write_size: usize,
}

impl Transfer {
    fn name(&self) -> String {
        let Self {
            initiator,
            direction,
            bytes,
            write_size,
        } = self;
        let (megabytes, kib) = (bytes / 1_000_000, write_size >> 10);
        let (direction, connects) = (direction.name(), initiator.connects());
        format!("{megabytes} MB {direction}, {kib} KiB writes, {connects}")
    }

    fn run(&self, lab: &mut Lab) -> Result<String> {
        Ok(speed(&self.transfer(lab)?))
    }

    /// Transfers, and returns what the receiver got.
    pub(crate) fn transfer(&self, lab: &mut Lab) -> Result<Passage> {
        let (port, uds) = (lab.port(), lab.uds().to_owned());
        self.carry(&mut lab.guest, &uds, port)
    }

    /// The same, to or from `port` of any guest whose hybrid vsock socket is `uds`.
    pub(crate) fn carry(&self, guest: &mut Guest, uds: &Path, port: u32) -> Result<Passage> {
        let Self {
            initiator,
            direction,
            bytes,
            write_size,
        } = *self;
        let seed = write_size as u64;
        // The receiver closes when it has all; half-close has cases of its own.
        let sender = vec![
            Step::Send(Send {
                bytes,
                write_size,
                seed,
            }),
            Step::ExpectEnd,
        ];
        let receiver = vec![Step::Receive(Receive::new(bytes, seed))];
        let (guest_does, host) = direction.assign(sender, receiver);
        let talk = Talk {
            initiator,
            connections: 1,
            guest: guest_does,
            host,
        };
        let ends = talk.begin(guest, uds, port)?.finish()?;
        ends.succeeded()?;
        let (guest, host) = (ends.guest[0].done[0], ends.host[0].done[0]);
        let (sums, [sent, received]) = match direction {
            Direction::ToHost => ([guest.checksum, host.checksum], [guest, host]),
            Direction::ToGuest => ([host.checksum, guest.checksum], [host, guest]),
        };
        ensure!(sums[0] == sums[1], "the checksums differ: {sums:x?}");
        ensure!(sent.bytes == received.bytes, "{sent:?} is not {received:?}");
        Ok(received)
    }
}

/// A passage's speed.
pub(crate) fn speed(passage: &Passage) -> String {
    let megabytes = passage.bytes as f64 / 1e6;
    format!("{:.0} MB/s", megabytes / (passage.elapsed_ms / 1000.0))
}

fn duplex(lab: &mut Lab, initiator: Initiator) -> Result<String> {
    let bytes = BULK / 2;
    let exchange = |sent, received| {
        vec![Step::Exchange(
            Send::new(bytes, sent),
            Receive::new(bytes, received),
        )]
    };
    let (guest, host) = (exchange(1, 2), exchange(2, 1));
    let ends = lab.talk(&Talk {
        initiator,
        connections: 1,
        guest,
        host,
    })?;
    let slower = ends.guest[0].done[0]
        .elapsed_ms
        .max(ends.host[0].done[0].elapsed_ms);
    Ok(speed(&Passage {
        bytes: 2 * bytes,
        checksum: 0,
        elapsed_ms: slower,
    }))
}
