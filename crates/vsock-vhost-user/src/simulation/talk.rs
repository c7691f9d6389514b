//! The reference: what is said on a connection, and what of it must be heard.

use std::os::unix::net::UnixListener;

use vsock_packet::Cid;
use vsock_testkit::{State, StreamId};

use super::application::{Application, Heard};
use super::world::Guests;

/// What is said or heard at once, at most.
const MAX_BYTES: usize = 32 << 10;

/// One end of a connection.
pub(super) enum End {
    /// A guest's stream.
    Stream { guest: usize, id: StreamId },
    /// A host's application.
    Application(Application),
    /// A guest's application will accept who comes to its port.
    Port { guest: usize, port: u32 },
    /// A host's application will.
    Listener(UnixListener),
    /// Nobody.
    Nobody,
}

/// What one end has said, and the other one heard.
#[derive(Default)]
pub(super) struct Way {
    /// What is said before it ends by itself.
    pub(super) wanted: u64,
    pub(super) said: u64,
    pub(super) heard: u64,
    /// The speaker will say no more.
    pub(super) ends: bool,
    /// The listener knows.
    pub(super) is_over: bool,
    /// The listener has left, or the speaker's words were lost with it.
    pub(super) is_excused: bool,
}

pub(super) struct Talk {
    pub(super) number: u64,
    /// Who asks, and who is asked.
    pub(super) ends: [End; 2],
    /// The guests among them.
    pub(super) who: [Option<usize>; 2],
    /// What each of them says.
    pub(super) ways: [Way; 2],
    /// Nobody listens: it is to be refused.
    pub(super) is_vain: bool,
    /// Something ends it before its time.
    pub(super) is_excused: bool,
}

/// The byte at a place of a way.
fn byte(talk: u64, side: usize, at: u64) -> u8 {
    let mixed = (talk * 2 + side as u64).wrapping_mul(0x9e37_79b9) ^ at.wrapping_mul(0x85eb_ca6b);
    (mixed ^ (mixed >> 13)) as u8
}

impl Talk {
    pub(super) fn new(number: u64, ends: [End; 2], who: [Option<usize>; 2]) -> Self {
        Self {
            number,
            is_vain: matches!(ends[1], End::Nobody),
            ends,
            who,
            ways: Default::default(),
            is_excused: false,
        }
    }

    /// Whoever was asked accepts, and whoever asks goes on asking.
    pub(super) fn begin(&mut self, guests: &mut Guests, max: usize) -> bool {
        if let End::Application(application) = &mut self.ends[0]
            && application.ask(max)
        {
            return true;
        }
        let asks = self.who[0].map_or(Cid::HOST, |guest| super::world::cid(guest).cid());
        let accepted = match &self.ends[1] {
            End::Port { guest, port } => {
                let guest = *guest;
                guests.of(guest).and_then(|it| {
                    let id = it.accepted(*port)?;
                    if it.stream(id).peer().cid != asks {
                        // A stranger.
                        it.start_close(id).unwrap();
                        return None;
                    }
                    Some(End::Stream { guest, id })
                })
            }
            End::Listener(listener) => {
                let socket = listener.accept().ok();
                socket.map(|(socket, _)| End::Application(Application::reached(socket)))
            }
            _ => None,
        };
        let has_begun = accepted.is_some();
        if let Some(end) = accepted {
            self.ends[1] = end;
        }
        has_begun
    }

    /// Says up to `max` bytes. `true` when something was said.
    pub(super) fn say(&mut self, side: usize, max: usize, guests: &mut Guests) -> bool {
        let (number, way) = (self.number, &mut self.ways[side]);
        if way.ends || way.is_excused {
            return false;
        }
        let bytes: Vec<u8> = (way.said..way.said + max.min(MAX_BYTES) as u64)
            .map(|at| byte(number, side, at))
            .collect();
        let taken = match &mut self.ends[side] {
            End::Stream { guest, id } => {
                let Some(guest) = guests.of(*guest) else {
                    return false;
                };
                match guest.stream(*id).state() {
                    State::Connecting => Some(0),
                    _ if guest.stream(*id).is_shut() => None,
                    _ => Some(guest.write_some(*id, &bytes).unwrap()),
                }
            }
            End::Application(application) if application.has_asked() => application.write(&bytes),
            _ => Some(0),
        };
        if let Some(taken) = taken {
            way.said += taken as u64;
            return taken > 0;
        }
        let may = self.is_vain || self.is_excused;
        assert!(
            may,
            "talk {number}: {side} is not taken, and nobody has left"
        );
        self.ways[side].is_excused = true;
        false
    }

    /// Says that no more will be said.
    pub(super) fn end(&mut self, side: usize, guests: &mut Guests) -> bool {
        match &mut self.ends[side] {
            End::Stream { guest, id } => {
                let Some(guest) = guests.of(*guest) else {
                    return false;
                };
                if guest.stream(*id).state() == State::Connecting {
                    return false;
                }
                guest
                    .shutdown(*id, vsock_packet::ShutdownFlags::SEND)
                    .unwrap();
            }
            End::Application(application) if application.has_asked() => application.shut(),
            _ => return false,
        }
        !std::mem::replace(&mut self.ways[side].ends, true)
    }

