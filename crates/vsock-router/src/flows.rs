//! The flows that lead to a member: what is behind its lock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use vsock_packet::{Cid, Op, RawHeader};

use crate::account::{Charge, Waiting};
use crate::flow::{Delivered, Ends, Half};
use crate::halves::{Flow, Found, Halves, Whole};
use crate::member::Member;
use crate::outstanding::Aside;
use crate::port::{Packet, Receiver};
use crate::record::ConnectionId;
use crate::router::Refusal;
use crate::sync::atomic::AtomicUsize;

/// The flows that lead to a member.
#[derive(Default)]
pub(crate) struct Flows {
    halves: Halves,
    agenda: Agenda,
    /// When the owner comes by itself. A timer that is taken back leaves it as it is: telling
    /// the owner of a later time costs more than an idle turn.
    noted: Option<Instant>,
    strangers: VecDeque<RawHeader>,
    /// The member has left its switch: nothing leads here any more.
    closed: bool,
    /// What waits here, by sender.
    waiting: Waiting,
}

/// Which halves are to be looked at, and when.
#[derive(Default)]
struct Agenda {
    /// Those with something to deliver, by their turn.
    queue: BTreeMap<u64, Ends>,
    /// One for each half with a deadline, which it precedes: a deadline that is put off or
    /// taken back, as most are, leaves its timer to fire for nothing.
    timers: BTreeSet<(Instant, Ends)>,
}

impl Agenda {
    /// Follows what has become of a half. `true` when there is something to deliver.
    fn follow(&mut self, half: &mut Half, out: &Aside<'_>) -> bool {
        let ends = half.ends();
        if let Some(at) = half.deadline(out)
            && half.plan().scheduled.is_none_or(|scheduled| at < scheduled)
        {
            if let Some(old) = half.plan().scheduled.replace(at) {
                self.timers.remove(&(old, ends));
            }
            self.timers.insert((at, ends));
        }
        let something = half.has_something(out);
        if something && half.plan().turn.is_none() {
            self.line_up(half, self.last_turn());
        }
        something
    }

    fn line_up(&mut self, half: &mut Half, turn: u64) {
        half.plan().turn = Some(turn);
        self.queue.insert(turn, half.ends());
    }

    /// The turn behind all others.
    fn last_turn(&self) -> u64 {
        self.queue.last_key_value().map_or(0, |(last, _)| last + 1)
    }

    /// Whether others wait, and this half is not the first of them.
    fn is_behind(&self, ends: Ends) -> bool {
        let first = self.queue.first_key_value();
        first.is_some_and(|(_, first)| *first != ends)
    }

    fn forget(&mut self, half: &mut Half) {
        let ends = half.ends();
        if let Some(at) = half.plan().scheduled {
            self.timers.remove(&(at, ends));
        }
        if let Some(turn) = half.plan().turn {
            self.queue.remove(&turn);
        }
    }
}

/// A way to end a half: [`Half::reset`] or [`Half::abandon`].
pub(crate) type End = fn(&mut Half, Instant);

/// A packet that could not be taken.
pub(crate) enum Failed {
    /// Its sender had no right to send it; the half has been reset at this end.
    Violated(Ends),
    /// There is no such half any more.
    Gone(Ends),
}

/// Packets that share a fate.
pub(crate) struct Run {
    pub(crate) len: usize,
    pub(crate) verdict: Verdict,
    /// Payload for the sender itself may go now.
    pub(crate) unblocked: bool,
}

pub(crate) enum Verdict {
    Forward(Arc<Member>),
    /// The first packet was not to be sent: the connection is reset.
    Reset(Arc<Member>),
    /// The connection is ending.
    Drop,
    Stranger,
}

/// RSTs kept for a guest without free RX buffers, for packets of no connection. More are
/// dropped: the guest then waits for its own time-out.
const MAX_STRANGERS: usize = 1024;

impl Flows {
    /// The halves there are.
    pub(crate) fn len(&self) -> usize {
        self.halves.len()
    }

    /// Takes everything out. `for_good` when nothing is to come after it.
    pub(crate) fn take_all(&mut self, for_good: bool) -> Self {
        let closed = self.closed || for_good;
        let empty = Self {
            closed,
            ..Self::default()
        };
        std::mem::replace(self, empty)
    }

    /// Adds a half.
    pub(crate) fn insert(&mut self, half: Half, peer: Arc<Member>) -> Result<(), Refusal> {
        if self.closed {
            return Err(Refusal::NotUp);
        }
        let ends = half.ends();
        if !self.halves.insert(Flow { half, peer }) {
            // The last connection with these ends has not ended for everybody yet.
            return Err(Refusal::InUse);
        }
        self.settle(ends);
        Ok(())
    }

