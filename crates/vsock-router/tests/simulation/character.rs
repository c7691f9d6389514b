//! What a simulated guest is like.

use vsock_testkit::Random;

/// When a guest tells of its buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Credit {
    /// As Linux does.
    Linux,
    /// As Unikraft does.
    WhenAsked,
    /// Whenever it has read something.
    Eager,
}

/// What a guest does that it should not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Misbehaviour {
    /// It posts no RX buffers after the first.
    NeverRefills,
    /// Its applications do not read.
    NeverReads,
    /// It answers neither REQUEST nor SHUTDOWN nor CREDIT_REQUEST.
    NeverAnswers,
    /// It sends what costs others most.
    Floods,
    /// It sends more than its peer allows.
    ExceedsCredit,
    /// It sends any operation at any time.
    WrongOps,
}

impl Misbehaviour {
    const ALL: [Self; 6] = [
        Self::NeverRefills,
        Self::NeverReads,
        Self::NeverAnswers,
        Self::Floods,
        Self::ExceedsCredit,
        Self::WrongOps,
    ];
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Character {
    pub(crate) credit: Credit,
    pub(crate) buf_alloc: u32,
    /// Room for payload in an RX buffer, in bytes.
    pub(crate) room: usize,
    /// RX buffers it has.
    pub(crate) ring: usize,
    pub(crate) seqpacket: bool,
    /// It changes its sockets' buffers while they are in use.
    pub(crate) resizes: bool,
    /// It closes with nothing but an RST, as Hermit does.
    pub(crate) closes_by_rst: bool,
    pub(crate) misbehaves: Option<Misbehaviour>,
}

impl Character {
    pub(crate) fn random(random: &mut Random) -> Self {
        let mut character = match random.below(10) {
            0..6 => Self::linux(random),
            6 | 7 => Self {
                credit: Credit::WhenAsked,
                room: 4052,
                closes_by_rst: random.chance(50),
                ..Self::linux(random)
            },
            8 => Self {
                credit: Credit::Eager,
                buf_alloc: 1024,
                room: 468,
                ring: 8,
                seqpacket: false,
                ..Self::linux(random)
            },
            _ => Self {
                credit: Credit::Eager,
                resizes: true,
                ..Self::linux(random)
            },
        };
        if random.chance(25) {
            character.misbehaves = Some(random.pick(&Misbehaviour::ALL));
        }
        character
    }

    fn linux(random: &mut Random) -> Self {
        Self {
            credit: Credit::Linux,
            buf_alloc: random.pick(&[256 << 10, 256 << 10, 64 << 10, 1 << 20, 8 << 20]),
            room: random.pick(&[3732, 4096]),
            ring: random.pick(&[128, 32, 16]),
            seqpacket: true,
            resizes: false,
            closes_by_rst: false,
            misbehaves: None,
        }
    }

    pub(crate) fn is_honest(&self) -> bool {
        self.misbehaves.is_none()
    }

    pub(crate) fn does(&self, what: Misbehaviour) -> bool {
        self.misbehaves == Some(what)
    }

    /// What it keeps of its own connections makes sense.
    pub(crate) fn is_consistent(&self) -> bool {
        use Misbehaviour::{ExceedsCredit, Floods, WrongOps};
        !matches!(self.misbehaves, Some(ExceedsCredit | Floods | WrongOps))
    }
}
