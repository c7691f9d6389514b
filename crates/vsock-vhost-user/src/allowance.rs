//! What a guest's connections with the host may have altogether: memory for what host
//! applications do not read, and payload in a time.

use std::time::Instant;

use vsock_connection::ConnectionId;

use crate::config::GuestConfig;
use crate::handle::Settings;
use crate::rate::Bucket;

/// A new connection gets at most this part of what is left, so that those after it get
/// something, too.
const SHARE: u64 = 64;

/// What is left for connections to come, and for payload to come.
#[derive(Debug, Default)]
pub(crate) struct Allowance {
    buf_alloc: u32,
    max_buffered: u64,
    /// The sum of the buffers that connections were promised.
    promised: u64,
    /// Payload for the guest.
    rate: Bucket,
    /// Connections that wait for the rate to allow more.
    held: Vec<ConnectionId>,
}

impl Allowance {
    pub(crate) fn set(&mut self, settings: &Settings, now: Instant) {
        self.buf_alloc = settings.tx_buffer_size;
        self.max_buffered = settings.max_buffered as u64;
        self.rate = Bucket::new(settings.max_bytes_per_second, now);
    }

    /// The buffer of one more connection, in bytes.
    pub(crate) fn promise(&mut self) -> u32 {
        let share = self.max_buffered.saturating_sub(self.promised) / SHARE;
        let least = GuestConfig::MIN_TX_BUFFER_SIZE.min(self.buf_alloc);
        let bytes = u32::try_from(share)
            .unwrap_or(u32::MAX)
            .clamp(least, self.buf_alloc);
        self.promised += u64::from(bytes);
        bytes
    }

    /// A connection with this buffer is no more.
    pub(crate) fn take_back(&mut self, bytes: u32) {
        self.promised -= u64::from(bytes);
    }

    #[cfg(test)]
    pub(crate) fn promised(&self) -> u64 {
        self.promised
    }

    /// Whether payload may go to the guest now.
    pub(crate) fn has_some(&mut self, now: Instant) -> bool {
        self.rate.has_some(now)
    }

    /// Payload went to the guest.
    pub(crate) fn take(&mut self, bytes: usize) {
        self.rate.take(bytes);
    }

    /// A connection has payload for the guest when there [is some](Self::has_some) again.
    pub(crate) fn hold(&mut self, id: ConnectionId) {
        self.held.push(id);
    }

    /// When [`Self::release`] has something to release.
    pub(crate) fn next_release(&mut self, now: Instant) -> Option<Instant> {
        let is_due = || self.rate.refilled_at(now).unwrap_or(now);
        (!self.held.is_empty()).then(is_due)
    }

    /// Those that were held, if payload may go to the guest now.
    pub(crate) fn release(&mut self, now: Instant) -> Vec<ConnectionId> {
        if self.held.is_empty() || !self.rate.has_some(now) {
            return Vec::new();
        }
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use vsock_packet::GuestCid;

    use super::*;

    fn allowance(max_buffered: usize) -> Allowance {
        let mut config = GuestConfig::new(GuestCid::new(3).unwrap(), "", "");
        config.max_buffered = max_buffered;
        let mut allowance = Allowance::default();
        allowance.set(&Settings::of(&config), Instant::now());
        allowance
    }

    #[test]
    fn the_first_connections_get_full_buffers_and_later_ones_share_the_rest() {
        let mut allowance = allowance(64 << 20);
        let promised: Vec<_> = (0..4096).map(|_| allowance.promise()).collect();
        assert_eq!(promised[0], GuestConfig::DEFAULT_TX_BUFFER_SIZE);
        assert!(promised.is_sorted_by(|earlier, later| earlier >= later));
        assert_eq!(promised[4095], GuestConfig::MIN_TX_BUFFER_SIZE);
        let sum: u64 = promised.iter().map(|bytes| u64::from(*bytes)).sum();
        let bound = (64 << 20) + 4096 * u64::from(GuestConfig::MIN_TX_BUFFER_SIZE);
        assert!(sum <= bound, "{sum}");
        promised
            .iter()
            .for_each(|bytes| allowance.take_back(*bytes));
        assert_eq!(allowance.promise(), promised[0]);
    }

    #[test]
    fn a_smaller_buffer_than_the_least_is_as_the_operator_has_it() {
        let mut allowance = allowance(0);
        allowance.buf_alloc = 4096;
        assert_eq!(allowance.promise(), 4096);
    }
}
