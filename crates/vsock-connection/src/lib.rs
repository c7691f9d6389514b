//! Connections between one guest and its host: the state machine of each, and the table
//! of them. Sans I/O: no socket, no clock, no payload.
//!
//! ```text
//!        guest                     this crate                  the caller
//!   ┌──────────────┐  Header   ┌──────────────────┐  Received  ┌─────────────────┐
//!   │ its packets  ├──────────▶│ Connection::     ├───────────▶│ moves payload,  │
//!   │              │           │   receive        │            │ closes sockets  │
//!   │ its RX ring  │◀──────────┤   poll_control   │◀───────────┤ forwarded, sent,│
//!   └──────────────┘  Header   │   data_header    │            │ end_host, reset │
//!                              └──────────────────┘            └─────────────────┘
//! ```
//!
//! The caller has the payload and the host's socket. It tells the connection what
//! happened and asks it what to put into the guest's RX ring:
//!
//! 1. A packet came: [`Connection::receive`] says what it means for the host's end.
//! 2. Payload went to the host's application: [`Connection::forwarded`].
//! 3. There is room in the RX ring: [`Connection::poll_control`] first, until it has
//!    nothing more; then [`Connection::sendable`] bytes under [`Connection::data_header`].
//! 4. The host's end changed: [`Connection::end_host`], [`Connection::reset`].
//! 5. Time went by: [`Connection::handle_timeout`] at [`Connection::deadline`].
//!
//! What is to be sent is kept as flags, one of a kind, so a connection's pending control
//! packets need no queue and no bound. Time is an argument everywhere.
//!
//! [`Table`] holds the connections with whatever the caller keeps for the host's end of
//! each; it knows which have something for the guest and when the next timer fires.

#![forbid(unsafe_code)]

mod connection;
mod credit;
mod ports;
mod table;

pub use connection::{Cause, Connection, Received, Timeouts};
pub use credit::CreditViolation;
pub use ports::HostPorts;
pub use table::{ConnectionId, Entry, Found, Table, TableFull};
