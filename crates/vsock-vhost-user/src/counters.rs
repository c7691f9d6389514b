//! What a guest's device counts.

use std::sync::atomic::{AtomicU64, Ordering};

use vsock_router::SiblingCounters;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counters of one guest, shared with its worker.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
        }

        /// A guest's counters at one moment. All of them only grow.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        #[non_exhaustive]
        pub struct CounterValues {
            $($(#[$doc])* pub $name: u64,)*
            /// What happened with siblings.
            pub siblings: SiblingCounters,
        }

        impl Counters {
            pub(crate) fn values(&self, siblings: SiblingCounters) -> CounterValues {
                CounterValues { $($name: self.$name.0.load(Ordering::Relaxed),)* siblings }
            }
        }
    };
}

/// One counter.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: usize) {
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }
}

counters! {
    /// Packets the guest sent.
    tx_packets,
    /// Payload the guest sent on connections, those with siblings included, in bytes.
    tx_bytes,
    /// RW packets from the host put into the guest's RX ring.
    rx_packets,
    /// Payload from the host put into the guest's RX ring, in bytes. What siblings send is
    /// among their `tx_bytes`.
    rx_bytes,
    /// Connections with the host begun by the guest.
    guest_connections,
    /// Connections begun by host applications and accepted by the guest.
    host_connections,
    /// Requests of the guest that were refused.
    refused_requests,
    /// Host applications whose CONNECT was refused, or never finished.
    refused_clients,
    /// Packets with a header that no packet may have.
    invalid_headers,
    /// TX chains that hold no whole packet.
    malformed_chains,
    /// RX buffers without room for a header, or for payload where there was some.
    useless_buffers,
    /// Connections reset for what the guest did on them.
    violations,
    /// Sessions ended because the guest's VMM made it impossible to go on.
    faults,
    /// Connections ended because the guest did not answer in time.
    timeouts,
}
