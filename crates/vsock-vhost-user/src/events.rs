//! What happens, for whoever wants to follow it.
//!
//! Workers publish without waiting: a subscriber that does not keep up misses events and
//! is told how many. While nobody subscribes an event costs one load of an atomic.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use thiserror::Error;
use vsock_packet::{GuestCid, PortNumber, SocketType, VsockAddr};
use vsock_router::{ConnectionId, ConnectionKind, Observer, Record, Refusal};

/// Events that may wait for one subscriber.
const QUEUE_LENGTH: usize = 4096;

/// Something that happened to a [`Server`](crate::Server)'s guests.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A guest was added.
    GuestAdded {
        /// The guest.
        cid: GuestCid,
    },
    /// A guest's groups, routes or limits were changed.
    GuestChanged {
        /// The guest.
        cid: GuestCid,
    },
    /// A guest was removed.
    GuestRemoved {
        /// The guest.
        cid: GuestCid,
    },
    /// A guest's driver is ready, or its VM goes on.
    GuestUp {
        /// The guest.
        cid: GuestCid,
    },
    /// A guest's VM was stopped, and may go on.
    GuestPaused {
        /// The guest.
        cid: GuestCid,
    },
    /// A guest's driver starts anew, or its VM has ended.
    GuestDown {
        /// The guest.
        cid: GuestCid,
    },
    /// A connection was accepted.
    ConnectionOpened {
        /// Its number.
        id: ConnectionId,
        /// Who asked whom.
        kind: ConnectionKind,
        /// The kind of socket.
        socket_type: SocketType,
        /// The end that asked.
        from: VsockAddr,
        /// The end that was asked.
        to: VsockAddr,
    },
    /// A connection that was accepted is over.
    ConnectionClosed {
        /// Its number.
        id: ConnectionId,
        /// Who asked whom.
        kind: ConnectionKind,
        /// The kind of socket.
        socket_type: SocketType,
        /// The end that asked.
        from: VsockAddr,
        /// The end that was asked.
        to: VsockAddr,
        /// Payload in bytes that the end that asked has sent.
        sent: u64,
        /// Payload in bytes that it was sent.
        received: u64,
        /// How long it lasted.
        age: Duration,
    },
    /// A connection was refused.
    Refused {
        /// The end that asked.
        from: VsockAddr,
        /// The end that was asked.
        to: VsockAddr,
        /// Why.
        why: Refusal,
    },
    /// An application of the host was turned away before the guest was asked.
    ClientRefused {
        /// The guest it wanted.
        cid: GuestCid,
        /// The port it wanted, if it got to say so.
        port: Option<PortNumber>,
        /// Why.
        why: ClientRefusal,
    },
    /// This subscriber did not keep up.
    Missed {
        /// So many events, at about this point.
        count: u64,
    },
}

/// Why an application of the host was turned away.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Error)]
#[non_exhaustive]
pub enum ClientRefusal {
    /// The guest's driver is not there.
    #[error("the guest is not up")]
    NotUp,
    /// The guest has as many connections as it may have, or no host port is left.
    #[error("the guest has too many connections")]
    TooManyConnections,
    /// It sent no `CONNECT <port>`, or not in time.
    #[error("no proper CONNECT line came in time")]
    NoConnect,
}

/// Why there is no event.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum NoEvent {
    /// None happened in the time given.
    #[error("nothing happened in time")]
    Yet,
    /// The server is gone.
    #[error("the server has ended")]
    Ever,
}

/// The events of a server from [`Server::events`](crate::Server::events) on, in the order
/// in which each thread published them.
pub struct Events {
    queue: Receiver<Event>,
    missed: Arc<AtomicU64>,
    number: usize,
    hub: Weak<Hub>,
}

impl Events {
    /// The next event; waits for one as long as `timeout`.
    ///
    /// # Errors
    ///
    /// [`NoEvent`], for now or for good.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Event, NoEvent> {
        let count = self.missed.swap(0, Ordering::Relaxed);
        if count > 0 {
            return Ok(Event::Missed { count });
        }
        self.queue
            .recv_timeout(timeout)
            .map_err(|error| match error {
                RecvTimeoutError::Timeout => NoEvent::Yet,
                RecvTimeoutError::Disconnected => NoEvent::Ever,
            })
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.unsubscribe(self.number);
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

/// Where events come together and go out.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    subscribers: RwLock<Vec<Subscriber>>,
    /// How many there are, to be seen without a lock.
    count: AtomicUsize,
    last_number: AtomicUsize,
}

