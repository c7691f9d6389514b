//! A guest of a switch: the flows that lead to it, and its hand on those that do not.

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use vsock_packet::{Cid, Features, Header, RawHeader, SocketType, VsockAddr};

use crate::account::{Charge, Slot};
use crate::flow::{Claim, Ends, Half};
use crate::flows::{End, Failed, Flows, Verdict};
use crate::halves::AT_ONCE;
use crate::port::{Packet, Port};
use crate::record::{ConnectionId, ConnectionKind, Recorder, SiblingConnection};
use crate::router::Refusal;
use crate::switch::{Groups, Limits};
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// A guest of a [`Switch`](crate::Switch).
///
/// Its owner, the VMM's device, [sends](Self::send) by it, [flushes](Self::flush) it when
/// the guest has posted RX buffers, and gives it [time](Self::handle_timeouts).
pub struct Member {
    cid: Cid,
    port: Arc<dyn Port>,
    max_connections: AtomicUsize,
    max_backlog: AtomicUsize,
    groups: Mutex<Arc<Groups>>,
    features: AtomicU64,
    /// What waits for siblings because of this guest, in bytes.
    charged: Arc<AtomicUsize>,
    /// Connections that this guest has opened.
    opened: Arc<AtomicUsize>,
    is_service: bool,
    recorder: Arc<Recorder>,
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

impl Member {
    pub(crate) fn new(
        cid: Cid,
        groups: Groups,
        port: Arc<dyn Port>,
        limits: Limits,
        recorder: Arc<Recorder>,
    ) -> Self {
        Self {
            cid,
            port,
            max_connections: AtomicUsize::new(limits.connections),
            max_backlog: AtomicUsize::new(limits.backlog),
            groups: Mutex::new(Arc::new(groups)),
            features: AtomicU64::new((Features::STREAM | Features::SEQPACKET).bits()),
            charged: Arc::default(),
            opened: Arc::default(),
            is_service: false,
            recorder,
            counters: Counters::default(),
            flows: Mutex::default(),
        }
    }

    /// A member that is no guest: groups do not concern it.
    pub(crate) fn service(
        cid: Cid,
        port: Arc<dyn Port>,
        limits: Limits,
        recorder: Arc<Recorder>,
    ) -> Self {
        Self {
            is_service: true,
            ..Self::new(cid, Groups::new(), port, limits, recorder)
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

    /// The guest may have this much from now on; what it has beyond that stays.
    pub fn set_limits(&self, limits: Limits) {
        self.max_connections
            .store(limits.connections, Ordering::Relaxed);
        self.max_backlog.store(limits.backlog, Ordering::Relaxed);
    }

    /// Connections with siblings there are, those included that are about to end.
    pub fn connections(&self) -> usize {
        self.flows().len()
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
        let own = Arc::clone(&lock(&self.groups));
        !own.is_disjoint(&lock(&other.groups))
    }

    /// Whether the two may be connected: they share a group, or one is no guest.
    fn may_reach(&self, other: &Self) -> bool {
        self.is_service || other.is_service || self.shares_group(other)
    }

    fn flows(&self) -> MutexGuard<'_, Flows> {
        lock(&self.flows)
    }

    /// Opens the connection that the guest asks for with `request`, to `target`, which a
    /// router has chosen. Guests that share no group are not connected, whatever the router
    /// says.
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
        let limit = self.max_connections.load(Ordering::Relaxed);
        let claim = Arc::new(Claim {
            _slot: Slot::take(&self.opened, limit).ok_or(Refusal::TooManyConnections)?,
            record: self.recorder.record(
                ConnectionKind::Sibling,
                request.src,
                request.dst,
                request.socket_type,
                now,
            ),
        });
        let [own, others] = [Arc::clone(&claim), Arc::clone(&claim)];
        self.insert(target, |charge| Half::asking(request, charge, own, now))?;
        let asked = target.insert(self, |charge| Half::asked(request, charge, others));
        if let Err(why) = asked {
            self.forget(back);
            return Err(why);
        }
        // Looked at last: whoever goes down, or changes groups, ends what it then finds, or
        // is found so here.
        let refusal = if !target.is_up() {
            Some(Refusal::NotUp)
        } else if !self.may_reach(target) {
            Some(Refusal::NoSharedGroup)
        } else {
            None
        };
        if let Some(why) = refusal {
            self.forget(back);
            // Somebody may have delivered the REQUEST meanwhile.
            target.end(ends, Half::reset, now);
            return Err(why);
        }
        claim.record.begin();
        self.counters.opened.fetch_add(1, Ordering::Relaxed);
        target.flush(now);
        Ok(())
    }

