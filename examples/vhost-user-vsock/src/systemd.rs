//! The service manager's side: sockets it opened for us, and what it is told.
//!
//! Nothing here needs systemd itself: only its environment variables and sockets.

mod activation;
mod notify;
mod pulse;

pub(crate) use activation::Activation;
pub(crate) use notify::Notifier;
pub(crate) use pulse::{Hint, Pulse};