#[derive(Debug)]
struct Subscriber {
    number: usize,
    queue: Sender<Event>,
    missed: Arc<AtomicU64>,
}

impl Hub {
    pub(crate) fn subscribe(self: &Arc<Self>) -> Events {
        let (sender, queue) = bounded(QUEUE_LENGTH);
        let missed = Arc::new(AtomicU64::default());
        let number = self.last_number.fetch_add(1, Ordering::Relaxed);
        self.change(|subscribers| {
            subscribers.push(Subscriber {
                number,
                queue: sender,
                missed: Arc::clone(&missed),
            });
        });
        Events {
            queue,
            missed,
            number,
            hub: Arc::downgrade(self),
        }
    }

    fn unsubscribe(&self, number: usize) {
        self.change(|subscribers| subscribers.retain(|one| one.number != number));
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Subscriber>)) {
        let mut subscribers = self
            .subscribers
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        change(&mut subscribers);
        self.count.store(subscribers.len(), Ordering::Release);
    }

    /// Tells all subscribers, if there are any.
    pub(crate) fn publish(&self, event: impl FnOnce() -> Event) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let event = event();
        let subscribers = self
            .subscribers
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        for subscriber in subscribers.iter() {
            if let Err(TrySendError::Full(_)) = subscriber.queue.try_send(event.clone()) {
                subscriber.missed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Observer for Hub {
    fn opened(&self, connection: &Record) {
        self.publish(|| Event::ConnectionOpened {
            id: connection.id(),
            kind: connection.kind(),
            socket_type: connection.socket_type(),
            from: connection.from(),
            to: connection.to(),
        });
    }

    fn refused(&self, connection: &Record) {
        self.publish(|| Event::Refused {
            from: connection.from(),
            to: connection.to(),
            why: Refusal::NotListening,
        });
    }

    fn closed(&self, connection: &Record) {
        self.publish(|| {
            let (sent, received) = connection.bytes();
            Event::ConnectionClosed {
                id: connection.id(),
                kind: connection.kind(),
                socket_type: connection.socket_type(),
                from: connection.from(),
                to: connection.to(),
                sent,
                received,
                age: connection.since().elapsed(),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(cid: u64) -> Event {
        Event::GuestAdded {
            cid: GuestCid::new(cid).unwrap(),
        }
    }

    #[test]
    fn each_subscriber_gets_what_happens_after_it_came() {
        let hub = Arc::new(Hub::default());
        hub.publish(|| unreachable!("nobody listens"));
        let early = hub.subscribe();
        hub.publish(|| added(3));
        let late = hub.subscribe();
        hub.publish(|| added(4));
        assert_eq!(early.recv_timeout(Duration::ZERO), Ok(added(3)));
        assert_eq!(early.recv_timeout(Duration::ZERO), Ok(added(4)));
        assert_eq!(late.recv_timeout(Duration::ZERO), Ok(added(4)));
        assert_eq!(late.recv_timeout(Duration::ZERO), Err(NoEvent::Yet));
        drop((early, late));
        hub.publish(|| unreachable!("nobody listens any more"));
    }

    #[test]
    fn one_that_does_not_keep_up_is_told_what_it_missed() {
        let hub = Arc::new(Hub::default());
        let events = hub.subscribe();
        for _ in 0..QUEUE_LENGTH + 5 {
            hub.publish(|| added(3));
        }
        let next = || events.recv_timeout(Duration::ZERO);
        assert_eq!(next(), Ok(Event::Missed { count: 5 }));
        for _ in 0..QUEUE_LENGTH {
            assert_eq!(next(), Ok(added(3)));
        }
        assert_eq!(next(), Err(NoEvent::Yet));
        drop(hub);
        assert_eq!(next(), Err(NoEvent::Ever));
    }
}
