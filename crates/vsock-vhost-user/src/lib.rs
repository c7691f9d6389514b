//! The vhost-user device of virtio-vsock: guests of any VMM that speaks vhost-user get
//! AF_VSOCK, with the host behind AF_UNIX sockets.
//!
//! ```text
//!   frontend (QEMU) ──vhost-user──▶ guest thread ── begins and ends ──▶ session
//!                                                                          │
//!   TX ring ──▶ ┌──────────────────── Worker ─────────────────────┐ ◀── kicks
//!   RX ring ◀── │ RxPort ◀─ Connections ◀─▶ HostEnd (AF_UNIX)     │ ◀── poller
//!               │                  ▲                              │
//!               │                Door ◀─ CONNECT port             │
//!               └─────────────────────────────────────────────────┘
//! ```
//!
//! A [`Server`] has the guests; [`GuestConfig`] says what one is like:
//!
//! ```no_run
//! use vsock_packet::GuestCid;
//! use vsock_vhost_user::{GuestConfig, Server};
//!
//! let server = Server::new();
//! server.add(GuestConfig::new(GuestCid::new(3)?, "/run/vm3.sock", "/run/vm3.vsock"))?;
//! // ... until the process is to end:
//! server.shutdown();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Guests come and go, and change, while it runs; any thread may see to that:
//!
//! ```
//! use vsock_packet::GuestCid;
//! use vsock_vhost_user::{Changes, GuestConfig, Server};
//!
//! let dir = std::env::temp_dir().join(format!("vsock-front-page-{}", std::process::id()));
//! std::fs::create_dir(&dir)?;
//! let server = Server::new();
//! let events = server.events();
//! let cid = GuestCid::new(3)?;
//! server.add(GuestConfig::new(cid, dir.join("vm3.sock"), dir.join("vm3.vsock")))?;
//! let changes = Changes { groups: Some(vec!["friends".to_owned()]), ..Changes::default() };
//! server.change(cid, &changes)?;
//! assert_eq!(server.guest(cid).unwrap().groups, ["friends"]);
//! assert!(server.connections(None).is_empty());
//! assert!(server.remove(cid));
//! let happened = events.recv_timeout(std::time::Duration::ZERO)?;
//! println!("{happened:?}"); // GuestAdded
//! std::fs::remove_dir(&dir)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Guarantees
//!
//! * TX never waits: each chain a guest sends is dealt with and returned in the turn of
//!   the worker that takes it, whatever hosts and RX rings do.
//! * Payload is copied once, by the kernel, between guest memory and the host's socket;
//!   only what a full socket does not take is kept, within the credit the guest has.
//! * Everything is bounded: connections, handshakes, what is kept for slow readers.
//! * A fault stays in its connection, else in its guest.
//!
//! A VMM that truncates its guest's memory would end the process by a signal: a process
//! that is to outlive that calls [`catch_memory_faults`] first.
//!
//! Unsafe code is confined to the module that hands guest memory to system calls and to the
//! one that handles that signal.

#![deny(unsafe_code)]

mod allowance;
mod backend;
mod config;
mod connect_line;
mod connections;
mod cores;
mod counters;
mod door;
mod events;
mod fault;
mod gathered;
mod guest;
mod handle;
mod handshake;
mod host_end;
mod inbox;
mod looking;
mod memory;
mod memory_faults;
mod mishaps;
mod newcomers;
mod parting;
mod patience;
mod poller;
mod rate;
mod ring;
mod rx;
mod seldom;
mod server;
#[cfg(test)]
mod simulation;
mod socket_io;
mod status;
mod stop;
mod trickle;
mod tx;
mod tx_buffer;
mod unix_socket;
mod unread;
mod vring;
mod worker;

pub use config::{Changes, GuestConfig, VhostUserSocket};
pub use connect_line::{ConnectLine, ConnectLineError};
pub use counters::CounterValues;
pub use events::{ClientRefusal, Event, Events, NoEvent};
pub use memory_faults::catch_memory_faults;
pub use server::{AddError, ChangeError, Server};
pub use status::{ConnectionStatus, GuestState, GuestStatus};
pub use unix_socket::{SocketAccess, SocketPath, listen};
pub use vsock_router::{ConnectionId, ConnectionKind, ConnectionState, SiblingCounters};
