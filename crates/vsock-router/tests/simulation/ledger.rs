//! What was really sent: held against what arrives.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use vsock_packet::{Cid, VsockAddr};

const PERIOD: usize = 65_521;

static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut value = 1u32;
    let mut next = || {
        value = value.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (value >> 24) as u8
    };
    let period: Vec<u8> = (0..PERIOD).map(|_| next()).collect();
    period.repeat(3)
});

/// One direction of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Way {
    pub(crate) from: VsockAddr,
    pub(crate) to: VsockAddr,
}

impl Way {
    /// The other direction.
    pub(crate) fn back(self) -> Self {
        Self {
            from: self.to,
            to: self.from,
        }
    }

    /// The bytes that belong at this place of the way, at most 128 KiB.
    pub(crate) fn bytes(self, at: u64, len: usize) -> &'static [u8] {
        let number = |addr: VsockAddr| u64::from(addr.cid.value() * 7919 + addr.port.value());
        let salt = number(self.from) * 31 + number(self.to) * 17;
        let start = ((salt + at) % PERIOD as u64) as usize;
        &PATTERN[start..start + len]
    }
}

/// What was sent on a way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) bytes: u64,
    /// Where messages end, and whether a record does.
    pub(crate) ends: Vec<(u64, bool)>,
    /// The sender has sent an RST.
    pub(crate) rst: bool,
    /// The sender has sent all it wanted, and nothing else.
    pub(crate) whole: bool,
    /// An earlier connection had the same ends: what arrives may be of that one.
    pub(crate) reused: bool,
    /// The sender has sent a full SHUTDOWN.
    pub(crate) closed: bool,
    /// The sender sends what it should not: nothing is known of what arrives.
    pub(crate) forged: bool,
    /// Something happened that ends connections: it need not arrive whole.
    pub(crate) excused: bool,
}

/// All ways there were.
#[derive(Default)]
pub(crate) struct Ledger(BTreeMap<Way, Sent>);

impl Ledger {
    /// A connection is asked for on this way.
    pub(crate) fn open(&mut self, there: Way, excused: bool) {
        for way in [there, there.back()] {
            let before = self.0.get(&way);
            let sent = Sent {
                reused: before.is_some(),
                // It may be on its way still.
                forged: before.is_some_and(|before| before.forged),
                excused,
                ..Sent::default()
            };
            self.0.insert(way, sent);
        }
    }

    /// The ends of this way are to be used again.
    pub(crate) fn reuse(&mut self, there: Way) {
        for way in [there, there.back()] {
            self.of(way).reused = true;
        }
    }

    /// Whether the guest has seen a port twice: then old packets on their way look like
    /// wrong ones of the new connection, and no device can tell.
    pub(crate) fn has_reuse(&self, cid: Cid) -> bool {
        let of = |(way, sent): (&Way, &Sent)| sent.reused && way.from.cid == cid;
        self.0.iter().any(of)
    }

    pub(crate) fn of(&mut self, way: Way) -> &mut Sent {
        self.0.entry(way).or_default()
    }

    /// Connections of these guests may end from now on, for whatever reason.
    pub(crate) fn excuse(&mut self, concerned: impl Fn(Way) -> bool) {
        for (way, sent) in &mut self.0 {
            sent.excused |= concerned(*way);
        }
    }
}
