//! What the two ends of a connection are going to do.

use std::time::Duration;

use vsock_packet::SocketType;

use crate::content::NUMBER_LEN;
use crate::random::Random;

/// The opener and the acceptor, as indices.
pub(crate) const OPENER: usize = 0;
pub(crate) const ACCEPTOR: usize = 1;

/// Who talks to whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A guest connects to a host application.
    GuestToHost,
    /// A host application connects to a guest.
    HostToGuest,
    /// A guest connects to another.
    Siblings(SocketType),
}

/// What one end does.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// The bytes it says in all.
    pub(crate) total: u64,
    /// The most it writes at once; the longest of its messages.
    pub(crate) write: u64,
    /// The most it reads at once.
    pub(crate) read: usize,
    /// After one read in so many it rests for so long.
    pub(crate) rests: (u64, Duration),
    /// It closes when this many bytes were sent and received, whatever is left.
    pub(crate) quits_at: Option<u64>,
    /// When all is said and heard it closes, without having said before that it says no
    /// more.
    pub(crate) closes_at_once: bool,
}

/// What a connection is for.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) kind: Kind,
    /// The VM of the guest, or of the opener.
    pub(crate) vm: usize,
    /// The VM of the acceptor, for siblings.
    pub(crate) peer: usize,
    /// By [`OPENER`] and [`ACCEPTOR`].
    pub(crate) parts: [Part; 2],
}

impl Plan {
    /// A plan among `vms` VMs.
    pub(crate) fn make(random: &mut Random, vms: usize) -> Self {
        let kind = match random.below(8) {
            0..3 => Kind::GuestToHost,
            3..6 => Kind::HostToGuest,
            6 => Kind::Siblings(SocketType::Stream),
            _ => Kind::Siblings(SocketType::Seqpacket),
        };
        let vm = random.below(vms as u64) as usize;
        let peer = (vm + 1 + random.below(vms as u64 - 1) as usize) % vms;
        let messages = kind == Kind::Siblings(SocketType::Seqpacket);
        let mut parts = [(); 2].map(|()| Part::make(random, messages));
        let [opener, acceptor] = &mut parts;
        opener.listen_to(acceptor, messages);
        acceptor.listen_to(opener, messages);
        Self {
            kind,
            vm,
            peer,
            parts,
        }
    }

    /// The type of its sockets.
    pub(crate) fn socket_type(&self) -> SocketType {
        match self.kind {
            Kind::Siblings(socket_type) => socket_type,
            _ => SocketType::Stream,
        }
    }

    /// Whether the VM has a part in it.
    pub(crate) fn concerns(&self, vm: usize) -> bool {
        self.vm == vm || (self.peer == vm && matches!(self.kind, Kind::Siblings(_)))
    }
}

/// The most pieces, about, in which one side says what it says, or hears it.
const MOST_PIECES: u64 = 4000;
/// The time, about, that a side rests in all.
const MOST_REST: Duration = Duration::from_secs(2);
/// How often, about: a rest takes no less than a round of everybody.
const MOST_RESTS: u64 = 50;

impl Part {
    fn make(random: &mut Random, messages: bool) -> Self {
        let least = NUMBER_LEN as u64;
        let total = match random.below(10) {
            0 => least,
            1..8 => random.magnitude(least, 100_000),
            _ => random.magnitude(100_000, 4_000_000),
        };
        let smallest = (total / MOST_PIECES).max(least);
        let most = if messages { 100_000 } else { 300_000 };
        let rest = Duration::from_millis(random.magnitude(1, 400));
        Self {
            total,
            write: random.magnitude(smallest, most),
            read: random.magnitude(1, 300_000) as usize,
            rests: (random.magnitude(1, 200), rest),
            quits_at: random.one_in(6).then(|| least + random.below(total)),
            closes_at_once: random.one_in(3),
        }
    }

    /// Takes care that all the other side says is heard in time.
    fn listen_to(&mut self, other: &Self, messages: bool) {
        let total = other.total;
        self.read = self.read.max((total / MOST_PIECES) as usize);
        let read = if messages {
            other.write.div_ceil(2)
        } else {
            self.read as u64
        };
        let reads = total / read + 1;
        let (one_in, time) = &mut self.rests;
        let rests = (MOST_REST.as_millis() / time.as_millis().max(1)) as u64;
        *one_in = (*one_in).max(reads / rests.clamp(1, MOST_RESTS));
    }
}
