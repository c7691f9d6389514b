//! Looking for more to do between two turns, instead of sleeping.
//!
//! vhost-user-backend's loop sleeps as soon as a turn is over, and a guest that has something
//! new kicks to rouse it. A worker that [has learnt](crate::patience) that it is roused at
//! once looks for itself for a while, and meanwhile the guest need not kick.

use std::hint::spin_loop;
use std::time::Instant;

use rustix::thread::sched_yield;

use crate::ring::RingPass;
use crate::vring::Vring;
use crate::worker::{Cause, Worker};

/// Turns in a row before the crate's loop looks at what only it knows of: the session's end,
/// and kicks.
const TURNS_IN_A_ROW: usize = 64;

/// Of so many looks, one is for the host's sockets and the timer first: a guest that always
/// has one packet more does not keep the worker from them.
const HOST_FIRST: usize = 4;

/// Of so many looks on a shared core, one asks for the host's sockets and the timer: that is a
/// system call, while the other worker waits for the core.
const HOST_WHERE_SHARED: usize = 8;

impl Worker {
    /// A turn with the rings of the connected frontend, and those that follow closely.
    pub(crate) fn turns_with(&mut self, mut cause: Cause, rings: &[Vring]) {
        for turn in 1..=TURNS_IN_A_ROW {
            let fills_on = self.turn_with(cause, rings);
            let next = if !fills_on {
                self.look_around(turn % HOST_FIRST == 0)
            } else if turn < TURNS_IN_A_ROW {
                // Whoever has got something meanwhile is not to wait for all of it.
                Some(if turn % HOST_FIRST == 0 {
                    Cause::Tx
                } else {
                    Cause::Host
                })
            } else {
                self.poller.waker().wake();
                None
            };
            match next {
                Some(next) => cause = next,
                None => break,
            }
        }
        self.prepare_to_sleep();
    }

    /// Does what was put off for as long as there was something else to do.
    pub(crate) fn prepare_to_sleep(&mut self) {
        self.connections.watch_newcomers();
        self.ask_for_kicks();
    }

    /// Whether there is more to take in a pass over the TX ring. If not, the guest is asked to
    /// kick, unless the worker is going to look.
    pub(crate) fn goes_on(&mut self, pass: &mut RingPass<'_, '_>) -> bool {
        self.looks_for_tx = self.patience.looks();
        if self.looks_for_tx {
            pass.is_ready()
        } else {
            pass.enable_kicks()
        }
    }

    /// Looks for what is to be done next, for a while, if that pays.
    fn look_around(&mut self, host_first: bool) -> Option<Cause> {
        if self.tx_is_pending() {
            // Either it is about to be woken, or what the guest sent has to wait.
            return None;
        }
        let now = Instant::now();
        let is_shared = self.cores.is_shared_by(self.guest, now);
        let until = self.patience.idles(now, is_shared);
        if !self.patience.looks() {
            return None;
        }
        let found = if host_first && self.poller.is_ready() {
            Some(Cause::Host)
        } else {
            self.look_until(until, is_shared)
        };
        self.patience.looked(found.is_some(), Instant::now());
        found
    }

    /// On a core that is `shared` with another worker, that one goes first.
    fn look_until(&mut self, until: Instant, shared: bool) -> Option<Cause> {
        // One pass for all looks: a look is to be short. From a ring that is not in order
        // nothing would be taken, however often it is found ready.
        let mut looks = 0_usize;
        let found = self.with_tx(|worker, mut tx, _| {
            loop {
                looks += 1;
                if tx.is_ready() {
                    return Some(Cause::Tx);
                }
                if (!shared || looks.is_multiple_of(HOST_WHERE_SHARED)) && worker.poller.is_ready()
                {
                    return Some(Cause::Host);
                }
                if worker.port.is_refilled() {
                    return Some(Cause::Rx);
                }
                if Instant::now() >= until {
                    return None;
                }
                if worker.connections.watch_newcomer() {
                    // That was something to do.
                } else if shared {
                    sched_yield();
                } else {
                    spin_loop();
                }
            }
        });
        found.flatten()
    }

    /// Asks the guest to kick again, before the worker sleeps.
    fn ask_for_kicks(&mut self) {
        if !std::mem::take(&mut self.looks_for_tx) || self.tx_is_pending() {
            return;
        }
        if self.with_tx(|_, mut pass, _| pass.enable_kicks()) == Some(true)
            && let Some(session) = &mut self.session
        {
            session.tx_is_pending = true;
            self.poller.waker().wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::time::Duration;

    use vhost_user_backend::VringT;
    use vm_memory::{GuestAddress, GuestMemoryAtomic};
    use vsock_packet::GuestCid;
    use vsock_router::{Routers, Switch};

    use super::*;
    use crate::config::GuestConfig;
    use crate::cores::Cores;
    use crate::events::Hub;
    use crate::fault::Fault;
    use crate::memory::Memory;
    use crate::stop::Stop;
    use crate::unix_socket::{SocketAccess, listen};

    #[test]
    fn does_not_touch_the_rings_of_a_session_that_is_ending() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (listener, _place) = listen(&path, SocketAccess::default()).unwrap();
        let config = GuestConfig::new(GuestCid::new(3).unwrap(), "", &path);
        let (router, switch) = (Arc::new(Routers::default()), Switch::default());
        let (hub, cores) = (Arc::new(Hub::default()), Cores::default());
        let worker = Worker::new(&config, listener, router, &switch, &hub, &cores);
        let mut worker = worker.unwrap();
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let memory = GuestMemoryAtomic::new(memory);
        let rings = [(); 2].map(|()| Vring::new(memory.clone(), 128).unwrap());
        worker.begin_session(memory, Arc::new(Stop::new().unwrap()));
        worker.turns_with(Cause::Tx, &rings);

        // A panic in the middle of a pass, by a worker that looks.
        let panics = AssertUnwindSafe(|| {
            let _ring = rings[1].get_mut();
            panic!("made up");
        });
        assert!(catch_unwind(panics).is_err());
        while !worker.patience.looks() {
            let now = Instant::now();
            worker.patience.idles(now, false);
            worker.patience.wakes(now + Duration::from_micros(1));
        }
        worker.looks_for_tx = true;
        worker.condemn(Fault::Panic);
        worker.turns_with(Cause::Host, &rings);
    }
}
