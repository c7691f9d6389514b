//! A guest of a switch: the flows that lead to it, and its hand on those that do not.

use std::collections::hash_map::Entry as MapEntry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vsock_packet::{Cid, Features, Header, Op, RawHeader, SocketType, VsockAddr};

use crate::flow::{Charged, Delivered, Ends, Half, Violation};
use crate::port::{Packet, Port, Receiver};
use crate::router::Refusal;
use crate::switch::{Groups, Limits};

/// RSTs kept for a guest without free RX buffers, for packets of no connection. More are
/// dropped: the guest then waits for its own time-out.
const MAX_STRANGERS: usize = 1024;

/// A guest of a [`Switch`](crate::Switch).
///
/// Its owner, the VMM's device, [sends](Self::send) by it, [flushes](Self::flush) it when
/// the guest has posted RX buffers, and gives it [time](Self::handle_timeouts).
pub struct Member {
    cid: Cid,
    port: Arc<dyn Port>,
    limits: Limits,
    groups: Mutex<Groups>,
    features: AtomicU64,
    charged: Charged,
    counters: Counters,
    flows: Mutex<Flows>,
}

/// What a member counts. All of them only grow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct SiblingCounters {
    /// Connections the guest opened to siblings.
    pub opened: u64,
    /// Connections reset because the guest sent what it had no right to.
    pub violations: u64,
    /// Connections reset because an end did not answer in time.
    pub timeouts: u64,
    /// Packets of no connection, answered with an RST.
    pub strangers: u64,
}

#[derive(Debug, Default)]
struct Counters {
    opened: AtomicU64,
    violations: AtomicU64,
    timeouts: AtomicU64,
    strangers: AtomicU64,
}

/// The flows that lead to a member.
#[derive(Default)]
struct Flows {
    halves: HashMap<Ends, Flow>,
    /// Those with something to deliver, in turn.
    queue: VecDeque<Ends>,
    timers: BTreeSet<(Instant, Ends)>,
    /// The time-out that the owner knows of.
    noted: Option<Instant>,
    strangers: VecDeque<RawHeader>,
}

struct Flow {
    half: Half,
    peer: Arc<Member>,
}

impl Member {
    pub(crate) fn new(cid: Cid, groups: Groups, port: Arc<dyn Port>, limits: Limits) -> Self {
        Self {
            cid,
            port,
            limits,
            groups: Mutex::new(groups),
            features: AtomicU64::new((Features::STREAM | Features::SEQPACKET).bits()),
            charged: Charged::default(),
            counters: Counters::default(),
            flows: Mutex::default(),
        }
    }

    /// The member's CID.
    pub fn cid(&self) -> Cid {
        self.cid
    }

    /// What the member counted so far.
    pub fn counters(&self) -> SiblingCounters {
        SiblingCounters {
            opened: self.counters.opened.load(Ordering::Relaxed),
            violations: self.counters.violations.load(Ordering::Relaxed),
            timeouts: self.counters.timeouts.load(Ordering::Relaxed),
            strangers: self.counters.strangers.load(Ordering::Relaxed),
        }
    }

    /// Connections with siblings there are, those included that are about to end.
    pub fn connections(&self) -> usize {
        self.flows().halves.len()
    }

    /// What waits for siblings because of this guest, in bytes.
    pub fn charged(&self) -> usize {
        self.charged.load(Ordering::Relaxed)
    }

    /// The guest's driver takes sockets of the types in these features.
    pub fn set_features(&self, features: Features) {
        self.features.store(features.bits(), Ordering::Relaxed);
    }

    /// Whether the guest's driver takes sockets of this type.
    pub fn takes(&self, socket_type: SocketType) -> bool {
        let features = Features::from_bits_truncate(self.features.load(Ordering::Relaxed));
        features.contains(match socket_type {
            SocketType::Stream => Features::STREAM,
            SocketType::Seqpacket => Features::SEQPACKET,
        })
    }

    pub(crate) fn is_up(&self) -> bool {
        self.port.is_up()
    }

    pub(crate) fn shares_group(&self, other: &Self) -> bool {
        // One after the other: nobody holds two locks.
        let own = lock(&self.groups).clone();
        !own.is_disjoint(&lock(&other.groups))
    }

