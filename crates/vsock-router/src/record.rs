//! What is known of each connection while it lasts: for lists, and for observers.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use vsock_packet::{SocketType, VsockAddr};

use crate::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// A connection's number: never given twice by the same [`Recorder`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnectionId(u64);

impl ConnectionId {
    /// The number itself.
    pub fn value(self) -> u64 {
        self.0
    }
}

impl From<u64> for ConnectionId {
    fn from(value: u64) -> Self {
        Self(value)
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who asked whom for a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ConnectionKind {
    /// A guest asked an application of the host.
    GuestToHost,
    /// An application of the host asked a guest.
    HostToGuest,
    /// A guest asked a sibling, or a service of the VMM's own.
    Sibling,
}

/// How far a connection has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ConnectionState {
    /// Asked for, and not answered yet.
    Requested,
    /// Both ends have it.
    Established,
    /// An end is told that it is over, or still gets what was sent before.
    Closing,
}

/// Learns of connections as they come and go. The methods are called on guests' workers,
/// some of them under the lock of a member: they wait for nothing and call no member.
pub trait Observer: Send + Sync {
    /// The other end accepted: the connection is established.
    fn opened(&self, connection: &Record);
    /// The other end did not accept: it refused, took too long, or left.
    fn refused(&self, connection: &Record);
    /// An established connection is over, for both ends.
    fn closed(&self, connection: &Record);
}

/// Numbers the connections of a process and tells an [`Observer`] of them.
#[derive(Default)]
pub struct Recorder {
    last: AtomicU64,
    observer: Option<Arc<dyn Observer>>,
}

impl Recorder {
    /// One that tells `observer`.
    pub fn observed_by(observer: Arc<dyn Observer>) -> Self {
        Self {
            last: AtomicU64::default(),
            observer: Some(observer),
        }
    }

    /// A record of the connection that `from` is about to ask `to` for. Nothing is told
    /// of it until it is [begun](Record::begin).
    pub fn record(
        self: &Arc<Self>,
        kind: ConnectionKind,
        from: VsockAddr,
        to: VsockAddr,
        socket_type: SocketType,
        now: Instant,
    ) -> Record {
        Record {
            id: ConnectionId(self.last.fetch_add(1, Ordering::Relaxed) + 1),
            kind,
            from,
            to,
            socket_type,
            since: now,
            stage: AtomicU8::new(NEW),
            sent: AtomicU64::default(),
            received: AtomicU64::default(),
            recorder: Arc::clone(self),
        }
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}

/// The stages of a record: what was told of it.
const NEW: u8 = 0;
const BEGUN: u8 = 1;
const ESTABLISHED: u8 = 2;

/// A connection, as lists and observers know it. When this is dropped the connection is
/// over for whoever had it.
#[derive(Debug)]
pub struct Record {
    id: ConnectionId,
    kind: ConnectionKind,
    from: VsockAddr,
    to: VsockAddr,
    socket_type: SocketType,
    since: Instant,
    stage: AtomicU8,
    sent: AtomicU64,
    received: AtomicU64,
    recorder: Arc<Recorder>,
}

impl Record {
    /// Its number.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Who asked whom.
    pub fn kind(&self) -> ConnectionKind {
        self.kind
    }

    /// The end that asked.
    pub fn from(&self) -> VsockAddr {
        self.from
    }

    /// The end that was asked.
    pub fn to(&self) -> VsockAddr {
        self.to
    }

    /// The kind of socket at both ends.
    pub fn socket_type(&self) -> SocketType {
        self.socket_type
    }

    /// When it was asked for.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Payload in bytes that the end that asked has sent, and what it was sent. Of a
    /// connection between siblings these are known when it is over, and
    /// [`Member::list`](crate::Member::list) tells them before.
    pub fn bytes(&self) -> (u64, u64) {
        (
            self.sent.load(Ordering::Relaxed),
            self.received.load(Ordering::Relaxed),
        )
    }

    /// Counts payload that the end `sender` has sent, in bytes. For each end it is called
    /// by one thread at a time.
    pub fn count(&self, sender: VsockAddr, bytes: u64) {
        let counter = if sender == self.from {
            &self.sent
        } else {
            &self.received
        };
        // Nobody else writes, so this needs no locked instruction.
        counter.store(counter.load(Ordering::Relaxed) + bytes, Ordering::Relaxed);
    }

    /// Whether the other end has accepted.
    pub fn is_established(&self) -> bool {
        self.stage.load(Ordering::Acquire) == ESTABLISHED
    }

    /// The REQUEST is on its way: an end of the connection is told from now on.
    pub fn begin(&self) {
        // It may have been answered meanwhile.
        let _ = self
            .stage
            .compare_exchange(NEW, BEGUN, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The other end accepted.
    pub fn establish(&self) {
        let before = self.stage.swap(ESTABLISHED, Ordering::AcqRel);
        if before != ESTABLISHED
            && let Some(observer) = &self.recorder.observer
        {
            observer.opened(self);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Some(observer) = &self.recorder.observer else {
            return;
        };
        match *self.stage.get_mut() {
            BEGUN => observer.refused(self),
            ESTABLISHED => observer.closed(self),
            _ => (),
        }
    }
}

/// A connection between siblings at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SiblingConnection {
    /// Its number.
    pub id: ConnectionId,
    /// The end that asked.
    pub from: VsockAddr,
    /// The end that was asked.
    pub to: VsockAddr,
    /// The kind of socket at both ends.
    pub socket_type: SocketType,
    /// How far it has come.
    pub state: ConnectionState,
    /// Payload in bytes that `from` has sent.
    pub sent: u64,
    /// Payload in bytes that `to` has sent.
    pub received: u64,
    /// When it was asked for.
    pub since: Instant,
}

impl SiblingConnection {
    /// Adds what is known of the same connection at its other end.
    pub(crate) fn merge(&mut self, other: &Self) {
        if self.id == other.id {
            self.sent = self.sent.max(other.sent);
            self.received = self.received.max(other.received);
            // An answer that is on its way, and an end that knows no more of it.
            self.state = match (self.state, other.state) {
                (ConnectionState::Established, ConnectionState::Established) => self.state,
                (ConnectionState::Closing, _) | (_, ConnectionState::Closing) => {
                    ConnectionState::Closing
                }
                _ => ConnectionState::Requested,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use vsock_packet::Cid;

    use super::*;

    #[derive(Default)]
    struct Diary(Mutex<Vec<(&'static str, u64)>>);

    impl Diary {
        fn note(&self, what: &'static str, connection: &Record) {
            self.0.lock().unwrap().push((what, connection.id().value()));
        }
    }

    impl Observer for Diary {
        fn opened(&self, connection: &Record) {
            self.note("opened", connection);
        }
        fn refused(&self, connection: &Record) {
            self.note("refused", connection);
        }
        fn closed(&self, connection: &Record) {
            self.note("closed", connection);
        }
    }

    #[test]
    fn tells_of_what_was_begun_and_how_it_ended() {
        let diary = Arc::new(Diary::default());
        let recorder = Arc::new(Recorder::observed_by(Arc::<Diary>::clone(&diary)));
        let end = VsockAddr::new(Cid::new(3), 1);
        let now = Instant::now();
        let record = || recorder.record(ConnectionKind::Sibling, end, end, SocketType::Stream, now);
        drop(record());
        record().begin();
        let accepted = record();
        // The answer may come before the caller of `begin` gets to it.
        accepted.establish();
        accepted.begin();
        drop(accepted);
        assert_eq!(
            *diary.0.lock().unwrap(),
            [("refused", 2), ("opened", 3), ("closed", 3)]
        );
    }
}