    /// The charge for what a sender has waiting here.
    pub(crate) fn charge(&mut self, cid: Cid, sender: &Arc<AtomicUsize>) -> Charge {
        self.waiting.of(cid, sender)
    }

    /// Who is at the other end of a half.
    pub(crate) fn peer(&self, ends: Ends) -> Option<Arc<Member>> {
        self.halves.get(ends).map(|flow| Arc::clone(&flow.peer))
    }

    /// All halves with who is at their other ends.
    pub(crate) fn peers(&self) -> Vec<(Ends, Arc<Member>)> {
        let peer = |flow: &Flow| (flow.half.ends(), Arc::clone(&flow.peer));
        let mut peers: Vec<_> = self.halves.iter().map(peer).collect();
        // What happens is not to depend on how a map hashes.
        peers.sort_unstable_by_key(|(ends, _)| *ends);
        peers
    }

    /// All halves.
    pub(crate) fn halves(&self) -> impl Iterator<Item = (&Half, &Arc<Member>)> {
        self.halves.iter().map(|flow| (&flow.half, &flow.peer))
    }

    /// One half.
    pub(crate) fn half(&self, ends: Ends) -> Option<&Half> {
        self.halves.get(ends).map(|flow| &flow.half)
    }

    /// Keeps an answer to a packet of no connection, unless there are many.
    pub(crate) fn answer(&mut self, rst: RawHeader) {
        if self.strangers.len() < MAX_STRANGERS {
            self.strangers.push_back(rst);
        }
    }

