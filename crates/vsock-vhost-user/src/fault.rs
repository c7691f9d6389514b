//! What ends a session: a guest cannot be served any more, by what its VMM did.

use std::sync::atomic::{AtomicU8, Ordering};

use thiserror::Error;

/// Why a session is ended from this side.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub(crate) enum Fault {
    #[error(
        "its memory was taken back: a VMM that truncates the file of its guest's memory \
         has to disconnect first"
    )]
    MemoryLost,
    #[error("a ring's kick is no eventfd")]
    KickType,
    #[error("a ring's call is no eventfd")]
    CallType,
    #[error("a ring's kick cannot be read")]
    KickUnreadable,
    #[error("a ring is kicked by an eventfd that was replaced, or that somebody else reads")]
    KickElsewhere,
    #[error("its worker has panicked, which is a bug of this program: please report it")]
    Panic,
}

impl Fault {
    const ALL: [Self; 6] = [
        Self::MemoryLost,
        Self::KickType,
        Self::CallType,
        Self::KickUnreadable,
        Self::KickElsewhere,
        Self::Panic,
    ];
}

/// The first fault that was found, by whichever thread, or in a signal handler.
#[derive(Debug, Default)]
pub(crate) struct FaultCell(AtomicU8);

impl FaultCell {
    /// Notes a fault, unless there is one already.
    pub(crate) fn note(&self, fault: Fault) {
        let number = fault as u8 + 1;
        // Who comes second has nothing to add.
        let _ = self
            .0
            .compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The fault that was found, if any.
    pub(crate) fn get(&self) -> Option<Fault> {
        let number = usize::from(self.0.load(Ordering::Relaxed));
        Fault::ALL.get(number.checked_sub(1)?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_fault_is_the_one_that_counts() {
        for fault in Fault::ALL {
            let cell = FaultCell::default();
            assert_eq!(cell.get(), None);
            cell.note(fault);
            cell.note(Fault::Panic);
            assert_eq!(cell.get(), Some(fault));
        }
    }
}
