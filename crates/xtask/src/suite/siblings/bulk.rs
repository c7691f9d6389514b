//! Much data between siblings, every byte verified at the other end.

use anyhow::{Result, ensure};
use guest_agent::script::{Passage, Receive, Send, Step};

use super::{Case, LEFT, MIDDLE};
use crate::siblings::{Dialogue, Said, Siblings};
use crate::suite::bulk::{BULK, speed};

const WRITE_SIZES: [usize; 4] = [1 << 10, 4 << 10, 64 << 10, 256 << 10];

pub(super) fn cases() -> Vec<Case<Siblings>> {
    let mut cases = Vec::new();
    for way in [Way::Forth, Way::Back, Way::Both] {
        for write_size in WRITE_SIZES {
            let transfer = Transfer {
                from: MIDDLE,
                to: LEFT,
                way,
                bytes: BULK,
                write_size,
            };
            cases.push(Case::new(transfer.name(), move |siblings| {
                transfer.run(siblings)
            }));
        }
    }
    cases
}

/// Where the bytes of a transfer go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// From the guest that connects.
    Forth,
    /// To the guest that connects.
    Back,
    /// Both at once.
    Both,
}

/// One bulk transfer, or one each way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    /// The guest that connects.
    pub(crate) from: u32,
    /// The guest that listens.
    pub(crate) to: u32,
    pub(crate) way: Way,
    /// How many bytes go each way.
    pub(crate) bytes: u64,
    pub(crate) write_size: usize,
}

impl Transfer {
    fn name(&self) -> String {
        let (megabytes, kib) = (self.bytes / 1_000_000, self.write_size >> 10);
        format!("{megabytes} MB {}, {kib} KiB writes", self.way())
    }

    /// The way as people write it.
    pub(crate) fn way(&self) -> String {
        let Self { from, to, .. } = self;
        match self.way {
            Way::Forth => format!("guest {from} to {to}"),
            Way::Back => format!("guest {to} to {from}"),
            Way::Both => "both ways at once".to_owned(),
        }
    }

    /// Transfers, and returns how fast it was, both ways together.
    pub(crate) fn run(&self, siblings: &mut Siblings) -> Result<String> {
        Ok(speed(&self.transfer(siblings)?))
    }

    /// Transfers, and returns all that both receivers got.
    pub(crate) fn transfer(&self, siblings: &mut Siblings) -> Result<Passage> {
        let Said { dialler, listener } = siblings.talk(&self.dialogue())?;
        let (dialler, listener) = (dialler[0].done[0], listener[0].done[0]);
        let sums = [dialler.checksum, listener.checksum];
        // When both send, each has the sum of what it received.
        let ways = match self.way {
            Way::Forth | Way::Back => 1,
            Way::Both => 2,
        };
        ensure!(
            ways == 2 || sums[0] == sums[1],
            "the checksums differ: {sums:x?}"
        );
        Ok(Passage {
            bytes: ways * self.bytes,
            checksum: sums[0],
            elapsed_ms: dialler.elapsed_ms.max(listener.elapsed_ms),
        })
    }

    /// The receiver closes when it has all; half-close has cases of its own.
    fn dialogue(&self) -> Dialogue {
        let &Self {
            from,
            to,
            way,
            bytes,
            write_size,
        } = self;
        let sends = |seed| Send {
            bytes,
            write_size,
            seed,
        };
        let receives = |seed| Receive::new(bytes, seed);
        let sender = vec![Step::Send(sends(1)), Step::ExpectEnd];
        let receiver = vec![Step::Receive(receives(1))];
        let (dialler, listener) = match way {
            Way::Forth => (sender, receiver),
            Way::Back => (receiver, sender),
            Way::Both => (
                vec![Step::Exchange(sends(1), receives(2))],
                vec![Step::Exchange(sends(2), receives(1))],
            ),
        };
        Dialogue {
            from,
            to,
            connections: 1,
            dialler,
            listener,
        }
    }
}
