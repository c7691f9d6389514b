//! Much data between siblings, every byte verified at the other end.

use anyhow::{Result, ensure};
use guest_agent::script::{Passage, Receive, Send, Step};

use super::Case;
use crate::siblings::{Dialogue, LEFT, MIDDLE, Said, Siblings};
use crate::suite::bulk::{BULK, speed};

const WRITE_SIZES: [usize; 4] = [1 << 10, 4 << 10, 64 << 10, 256 << 10];

pub(super) fn cases() -> Vec<Case<Siblings>> {
    let mut cases = Vec::new();
    for sender in Sender::ALL {
        for write_size in WRITE_SIZES {
            let transfer = Transfer {
                sender,
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

/// Who sends, on a connection that the middle guest makes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sender {
    Middle,
    Left,
    Both,
}

impl Sender {
    const ALL: [Self; 3] = [Self::Middle, Self::Left, Self::Both];
}

/// One bulk transfer, or one each way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    pub(crate) sender: Sender,
    pub(crate) bytes: u64,
    pub(crate) write_size: usize,
}

impl Transfer {
    fn name(&self) -> String {
        let (megabytes, kib) = (self.bytes / 1_000_000, self.write_size >> 10);
        let way = match self.sender {
            Sender::Middle => format!("guest {MIDDLE} to {LEFT}"),
            Sender::Left => format!("guest {LEFT} to {MIDDLE}"),
            Sender::Both => "both ways at once".to_owned(),
        };
        format!("{megabytes} MB {way}, {kib} KiB writes")
    }

    /// Transfers, and returns how fast it was, both ways together.
    pub(crate) fn run(&self, siblings: &mut Siblings) -> Result<String> {
        let said = siblings.talk(&self.dialogue())?;
        let Said { dialler, listener } = &said;
        let (dialler, listener) = (dialler[0].done[0], listener[0].done[0]);
        let sums = [dialler.checksum, listener.checksum];
        // What each end has received differs when both send.
        let one_way = !matches!(self.sender, Sender::Both);
        ensure!(
            !one_way || sums[0] == sums[1],
            "the checksums differ: {sums:x?}"
        );
        let ways = if one_way { 1 } else { 2 };
        Ok(speed(&Passage {
            bytes: ways * self.bytes,
            checksum: 0,
            elapsed_ms: dialler.elapsed_ms.max(listener.elapsed_ms),
        }))
    }

    /// The receiver closes when it has all; half-close has cases of its own.
    fn dialogue(&self) -> Dialogue {
        let &Self {
            bytes, write_size, ..
        } = self;
        let sends = |seed| Send {
            bytes,
            write_size,
            seed,
        };
        let receives = |seed| Receive::new(bytes, seed);
        let sender = vec![Step::Send(sends(1)), Step::ExpectEnd];
        let receiver = vec![Step::Receive(receives(1))];
        let (dialler, listener) = match self.sender {
            Sender::Middle => (sender, receiver),
            Sender::Left => (receiver, sender),
            Sender::Both => (
                vec![Step::Exchange(sends(1), receives(2))],
                vec![Step::Exchange(sends(2), receives(1))],
            ),
        };
        Dialogue {
            from: MIDDLE,
            to: LEFT,
            connections: 1,
            dialler,
            listener,
        }
    }
}
