//! Newcomers: connections that a guest has just opened, whose sockets are not watched yet.
//!
//! To watch a socket, and to end that when it is closed, takes a tenth of what a connection costs
//! that is opened and closed again at once. So it is left for a moment in which nothing comes
//! from the guest. Where none comes, it is done after a turn that a newcomer has seen from its
//! beginning to its end. What the application has sent by then is told when the watch begins.
//!
//! One that comes alone is watched at once: there is little to save, and connections opened one
//! at a time became slower by a tenth.

use std::collections::VecDeque;

use vsock_connection::ConnectionId;

/// Those there are, in the order they came in; some may be gone again.
#[derive(Debug, Default)]
pub(crate) struct Newcomers {
    /// And the turn that each came in.
    ids: VecDeque<(ConnectionId, u64)>,
    /// The number of this turn.
    turn: u64,
}

impl Newcomers {
    /// One more, whose socket is to be watched.
    pub(crate) fn add(&mut self, id: ConnectionId) {
        self.ids.push_back((id, self.turn));
    }

    /// Takes the next to be watched.
    pub(crate) fn next(&mut self) -> Option<ConnectionId> {
        self.ids.pop_front().map(|(id, _)| id)
    }

    /// Takes the only one there is.
    pub(crate) fn lone(&mut self) -> Option<ConnectionId> {
        if self.ids.len() == 1 {
            self.next()
        } else {
            None
        }
    }

    /// Takes the next of those that came in before this turn.
    pub(crate) fn next_earlier(&mut self) -> Option<ConnectionId> {
        let turn = self.turn;
        let next = self.ids.pop_front_if(|(_, came)| *came < turn);
        next.map(|(id, _)| id)
    }

    /// Another turn is next.
    pub(crate) fn end_turn(&mut self) {
        self.turn += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn id(number: u64) -> ConnectionId {
        ConnectionId::from_u64(number)
    }

    fn earlier(newcomers: &mut Newcomers) -> Vec<ConnectionId> {
        let earlier = std::iter::from_fn(|| newcomers.next_earlier()).collect();
        newcomers.end_turn();
        earlier
    }

    #[test]
    fn are_left_alone_until_a_whole_turn_has_passed() {
        let mut newcomers = Newcomers::default();
        newcomers.add(id(1));
        newcomers.add(id(2));
        assert_eq!(earlier(&mut newcomers), []);
        newcomers.add(id(3));
        assert_eq!(earlier(&mut newcomers), [id(1), id(2)]);
        assert_eq!(earlier(&mut newcomers), [id(3)]);
        assert_eq!(earlier(&mut newcomers), []);
    }

    #[test]
    fn do_not_wait_for_others() {
        let mut newcomers = Newcomers::default();
        newcomers.add(id(1));
        assert_eq!(newcomers.lone(), Some(id(1)));
        assert_eq!(newcomers.lone(), None);
        newcomers.add(id(2));
        newcomers.add(id(3));
        assert_eq!(newcomers.lone(), None);
    }

    #[test]
    fn are_no_newcomers_once_there_was_time_for_them() {
        let mut newcomers = Newcomers::default();
        newcomers.add(id(1));
        newcomers.add(id(2));
        assert_eq!(earlier(&mut newcomers), []);
        assert_eq!(newcomers.next(), Some(id(1)));
        newcomers.add(id(3));
        assert_eq!(earlier(&mut newcomers), [id(2)]);
        assert_eq!(newcomers.next(), Some(id(3)));
        assert_eq!(newcomers.next(), None);
        newcomers.add(id(4));
        assert_eq!(earlier(&mut newcomers), []);
        assert_eq!(earlier(&mut newcomers), [id(4)]);
    }
}
