//! Draining a guest's TX ring.
//!
//! Every chain taken is dealt with and returned in the same pass (invariant: TX never
//! waits). What one pass takes for the same destination is [gathered](crate::gathered)
//! and handed on together, straight from guest memory; so chains are published only after
//! what they hold was written, delivered or kept.

use tracing::debug;
use vhost_user_backend::VringT;
use vm_memory::GuestAddressSpace;
use vsock_packet::chain::read_packet;

use crate::memory::{Memory, Piece};
use crate::memory_faults;
use crate::ring::RingPass;
use crate::worker::Worker;

/// Chains after which the guest gets back what was dealt with.
const CHAINS_PER_PUBLISH: usize = 32;

/// What a pass over the TX ring leaves to be done.
#[derive(Clone, Copy, Default)]
pub(crate) struct Drained {
    /// The driver wants to be notified. Better when there is something for it in the RX ring
    /// too, such as the credit that it waits for: then it wakes up once for both.
    pub(crate) notify: bool,
    /// There may be more to take.
    pub(crate) more: bool,
}

impl Worker {
    /// Takes what the guest sent, at most as many chains as its ring is long.
    pub(crate) fn drain_tx(&mut self) -> Drained {
        self.with_tx(Self::drain).unwrap_or_default()
    }

    /// One pass over the TX ring. `None` when nothing is to be taken from it now: it is not
    /// started or not enabled, it is at fault, or the session is ending.
    pub(crate) fn with_tx<R>(
        &mut self,
        work: impl for<'m> FnOnce(&mut Self, RingPass<'_, 'm>, &'m Memory) -> R,
    ) -> Option<R> {
        let (vring, memory) = self.tx_ring()?;
        let mut ring = vring.get_mut();
        if !ring.is_enabled() || vring.fault().get().is_some() {
            return None;
        }
        let memory = memory.memory();
        memory_faults::within(&memory, vring.fault(), || {
            let pass = RingPass::begin(ring.get_queue_mut(), &memory)?;
            Some(work(self, pass, &memory))
        })
    }

    fn drain<'m>(&mut self, mut pass: RingPass<'_, 'm>, memory: &'m Memory) -> Drained {
        let mut drained = Drained::default();
        let mut idle_rounds = 0;
        let mut held = false;
        let mut pieces = Vec::new();
        pass.disable_kicks();
        loop {
            let taken = self.take_chains(&mut pass, memory, &mut pieces);
            drained.notify |= pass.publish().unwrap_or_else(|error| {
                debug!(%error, "the TX ring is broken");
                false
            });
            idle_rounds = if taken == 0 { idle_rounds + 1 } else { 0 };
            // A ring that promises a chain and has none is broken.
            if pass.is_exhausted() || idle_rounds == 2 {
                break;
            }
            if !self.sends.has_some(self.now) {
                // The rest stays in the ring, and the guest need not kick for it.
                held = true;
                break;
            }
            if taken < CHAINS_PER_PUBLISH && !self.goes_on(&mut pass) {
                break;
            }
        }
        drained.more = held || pass.is_exhausted();
        drained
    }

    /// Takes some chains and returns their number; all of them are dealt with.
    fn take_chains<'m>(
        &mut self,
        pass: &mut RingPass<'_, 'm>,
        memory: &'m Memory,
        pieces: &mut Vec<Piece<'m>>,
    ) -> usize {
        let mut taken = std::mem::take(&mut self.taken);
        while taken.len() < CHAINS_PER_PUBLISH
            && let Some(chain) = pass.next_chain()
        {
            let (head, start) = (chain.head_index(), pieces.len());
            let raw = read_packet(memory, chain, pieces);
            taken.push((raw, start..pieces.len()));
            if let Err(error) = pass.add_used(head, 0) {
                debug!(head, %error, "cannot return a TX chain");
            }
        }
        self.take_packets(&taken, pieces);
        pieces.clear();
        let count = taken.len();
        taken.clear();
        self.taken = taken;
        count
    }
}
