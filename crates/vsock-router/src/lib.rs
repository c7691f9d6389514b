//! Where the connections of virtio-vsock guests go, and the switch between guests.
//!
//! For a virtual machine monitor (VMM) with a vsock device of its own: this crate knows no
//! vhost-user, no sockets, no threads and no clock.
//!
//! ```text
//!        guest A                                                 guest B
//!   ┌────────────────┐   what the VMM has, and this crate   ┌────────────────┐
//!   │ TX ring ───────┼──▶ device ─▶ Member A               │                │
//!   │                │         REQUEST │ │ all others       │                │
//!   │                │       Router ◀──┘ ▼                  │                │
//!   │                │           flow A→B ─▶ Port of B ─────┼──▶ RX ring     │
//!   │ RX ring ◀──────┼── Port of A ◀─ flow B→A              │                │
//!   │                │                   ▲                  │                │
//!   │                │              Member B ◀── device ◀───┼── TX ring      │
//!   └────────────────┘                                      └────────────────┘
//! ```
//!
//! # What a VMM implements
//!
//! * [`Port`] and [`Receiver`], over the guest's RX queue: one buffer, one packet. The
//!   switch calls them from whichever thread has something for the guest. So the queue is
//!   behind a lock of the port's own; nothing else is done under it, and neither trait
//!   calls a [`Member`].
//! * The device's side of the TX queue. Of each packet:
//!   1. one that cannot be read goes to [`Member::ruin`], and where that finds no
//!      connection to [`Member::refuse`];
//!   2. one whose `src.cid` is not the guest's goes to [`Member::refuse`]: the switch takes
//!      the caller's word for who sends;
//!   3. a REQUEST is put to the [`Router`]: for [`Route::Member`] to [`Member::open`], else,
//!      and where that fails, to [`Member::refuse`];
//!   4. all others go to [`Member::send`], as many as there are in one call. When it
//!      returns their chains may be given back: it has copied what it keeps.
//! * Three occasions: [`Member::flush`] when the guest has posted RX buffers and after
//!   [`Member::refuse`]; [`Member::handle_timeouts`] at [`Member::next_timeout`], which
//!   [`Port::wake`] says to look at again; [`Member::reset`] when the guest's driver starts
//!   anew and [`Switch::leave`] when the guest is gone.
//!
//! # Routers
//!
//! A [`Router`] is asked once per connection, on its REQUEST. The answer is kept with the
//! connection, so routers are off the data path; but they are asked on a guest's worker,
//! so they wait for nothing. [`Routers`] asks one after the other until one knows the
//! destination; [`Siblings`] and [`HostSockets`] are two of them. A VMM adds its own by
//! implementing the trait, or with a closure. What it may answer beside:
//!
//! * [`Route::Member`] with a [`Switch::service`]: a part of the VMM itself that speaks
//!   vsock, behind a [`Port`] like a guest's. It keeps what the port gets, and answers from
//!   its own loop with [`Member::send`].
//! * [`Route::Host`]: the VMM connects the guest to the host's application. The crate
//!   `vsock-connection` has the state machine for that.
//! * [`Route::Refuse`], with the reason.
//!
//! # What the switch guarantees
//!
//! * **Order.** What one end sends arrives in order and complete, or the connection is
//!   reset for both; a message keeps its bounds (EOM, EOR) however small the buffers are.
//!   What was sent before a close arrives before it.
//! * **Headers.** Rewritten are `len` and EOM/EOR where a packet is split, and a `buf_alloc`
//!   over 4 MiB, which is told as 4 MiB: it bounds what may have to wait for one
//!   connection. Consecutive small packets of a stream, or of a message, that had to wait are
//!   joined. An end that tells of its window too seldom is asked with a CREDIT_REQUEST.
//! * **Nothing waits.** [`Member::send`] copies straight into the receiver's buffers; what
//!   finds none is kept, at the sender's charge, and comes out by the receiver's
//!   [`Member::flush`], the connections that wait in turn. No call waits for a guest, and
//!   nobody holds two guests' locks. What a sibling does not read slows down its own
//!   connections only.
//! * **Bounds.** A guest opens at most [`Limits::connections`] connections; at most
//!   [`Limits::backlog`] bytes, and one packet, wait because of it, and at one receiver no
//!   more than is left of that. What was sent before a close waits 60 s for a receiver that
//!   takes nothing. Control packets are
//!   flags of a connection, one of a kind; 1024 RSTs for packets of no connection wait, and
//!   further ones are dropped. Of each connection up to 4096 unread packets are remembered,
//!   in 4 bytes each.
//! * **The sender pays.** An end that sends more than its peer allowed, or what its state
//!   does not allow, loses that connection; [`Member::counters`] tells.
//! * **Answers.** A connection whose other end leaves, resets, or loses the shared group
//!   ends with an RST at once. One that is not answered within 10 s does, too, as does one
//!   whose full SHUTDOWN is not; two full SHUTDOWNs that cross are answered at once.
//!
//! # Example
//!
//! Two guests whose RX queues are lists; a real one is in `examples/embed-router`.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use std::time::Instant;
//!
//! use vsock_packet::{GuestCid, Header, Op, Payload, RawHeader, VsockAddr};
//! use vsock_router::{Groups, Limits, Member, Packet, Port, Receiver, Refusal, Request};
//! use vsock_router::{Route, Router, Routers, Siblings, Switch};
//!
//! /// A guest's RX queue: it takes any number of packets of at most 4 bytes.
//! #[derive(Default)]
//! struct Rx(Mutex<Received>);
//!
//! #[derive(Default)]
//! struct Received(Vec<(Op, Vec<u8>)>);
//!
//! impl Port for Rx {
//!     fn is_up(&self) -> bool {
//!         true
//!     }
//!
//!     fn pass(&self, fill: &mut dyn FnMut(&mut dyn Receiver)) {
//!         fill(&mut *self.0.lock().unwrap());
//!         // Here the guest is notified.
//!     }
//!
//!     fn wake(&self) {
//!         // Here the VMM's loop is told that there is an earlier deadline.
//!     }
//! }
//!
//! impl Receiver for Received {
//!     fn put(&mut self, packet: &mut Packet<'_>) -> bool {
//!         let header = packet.header_for(4);
//!         let mut bytes = vec![0; header.len() as usize];
//!         packet.payload.copy_to_bytes(&mut bytes);
//!         self.0.push((packet.header.op, bytes));
//!         true
//!     }
//!
//!     fn put_control(&mut self, header: &RawHeader) -> bool {
//!         self.0.extend(Op::from_wire(header.op()).map(|op| (op, Vec::new())));
//!         true
//!     }
//! }
//!
//! struct Device {
//!     guest: GuestCid,
//!     member: Arc<Member>,
//!     router: Arc<dyn Router>,
//! }
//!
//! impl Device {
//!     /// Takes a packet from the guest's TX queue.
//!     fn take(&self, header: &Header, payload: &[u8], now: Instant) {
//!         if header.src.cid != self.guest.cid() {
//!             self.member.refuse(&header.to_raw());
//!         } else if header.op != Op::Request {
//!             self.member.send(&[Packet::new(*header, Payload::from_bytes(payload))], now);
//!         } else if let Err(why) = self.open(header, now) {
//!             println!("{} does not reach {}: {why}", header.src, header.dst);
//!             self.member.refuse(&header.to_raw());
//!         }
//!         self.member.flush(now);
//!     }
//!
//!     fn open(&self, request: &Header, now: Instant) -> Result<(), Refusal> {
//!         match self.router.route(&Request::new(self.guest, request)) {
//!             Route::Member(target) => self.member.open(request, &target, now),
//!             Route::Refuse(why) => Err(why),
//!             _ => Err(Refusal::NoRoute),
//!         }
//!     }
//! }
//!
//! // A switch with two guests of a group, and a route that a VMM might add.
//! let switch = Arc::new(Switch::new(Limits::default()));
//! let forbid_ssh = |request: &Request| match request.dst.port.value() {
//!     22 => Route::Refuse(Refusal::NotListening),
//!     _ => Route::Refuse(Refusal::NoRoute), // the next router's to say
//! };
//! let siblings = Siblings(Arc::clone(&switch));
//! let router: Arc<dyn Router> = Arc::new(Routers::default().then(forbid_ssh).then(siblings));
//! let group = Groups::from(["friends".to_owned()]);
//! let [a, b] = [GuestCid::new(3)?, GuestCid::new(4)?];
//! let [rx_a, rx_b] = [Arc::new(Rx::default()), Arc::new(Rx::default())];
//! let device = |guest, rx: &Arc<Rx>| {
//!     let member = switch.join(guest, group.clone(), Arc::<Rx>::clone(rx))?;
//!     Ok::<_, vsock_router::JoinError>(Device { guest, member, router: Arc::clone(&router) })
//! };
//! let [device_a, device_b] = [device(a, &rx_a)?, device(b, &rx_b)?];
//!
//! // A asks B for a connection, B accepts, A sends.
//! let now = Instant::now();
//! let [from, to] = [VsockAddr::new(a, 1025), VsockAddr::new(b, 80)];
//! let says = |op, from, to| Header { buf_alloc: 65536, ..Header::new(op, from, to) };
//! device_a.take(&says(Op::Request, from, to), &[], now);
//! device_b.take(&says(Op::Response, to, from), &[], now);
//! device_a.take(&Header { len: 6, ..says(Op::Rw, from, to) }, b"Hello!", now);
//! let expected = [(Op::Request, vec![]), (Op::Rw, b"Hell".to_vec()), (Op::Rw, b"o!".to_vec())];
//! assert_eq!(rx_b.0.lock().unwrap().0, expected);
//!
//! // The other route refuses at once, and so does the switch when B is gone.
//! device_a.take(&says(Op::Request, from, VsockAddr::new(b, 22)), &[], now);
//! switch.leave(b, now);
//! let ops: Vec<Op> = rx_a.0.lock().unwrap().0.iter().map(|(op, _)| *op).collect();
//! assert_eq!(ops, [Op::Response, Op::Rst, Op::Rst]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod account;
mod backlog;
mod flow;
mod flows;
mod halves;
mod host;
mod member;
mod outstanding;
mod port;
mod record;
mod router;
mod shut_down;
mod switch;
mod sync;
#[cfg(test)]
mod tests;
mod window;

pub use host::HostSockets;
pub use member::{Member, SiblingCounters};
pub use port::{Packet, Port, Receiver};
pub use record::{
    ConnectionId, ConnectionKind, ConnectionState, Observer, Record, Recorder, SiblingConnection,
};
pub use router::{HostEndpoint, Refusal, Request, Route, Router, Routers};
pub use switch::{Groups, JoinError, Limits, Siblings, Switch};
