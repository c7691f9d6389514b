//! What the host's side and the guest's side of a real-guest test share.
//!
//! A test is a *conversation*: both ends of a connection run a [script](script::Step)
//! of sends, receives and shutdowns, and each writes a [report](script::Report). The
//! guest gets its half as a [command](protocol::Command) over a serial port, so that
//! nothing of the control depends on the device under test:
//!
//! ```text
//!    host                                         guest
//!   ┌──────────────┐  Command, Event (ttyS1)  ┌──────────────┐
//!   │ cargo xtask  ├─────────────────────────▶│ guest-agent  │  PID 1
//!   │              │◀─────────────────────────┤              │
//!   │ script ──────┼─── AF_UNIX ▸ vsock ──────┼────── script │
//!   └──────────────┘                          └──────────────┘
//! ```
//!
//! Payload is a [pattern](pattern::Pattern) whose every byte is known from its seed
//! and position, so the receiving end verifies all of it without a second copy.

#![forbid(unsafe_code)]

pub mod meeting;
pub mod pattern;
pub mod protocol;
pub mod script;
pub mod uninterrupted;