    /// Whether something is to be delivered.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.strangers.is_empty() || !self.agenda.queue.is_empty()
    }

    fn first_timeout(&self) -> Option<Instant> {
        self.agenda.timers.first().map(|(at, _)| *at)
    }

    /// When the owner is to come, as it learns it: by the time the next timer fires.
    pub(crate) fn next_timeout(&mut self) -> Option<Instant> {
        self.noted = self.noted.into_iter().chain(self.first_timeout()).min();
        self.noted
    }

    /// Whether a timer fires before its owner knows. It is told once.
    pub(crate) fn is_news_to_owner(&mut self) -> bool {
        let next = self.first_timeout();
        let earlier = next.is_some_and(|at| self.noted.is_none_or(|noted| at < noted));
        if earlier {
            self.noted = next;
        }
        earlier
    }

    /// Finds the halves that packets travel, or that lead [back](Ends::reversed), if it is
    /// more than one: that is found when it is needed.
    pub(crate) fn find_all(&self, packets: &[Packet<'_>], way: fn(Ends) -> Ends) -> Option<Found> {
        let ends = packets.iter().map(|packet| way(Ends::of(&packet.header)));
        (packets.len() > 1).then(|| self.halves.find_all(ends))
    }

    /// Looks at packets that the member sends, as many as go to the same peer. Their halves
    /// may have been `found` before.
    pub(crate) fn note_run(&mut self, packets: &[Packet<'_>], found: &[u32], now: Instant) -> Run {
        let mut run = Run {
            len: 0,
            verdict: Verdict::Drop,
            unblocked: false,
        };
        while let Some(packet) = packets.get(run.len) {
            let ends = Ends::of(&packet.header).reversed();
            let is_first = run.len == 0;
            let found = found.get(run.len).copied();
            let Some(mut flow) = self.halves.get_found(found, ends) else {
                if is_first && packet.header.op != Op::Rst {
                    run.verdict = Verdict::Stranger;
                }
                run.len = run.len.max(1);
                return run;
            };
            // Of a connection that is ending its peer knows already.
            let forwards = !flow.half.is_closing();
            let goes_on = match &run.verdict {
                Verdict::Forward(peer) => forwards && Arc::ptr_eq(peer, flow.peer),
                _ => is_first,
            };
            if !goes_on {
                return run;
            }
            if flow
                .half
                .note_sent(&packet.header, now, &mut flow.out)
                .is_err()
            {
                // Alone in its run, so that those before it are not lost. On a connection
                // that is ending it is dropped like the right ones.
                if is_first && forwards {
                    run.verdict = Verdict::Reset(Arc::clone(flow.peer));
                    run.unblocked = true;
                    self.end(ends, Half::reset, now);
                }
                run.len = run.len.max(1);
                return run;
            }
            run.len += 1;
            if is_first && forwards {
                run.verdict = Verdict::Forward(Arc::clone(flow.peer));
            }
            if packet.header.op == Op::Rst || flow.half.is_over() {
                self.remove(ends);
            } else {
                run.unblocked |= self.agenda.follow(flow.half, &flow.out);
            }
            if !forwards {
                return run;
            }
        }
        run
    }

    /// Takes a packet that leads here. Its half may have been `found` before.
    pub(crate) fn take(
        &mut self,
        packet: &Packet<'_>,
        found: Option<u32>,
        limit: usize,
        receiver: Option<&mut dyn Receiver>,
        now: Instant,
        failed: &mut Vec<Failed>,
    ) {
        let ends = Ends::of(&packet.header);
        let Some(Whole { half, mut out, .. }) = self.halves.get_found(found, ends) else {
            // An RST needs no end that it could reach.
            if packet.header.op != Op::Rst {
                failed.push(Failed::Gone(ends));
            }
            return;
        };
        // Where others wait for buffers nobody overtakes them.
        let receiver = receiver.filter(|_| !self.agenda.is_behind(ends));
        let taken = half
            .accept(&packet.header, now)
            .and_then(|()| match receiver {
                Some(receiver) => half.deliver(packet, limit, receiver, now, &mut out),
                None => half.keep(packet, limit),
            });
        if taken.is_err() {
            half.reset(now);
            failed.push(Failed::Violated(ends));
        }
        if half.is_over() {
            self.remove(ends);
        } else {
            self.agenda.follow(half, &out);
        }
    }

    /// Ends a half in some way. `true` when there is something to deliver for that.
    pub(crate) fn end(&mut self, ends: Ends, how: End, now: Instant) -> bool {
        let Some(flow) = self.halves.get_mut(ends) else {
            return false;
        };
        how(flow.half, now);
        self.settle(ends)
    }

    /// Resets the half that belongs to the connection of this number, and returns the peer.
    pub(crate) fn end_numbered(&mut self, id: ConnectionId, now: Instant) -> Option<Arc<Member>> {
        let is_meant = |(half, _): &(&Half, &Arc<Member>)| half.record().id() == id;
        let (half, peer) = self.halves().find(is_meant)?;
        let (ends, peer) = (half.ends(), Arc::clone(peer));
        self.end(ends, Half::reset, now);
        Some(peer)
    }

    /// Delivers what waits, in turn. `false` when the receiver ran out of buffers.
    pub(crate) fn flush(&mut self, receiver: &mut dyn Receiver, now: Instant) -> bool {
        while let Some(rst) = self.strangers.front() {
            if !receiver.put_control(rst) {
                return false;
            }
            self.strangers.pop_front();
        }
        while let Some((turn, ends)) = self.agenda.queue.pop_first() {
            let Some(mut flow) = self.halves.get_mut(ends) else {
                continue;
            };
            flow.half.plan().turn = None;
            let before = flow.half.progress(&flow.out);
            let delivered = flow.half.flush(receiver, now, &mut flow.out);
            if delivered == Delivered::NoBuffer {
                // Who got some leaves the next buffers to others.
                let next = flow.half.progress(&flow.out) != before;
                let turn = if next { self.agenda.last_turn() } else { turn };
                self.agenda.line_up(flow.half, turn);
                return false;
            }
            self.settle(ends);
        }
        true
    }

    /// Follows what has become of a half. `true` when there is something to deliver.
    fn settle(&mut self, ends: Ends) -> bool {
        let Some(flow) = self.halves.get_mut(ends) else {
            return false;
        };
        if flow.half.is_over() {
            self.remove(ends);
            return false;
        }
        self.agenda.follow(flow.half, &flow.out)
    }

    pub(crate) fn remove(&mut self, ends: Ends) -> Option<Arc<Member>> {
        let mut flow = self.halves.remove(ends)?;
        self.agenda.forget(&mut flow.half);
        Some(flow.peer)
    }

    /// Does what is due. Returns the connections that have waited for an answer too long,
    /// reset at this end.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<(Ends, Arc<Member>)> {
        self.noted = self.noted.filter(|at| *at > now);
        let mut expired = Vec::new();
        while let Some(&(at, ends)) = self.agenda.timers.first()
            && at <= now
        {
            self.agenda.timers.pop_first();
            let Some(mut flow) = self.halves.get_mut(ends) else {
                continue;
            };
            flow.half.plan().scheduled = None;
            if !flow.half.expire(now, &mut flow.out) {
                flow.half.reset(now);
                expired.push((ends, Arc::clone(flow.peer)));
            }
            self.settle(ends);
        }
        expired
    }
}