    /// Adds a half that leads here from `sender`.
    fn insert(&self, sender: &Arc<Self>, half: impl FnOnce(Charge) -> Half) -> Result<(), Refusal> {
        let mut flows = self.flows();
        let charge = flows.charge(sender.cid, &sender.charged);
        flows.insert(half(charge), Arc::clone(sender))
    }

    /// Removes a half that leads here, and returns the peer.
    fn forget(&self, ends: Ends) -> Option<Arc<Self>> {
        self.flows().remove(ends)
    }

    /// Sends packets of the guest's on connections that it has with siblings. Each goes
    /// straight into the receiver's RX queue, or waits for room there; the guest is done
    /// with them all when this returns. One of no connection is [refused](Self::refuse).
    pub fn send(&self, packets: &[Packet<'_>], now: Instant) {
        let mut own = false;
        for some in packets.chunks(AT_ONCE) {
            own |= self.send_some(some, now);
        }
        if own {
            self.flush(now);
        }
    }

    /// Sends packets that are looked up at once. `true` when the guest is to be told something
    /// itself.
    fn send_some(&self, packets: &[Packet<'_>], now: Instant) -> bool {
        let mut flows = self.flows();
        let found = flows.find_all(packets, Ends::reversed);
        let mut found = found.as_ref().map_or(&[][..], |found| &found[..]);
        let mut rest = packets;
        let mut own = false;
        loop {
            let run = flows.note_run(rest, found, now);
            drop(flows);
            let (some, others) = rest.split_at(run.len);
            own |= run.unblocked | self.settle(run.verdict, some, now);
            if others.is_empty() {
                return own;
            }
            rest = others;
            found = found.get(run.len..).unwrap_or_default();
            flows = self.flows();
        }
    }

    /// Does with packets what was found out to be their fate. `true` when the guest is to be told
    /// something itself.
    fn settle(&self, verdict: Verdict, packets: &[Packet<'_>], now: Instant) -> bool {
        match verdict {
            Verdict::Forward(peer) => {
                let failed = peer.take(packets, now);
                failed.iter().for_each(|failed| self.fail(failed, now));
                return !failed.is_empty();
            }
            Verdict::Reset(peer) => {
                self.count_violation();
                if let Some(packet) = packets.first() {
                    peer.end(Ends::of(&packet.header), Half::reset, now);
                }
            }
            Verdict::Drop => return false,
            Verdict::Stranger => {
                self.counters.strangers.fetch_add(1, Ordering::Relaxed);
                if let Some(packet) = packets.first() {
                    self.refuse(&packet.header.to_raw());
                }
            }
        }
        true
    }

    /// Ends a connection of which a packet of the guest's could not be taken.
    fn fail(&self, failed: &Failed, now: Instant) {
        let (ends, how): (_, End) = match failed {
            Failed::Violated(ends) => {
                self.count_violation();
                (ends, Half::reset)
            }
            Failed::Gone(ends) => (ends, Half::abandon),
        };
        self.flows().end(ends.reversed(), how, now);
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
        let sibling = self.flows().peer(ends);
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
        if let Some(rst) = packet.rst() {
            self.flows().answer(rst);
        }
    }

    /// Takes a run of packets that lead here. Returns what could not be taken.
    fn take(&self, packets: &[Packet<'_>], now: Instant) -> Vec<Failed> {
        let mut failed = Vec::new();
        let mut flows = self.flows();
        let found = flows.find_all(packets, |ends| ends);
        let found = |index: usize| found.as_ref()?.get(index).copied();
        let limit = self.max_backlog.load(Ordering::Relaxed);
        let mut passed = false;
        self.port.pass(&mut |receiver| {
            passed = true;
            for (index, packet) in packets.iter().enumerate() {
                flows.take(
                    packet,
                    found(index),
                    limit,
                    Some(&mut *receiver),
                    now,
                    &mut failed,
                );
            }
            flows.flush(receiver, now);
        });
        if !passed {
            for (index, packet) in packets.iter().enumerate() {
                flows.take(packet, found(index), limit, None, now, &mut failed);
            }
        }
        self.let_go(flows);
        failed
    }

    /// Takes a packet as if its sender had been held up on the way.
    #[cfg(test)]
    pub(crate) fn take_late(&self, packet: &Packet<'_>, now: Instant) {
        self.take(std::slice::from_ref(packet), now);
    }

    /// Ends a half that leads here in some way, and delivers what that takes.
    fn end(&self, ends: Ends, how: End, now: Instant) {
        if self.flows().end(ends, how, now) {
            self.flush(now);
        }
    }

    /// Delivers what waits for the guest: to be called when it has posted RX buffers.
    /// `false` when some of it still waits for one.
    pub fn flush(&self, now: Instant) -> bool {
        self.flush_held(self.flows(), now)
    }

    fn flush_held(&self, mut flows: MutexGuard<'_, Flows>, now: Instant) -> bool {
        if !flows.is_waiting() {
            return true;
        }
        let mut done = false;
        self.port
            .pass(&mut |receiver| done = flows.flush(receiver, now));
        self.let_go(flows);
        done
    }

    /// Unlocks after a pass, and only then tells whom it concerns: who wakes up finds
    /// nothing locked.
    fn let_go(&self, mut flows: MutexGuard<'_, Flows>) {
        let news = flows.is_news_to_owner();
        drop(flows);
        self.port.notify();
        if news {
            self.port.wake();
        }
    }

    /// Whether something waits for the guest's RX buffers.
    pub fn is_waiting(&self) -> bool {
        self.flows().is_waiting()
    }

    /// When [`Self::handle_timeouts`] is due, at the latest; [`Port::wake`] tells when that
    /// has become earlier. What it was due for may be gone by then.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.flows().next_timeout()
    }

    /// Does what is due by `now`, and [delivers](Self::flush) what waits.
    pub fn handle_timeouts(&self, now: Instant) {
        let mut flows = self.flows();
        let expired = flows.expire(now);
        self.flush_held(flows, now);
        for (ends, peer) in &expired {
            self.counters.timeouts.fetch_add(1, Ordering::Relaxed);
            peer.end(ends.reversed(), Half::abandon, now);
        }
    }

    /// The guest's driver starts anew: each of its connections ends at the other end.
    pub fn reset(&self, now: Instant) {
        self.end_all(false, now);
    }

    /// The guest is gone, also for those who have been routed to it and not come yet.
    pub(crate) fn leave(&self, now: Instant) {
        self.end_all(true, now);
    }

    /// Lets go of all connections, of which nobody will hear any more.
    pub(crate) fn forget_all(&self) {
        let forgotten = self.flows().take_all(true);
        // Unlocked by now: it may be the last to hold a peer.
        drop(forgotten);
    }

    fn end_all(&self, for_good: bool, now: Instant) {
        let flows = self.flows().take_all(for_good);
        for (ends, peer) in flows.peers() {
            peer.end(ends.reversed(), Half::abandon, now);
        }
    }

    /// Changes the groups, and ends the connections that they no longer allow.
    pub(crate) fn set_groups(&self, groups: Groups, now: Instant) {
        *lock(&self.groups) = Arc::new(groups);
        let peers = self.flows().peers();
        for (ends, peer) in peers {
            if !self.may_reach(&peer) {
                self.end(ends, Half::reset, now);
                peer.end(ends.reversed(), Half::reset, now);
            }
        }
    }

    /// Resets a connection by its number. `false` when the guest has no such connection.
    pub fn kill(&self, id: ConnectionId, now: Instant) -> bool {
        let Some(peer) = self.flows().end_numbered(id, now) else {
            return false;
        };
        // The same ports may be another connection's by now.
        let _ = peer.flows().end_numbered(id, now);
        self.flush(now);
        peer.flush(now);
        true
    }

    /// The guest's connections with siblings, by their numbers.
    pub fn list(&self) -> Vec<SiblingConnection> {
        let mut halves: Vec<_> = self
            .flows()
            .halves()
            .map(|(half, peer)| (half.ends(), half.snapshot(), Arc::clone(peer)))
            .collect();
        halves.sort_unstable_by_key(|(_, connection, _)| connection.id);
        let whole = |(ends, mut connection, peer): (Ends, SiblingConnection, Arc<Self>)| {
            if let Some(other) = peer.flows().half(ends.reversed()) {
                connection.merge(&other.snapshot());
            }
            connection
        };
        halves.into_iter().map(whole).collect()
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("cid", &self.cid)
            .finish_non_exhaustive()
    }
}

/// Locks, also after a panic elsewhere: what is behind these locks is whole after every
/// statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
