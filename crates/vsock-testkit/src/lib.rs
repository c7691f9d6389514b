//! A virtio-vsock guest in userspace, to test devices with.
//!
//! ```text
//!   the test
//!      │ connect, listen, read, write      ┌──────────── device under test ───────────┐
//!  ┌───▼───┐ packets ┌─────────────┐ rings │                                          │
//!  │ Guest ├────────▶│ PacketRings ├──────▶│ over vhost-user, or in the same thread   │
//!  │       │         └─────────────┘       │                                          │
//!  │       │  kicks, calls  ┌───────────┐  │                                          │
//!  │       ├───────────────▶│ Transport ├─▶│                                          │
//!  └───────┘                └───────────┘  └───┬──────────────────────────────────────┘
//!                                              │ <uds-path>, <uds-path>_<port>
//!                                  host::{HostListener, Service, Client}
//! ```
//!
//! * A [`Guest`] behaves as Linux's driver and sockets do: the same buffers, the same
//!   credit, the same replies. [`Setup`] and [`Behaviour`] change each of these rules,
//!   and [`Guest::send_packet`] sends anything at all.
//! * Where it receives, it holds the device to the specification: a packet that exceeds
//!   its buffer or the guest's credit, data before a RESPONSE or a chain returned twice
//!   is [`Error::Device`].
//! * [`Layout`] and [`RxBuffers`] cut packets into any descriptors, direct or indirect,
//!   also across memory regions.
//! * [`VhostUser`] is the connection to a back end, in the order QEMU does things:
//!   [`Guest::stop`] and [`Guest::resume`], [`Guest::reset`], or drop it and the VM is gone.
//!   [`Plain`] puts the same guest over plain memory, before a device in the same thread.
//! * [`host`] has the other side: applications at a hybrid vsock socket.
//!
//! One thread does it all, explicitly: nothing happens but in a guest's calls, and each
//! call that waits has a deadline, and says in its error what it waited for.
//!
//! # Example
//!
//! A guest over plain memory. Its device, on the queue of the `virtio-queue` crate, refuses
//! every connection.
//!
//! ```
//! use std::io::{Read, Write};
//!
//! use virtio_queue::{Queue, QueueT};
//! use vsock_packet::{Cid, HEADER_LEN, RawHeader};
//! use vsock_testkit::{Error, Guest, Memory, Plain, Ring, Setup, queue};
//!
//! fn device_queue(ring: &Ring) -> Queue {
//!     let mut queue = Queue::new(ring.size()).unwrap();
//!     let [descriptors, available, used] = ring.addresses().map(|area| Some(area.0 as u32));
//!     queue.set_desc_table_address(descriptors, Some(0));
//!     queue.set_avail_ring_address(available, Some(0));
//!     queue.set_used_ring_address(used, Some(0));
//!     queue.set_ready(true);
//!     queue
//! }
//!
//! # fn main() -> Result<(), Error> {
//! let memory = Memory::one_region()?;
//! let setup = Setup { memory: Some(memory.clone()), ..Setup::default() };
//! let mut guest = Guest::over(Cid::new(3), setup, |rings| {
//!     let mut tx = device_queue(rings.ring(queue::TX));
//!     let mut rx = device_queue(rings.ring(queue::RX));
//!     Plain::new(move || {
//!         let memory = memory.map();
//!         while let Some(chain) = tx.pop_descriptor_chain(memory) {
//!             let head = chain.head_index();
//!             let mut header = [0; HEADER_LEN];
//!             chain.reader(memory).unwrap().read_exact(&mut header).unwrap();
//!             tx.add_used(memory, head, 0).unwrap();
//!             if let Some(rst) = RawHeader::from_bytes(header).rst() {
//!                 let chain = rx.pop_descriptor_chain(memory).unwrap();
//!                 let head = chain.head_index();
//!                 chain.writer(memory).unwrap().write_all(rst.as_bytes()).unwrap();
//!                 rx.add_used(memory, head, HEADER_LEN as u32).unwrap();
//!             }
//!         }
//!         Ok(())
//!     })
//! })?;
//!
//! assert!(matches!(guest.connect(1234), Err(Error::Refused { port: 1234 })));
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod behaviour;
mod error;
mod guest;
pub mod host;
mod layout;
mod memory;
mod packets;
mod random;
mod ring;
mod seeds;
mod sockets;
mod stream;
mod transport;
mod vhost_user;

pub use behaviour::Behaviour;
pub use error::Error;
pub use guest::{Guest, Setup};
pub use layout::Layout;
pub use memory::Memory;
pub use packets::{Packet, PacketRings, Refill, RxBuffers, queue};
pub use random::Random;
pub use ring::{Piece, RawDescriptor, Ring, Used};
pub use seeds::run_seeds;
pub use sockets::StreamId;
pub use stream::{State, Stream};
pub use transport::{Plain, Transport};
pub use vhost_user::{ProtocolFeatures, VhostUser, feature};