    fn flows(&self) -> MutexGuard<'_, Flows> {
        lock(&self.flows)
    }

    /// Opens the connection that the guest asks for with `request`, to `target`, which a
    /// router has chosen.
    ///
    /// # Errors
    ///
    /// A [`Refusal`]: the caller answers the guest with [`Self::refuse`].
    pub fn open(
        self: &Arc<Self>,
        request: &Header,
        target: &Arc<Self>,
        now: Instant,
    ) -> Result<(), Refusal> {
        let ends = Ends::of(request);
        let back = ends.reversed();
        if let Some(peer) = self.forget(back) {
            // The guest asks again for what it has: it has lost it.
            peer.end(ends, Half::reset, now);
        }
        let charged = Arc::clone(&target.charged);
        let half = Half::asking(request, charged, now);
        self.insert(back, half, target)?;
        let charged = Arc::clone(&self.charged);
        let half = Half::asked(request, charged);
        let asked = if target.is_up() {
            target.insert(ends, half, self)
        } else {
            Err(Refusal::NotUp)
        };
        if let Err(why) = asked {
            self.forget(back);
            return Err(why);
        }
        self.counters.opened.fetch_add(1, Ordering::Relaxed);
        target.flush(now);
        target.wake_if_needed();
        Ok(())
    }

    fn insert(&self, ends: Ends, half: Half, peer: &Arc<Self>) -> Result<(), Refusal> {
        let mut flows = self.flows();
        if flows.halves.len() >= self.limits.connections {
            return Err(Refusal::TooManyConnections);
        }
        if flows.halves.contains_key(&ends) {
            // The last connection with these ends has not ended for everybody yet.
            return Err(Refusal::InUse);
        }
        flows.halves.insert(
            ends,
            Flow {
                half,
                peer: Arc::clone(peer),
            },
        );
        flows.settle(ends);
        Ok(())
    }

    /// Removes a half that leads here, and returns the peer.
    fn forget(&self, ends: Ends) -> Option<Arc<Self>> {
        self.flows().remove(ends)
    }

    /// Sends packets of the guest's on connections that it has with siblings. Each goes
    /// straight into the receiver's RX queue, or waits for room there; the guest is done
    /// with them all when this returns. One of no connection is [refused](Self::refuse).
    pub fn send(&self, packets: &[Packet<'_>], now: Instant) {
        let mut rest = packets;
        let mut own = false;
        while !rest.is_empty() {
            let run = self.flows().note_run(rest, now);
            own |= run.unblocked;
            let (some, others) = rest.split_at(run.len);
            match run.verdict {
                Verdict::Forward(peer) => {
                    for ends in peer.take(some, now) {
                        self.count_violation();
                        self.flows().end(ends.reversed(), Half::reset);
                        own = true;
                    }
                }
                Verdict::Reset(peer) => {
                    self.count_violation();
                    own = true;
                    if let Some(packet) = some.first() {
                        peer.end(Ends::of(&packet.header), Half::reset, now);
                    }
                }
                Verdict::Drop => (),
                Verdict::Stranger => {
                    own = true;
                    self.counters.strangers.fetch_add(1, Ordering::Relaxed);
                    if let Some(packet) = some.first() {
                        self.refuse(&packet.header.to_raw());
                    }
                }
            }
            rest = others;
        }
        if own {
            self.flush(now);
        }
    }

    fn count_violation(&self) {
        self.counters.violations.fetch_add(1, Ordering::Relaxed);
    }

    /// Resets the guest's connection between its end `own` and the sibling's end `peer`,
    /// because something of it is lost. `false` when there is none.
    pub fn ruin(&self, own: VsockAddr, peer: VsockAddr, now: Instant) -> bool {
        let ends = Ends {
            to: own,
            from: peer,
        };
        let sibling = self
            .flows()
            .halves
            .get(&ends)
            .map(|flow| Arc::clone(&flow.peer));
        if let Some(sibling) = &sibling {
            self.count_violation();
            self.end(ends, Half::reset, now);
            sibling.end(ends.reversed(), Half::reset, now);
        }
        sibling.is_some()
    }

    /// Answers a packet of the guest's that belongs to no connection, or asks for one
    /// that it does not get. The RST goes out with the next [`Self::flush`].
    pub fn refuse(&self, packet: &RawHeader) {
        let Some(rst) = packet.rst() else { return };
        let mut flows = self.flows();
        if flows.strangers.len() < MAX_STRANGERS {
            flows.strangers.push_back(rst);
        }
    }

    /// Takes a run of packets that lead here. Returns the halves that their sender has
    /// violated; they have been reset at this end.
    fn take(&self, packets: &[Packet<'_>], now: Instant) -> Vec<Ends> {
        let mut violated = Vec::new();
        let mut flows = self.flows();
        let limit = self.limits.backlog;
        let mut passed = false;
        self.port.pass(&mut |receiver| {
            passed = true;
            for packet in packets {
                flows.take(packet, limit, Some(&mut *receiver), now, &mut violated);
            }
            flows.flush(receiver, now);
        });
        if !passed {
            for packet in packets {
                flows.take(packet, limit, None, now, &mut violated);
            }
        }
        drop(flows);
        self.wake_if_needed();
        violated
    }

    /// Ends a half that leads here in some way, and delivers what that takes.
    fn end(&self, ends: Ends, how: impl FnOnce(&mut Half), now: Instant) {
        if self.flows().end(ends, how) {
            self.flush(now);
        }
    }

    /// Delivers what waits for the guest: to be called when it has posted RX buffers.
    /// `false` when some of it still waits for one.
    pub fn flush(&self, now: Instant) -> bool {
        let mut flows = self.flows();
        if flows.strangers.is_empty() && flows.queue.is_empty() {
            return true;
        }
        let mut done = false;
        self.port
            .pass(&mut |receiver| done = flows.flush(receiver, now));
        done
    }

    /// Whether something waits for the guest's RX buffers.
    pub fn is_waiting(&self) -> bool {
        let flows = self.flows();
        !flows.strangers.is_empty() || !flows.queue.is_empty()
    }

    /// When [`Self::handle_timeouts`] is due; [`Port::wake`] tells when that has changed.
    pub fn next_timeout(&self) -> Option<Instant> {
        let mut flows = self.flows();
        flows.noted = flows.timers.first().map(|(at, _)| *at);
        flows.noted
    }

    /// Does what is due by `now`.
    pub fn handle_timeouts(&self, now: Instant) {
        let mut flows = self.flows();
        let expired = flows.expire(now);
        drop(flows);
        for (ends, peer) in &expired {
            self.counters.timeouts.fetch_add(1, Ordering::Relaxed);
            peer.end(ends.reversed(), Half::reset, now);
        }
        self.flush(now);
    }

    fn wake_if_needed(&self) {
        let mut flows = self.flows();
        let next = flows.timers.first().map(|(at, _)| *at);
        let earlier = next.is_some_and(|at| flows.noted.is_none_or(|noted| at < noted));
        if earlier {
            flows.noted = next;
            drop(flows);
            self.port.wake();
        }
    }

    /// The guest is gone, or starts anew: each of its connections ends at the other end.
    pub fn reset(&self, now: Instant) {
        let flows = std::mem::take(&mut *self.flows());
        for (ends, flow) in flows.halves {
            flow.peer.end(ends.reversed(), Half::abandon, now);
        }
    }

    /// Changes the groups, and ends the connections that they no longer allow.
    pub(crate) fn set_groups(&self, groups: Groups, now: Instant) {
        *lock(&self.groups) = groups;
        let peers: Vec<_> = self
            .flows()
            .halves
            .iter()
            .map(|(ends, flow)| (*ends, Arc::clone(&flow.peer)))
            .collect();
        for (ends, peer) in peers {
            if !self.shares_group(&peer) {
                self.end(ends, Half::reset, now);
                peer.end(ends.reversed(), Half::reset, now);
            }
        }
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("cid", &self.cid)
            .finish_non_exhaustive()
    }
}

/// Packets that share a fate.
struct Run {
    len: usize,
    verdict: Verdict,
    /// Payload for the sender itself may go now.
    unblocked: bool,
}

enum Verdict {
    Forward(Arc<Member>),
    /// The first packet was not to be sent: the connection is reset.
    Reset(Arc<Member>),
    /// The connection is ending.
    Drop,
    Stranger,
}

impl Flows {
    /// Looks at packets that the member sends, as many as go to the same peer.
    fn note_run(&mut self, packets: &[Packet<'_>], now: Instant) -> Run {
        let mut run = Run {
            len: 0,
            verdict: Verdict::Drop,
            unblocked: false,
        };
        for packet in packets {
            let ends = Ends::of(&packet.header).reversed();
            let verdict = match self.halves.get(&ends) {
                None if packet.header.op == Op::Rst => Verdict::Drop,
                None => Verdict::Stranger,
                Some(flow) if flow.half.is_closing() && packet.header.op != Op::Rst => {
                    Verdict::Drop
                }
                Some(flow) => Verdict::Forward(Arc::clone(&flow.peer)),
            };
            let goes_on = match (&run.verdict, &verdict) {
                _ if run.len == 0 => true,
                (Verdict::Forward(one), Verdict::Forward(other)) => Arc::ptr_eq(one, other),
                _ => false,
            };
            if !goes_on {
                return run;
            }
            let noted = self.note(ends, &packet.header, now);
            match (noted, verdict) {
                (Ok(unblocked), verdict) => {
                    run.unblocked |= unblocked;
                    run.verdict = verdict;
                    run.len += 1;
                }
                // Alone in its run, so that those before it are not lost.
                (Err(_), Verdict::Forward(peer)) if run.len == 0 => {
                    self.end(ends, Half::reset);
                    return Run {
                        len: 1,
                        verdict: Verdict::Reset(peer),
                        unblocked: true,
                    };
                }
                (Err(_), _) => return run,
            }
            if !matches!(run.verdict, Verdict::Forward(_)) {
                return run;
            }
        }
        run
    }

    /// Notes a packet of the member's own. `true` when payload for it may go now.
    fn note(&mut self, ends: Ends, header: &Header, now: Instant) -> Result<bool, Violation> {
        let Some(flow) = self.halves.get_mut(&ends) else {
            return Ok(false);
        };
        flow.half.note_sent(header, now)?;
        if header.op == Op::Rst {
            self.remove(ends);
            return Ok(false);
        }
        Ok(self.settle(ends))
    }

    /// Takes a packet that leads here.
    fn take(
        &mut self,
        packet: &Packet<'_>,
        limit: usize,
        receiver: Option<&mut dyn Receiver>,
        now: Instant,
        violated: &mut Vec<Ends>,
    ) {
        let ends = Ends::of(&packet.header);
        let Some(flow) = self.halves.get_mut(&ends) else {
            return;
        };
        let half = &mut flow.half;
        let taken = half.accept(&packet.header).and_then(|()| match receiver {
            // Others wait for buffers: nobody overtakes them.
            Some(receiver) if self.queue.is_empty() || half.queued => {
                half.deliver(packet, limit, receiver, now)
            }
            _ => half.keep(packet, limit).map(|()| Delivered::NoBuffer),
        });
        if taken.is_err() {
            half.reset();
            violated.push(ends);
        }
        self.settle(ends);
    }

    /// Ends a half in some way. `true` when there is something to deliver for that.
    fn end(&mut self, ends: Ends, how: impl FnOnce(&mut Half)) -> bool {
        let Some(flow) = self.halves.get_mut(&ends) else {
            return false;
        };
        how(&mut flow.half);
        self.settle(ends)
    }

    /// Delivers what waits, in turn. `false` when the receiver ran out of buffers.
    fn flush(&mut self, receiver: &mut dyn Receiver, now: Instant) -> bool {
        while let Some(rst) = self.strangers.front() {
            if !receiver.put_control(rst) {
                return false;
            }
            self.strangers.pop_front();
        }
        while let Some(ends) = self.queue.pop_front() {
            let Some(flow) = self.halves.get_mut(&ends) else {
                continue;
            };
            flow.half.queued = false;
            let delivered = flow.half.flush(receiver, now);
            if delivered == Delivered::NoBuffer {
                flow.half.queued = true;
                self.queue.push_front(ends);
                return false;
            }
            self.settle(ends);
        }
        true
    }

    /// Follows what has become of a half. `true` when there is something to deliver.
    fn settle(&mut self, ends: Ends) -> bool {
        let Some(flow) = self.halves.get_mut(&ends) else {
            return false;
        };
        if flow.half.is_over() {
            self.remove(ends);
            return false;
        }
        let (old, new) = (flow.half.scheduled, flow.half.deadline());
        flow.half.scheduled = new;
        let something = flow.half.has_something();
        if something && !flow.half.queued {
            flow.half.queued = true;
            self.queue.push_back(ends);
        }
        if old != new {
            if let Some(at) = old {
                self.timers.remove(&(at, ends));
            }
            if let Some(at) = new {
                self.timers.insert((at, ends));
            }
        }
        something
    }

    fn remove(&mut self, ends: Ends) -> Option<Arc<Member>> {
        let MapEntry::Occupied(found) = self.halves.entry(ends) else {
            return None;
        };
        let flow = found.remove();
        if let Some(at) = flow.half.scheduled {
            self.timers.remove(&(at, ends));
        }
        Some(flow.peer)
    }

    /// Does what is due. Returns the connections that have waited for an answer too long,
    /// reset at this end.
    fn expire(&mut self, now: Instant) -> Vec<(Ends, Arc<Member>)> {
        let mut expired = Vec::new();
        while let Some(&(at, ends)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            let Some(flow) = self.halves.get_mut(&ends) else {
                continue;
            };
            flow.half.scheduled = None;
            if !flow.half.expire(now) {
                flow.half.reset();
                expired.push((ends, Arc::clone(&flow.peer)));
            }
            self.settle(ends);
        }
        expired
    }
}

/// Locks, also after a panic elsewhere: what is behind these locks is whole after every
/// statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