    /// Hears up to `max` bytes of what the other side says.
    pub(super) fn hear(&mut self, side: usize, max: usize, guests: &mut Guests) -> bool {
        let heard = match &mut self.ends[side] {
            End::Stream { guest, id } => {
                let Some(guest) = guests.of(*guest) else {
                    return false;
                };
                let bytes = guest.read_some(*id, max).unwrap();
                let is_over = guest.stream(*id).at_end() && guest.stream(*id).unread() == 0;
                match bytes.is_empty() {
                    true if is_over => Some(Heard::End),
                    true => None,
                    false => Some(Heard::Bytes(bytes)),
                }
            }
            End::Application(application) => application.read(max.min(MAX_BYTES)),
            _ => None,
        };
        let number = self.number;
        let way = &mut self.ways[1 - side];
        match heard {
            None => false,
            Some(Heard::Bytes(bytes)) => {
                assert!(
                    !way.is_over,
                    "talk {number}: {side} hears more after the end"
                );
                for heard in &bytes {
                    let right = byte(number, 1 - side, way.heard);
                    assert_eq!(*heard, right, "talk {number}: {side} hears {}", way.heard);
                    way.heard += 1;
                }
                assert!(
                    way.heard <= way.said,
                    "talk {number}: {side} hears too much"
                );
                true
            }
            Some(Heard::End) => {
                let is_fine = way.ends && way.heard == way.said;
                let may = self.is_vain || self.is_excused || way.is_excused;
                let (heard, said) = (way.heard, way.said);
                assert!(
                    is_fine || may,
                    "talk {number}: {side} hears {heard} of {said} bytes"
                );
                !std::mem::replace(&mut way.is_over, true)
            }
        }
    }

    /// Leaves, whatever the other side says.
    pub(super) fn leave(&mut self, side: usize, guests: &mut Guests) -> bool {
        if let End::Stream { guest, .. } | End::Port { guest, .. } = &self.ends[side]
            && guests.is_stopped(*guest)
        {
            return false;
        }
        match std::mem::replace(&mut self.ends[side], End::Nobody) {
            End::Stream { guest, id } => {
                if let Some(guest) = guests.of(guest) {
                    // Who leaves before the answer is not told of it.
                    self.is_excused |= guest.stream(id).state() == State::Connecting;
                    guest.start_close(id).unwrap();
                }
            }
            End::Application(application) => self.is_excused |= !application.is_greeted(),
            End::Port { guest, port } => {
                self.is_excused = true;
                if let Some(guest) = guests.of(guest) {
                    while let Some(id) = guest.accepted(port) {
                        guest.start_close(id).unwrap();
                    }
                    guest.stop_listening(port);
                }
            }
            End::Listener(_) => self.is_excused = true,
            End::Nobody => return false,
        }
        self.ways[side].ends = true;
        // Unless all was said and heard already.
        let other = &mut self.ways[1 - side];
        other.is_excused |= !other.is_over;
        true
    }

    /// Finishes: hears all, says what is left, and leaves.
    pub(super) fn finish(&mut self, side: usize, guests: &mut Guests) -> bool {
        let mut is_busy = self.hear(side, MAX_BYTES, guests);
        let way = &self.ways[side];
        let left = way.wanted.saturating_sub(way.said);
        if left > 0 && !way.is_excused {
            is_busy |= self.say(side, left as usize, guests);
        } else if !way.ends {
            is_busy |= self.end(side, guests);
        }
        let is_done =
            self.ways[1 - side].is_over && (self.ways[side].ends || self.ways[side].is_excused);
        if is_done || (self.is_vain && self.is_refused(side, guests)) {
            is_busy |= self.leave(side, guests);
        }
        is_busy
    }

    fn is_refused(&self, side: usize, guests: &mut Guests) -> bool {
        match &self.ends[side] {
            End::Stream { guest, id } => guests
                .of(*guest)
                .is_none_or(|guest| guest.stream(*id).was_reset()),
            _ => false,
        }
    }

    /// Whether nothing keeps all that is said from being heard.
    pub(super) fn is_whole(&self) -> bool {
        !self.is_vain && !self.is_excused && self.ways.iter().all(|way| !way.is_excused)
    }

    /// Bytes that were heard.
    pub(super) fn heard(&self) -> u64 {
        self.ways.iter().map(|way| way.heard).sum()
    }

    /// What was said was heard, and nobody is left waiting.
    pub(super) fn check(&self) {
        let number = self.number;
        if self.is_excused || self.is_vain {
            return;
        }
        for (side, way) in self.ways.iter().enumerate() {
            let (heard, said) = (way.heard, way.said);
            assert!(
                way.is_excused || (way.is_over && heard == said),
                "talk {number}: of {side}'s {said} bytes {heard} were heard, over: {}",
                way.is_over
            );
        }
    }
}
