//! What can go wrong between a test and the device it tests.

use std::io;
use std::time::Duration;

use thiserror::Error;

/// Why a call of the testkit failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The time was up before what the call waited for happened.
    #[error("waited {after:?} in vain for {waited_for}; {state}")]
    Timeout {
        /// What should have happened.
        waited_for: String,
        /// For how long.
        after: Duration,
        /// The guest's rings and inbox at that moment.
        state: String,
    },
    /// The peer answered a REQUEST with an RST.
    #[error("the connection to port {port} was refused")]
    Refused {
        /// The port asked for.
        port: u32,
    },
    /// The stream ended before all bytes were read or written.
    #[error("the stream ended with {missing} bytes still to be {action}")]
    Ended {
        /// Bytes that are missing.
        missing: usize,
        /// `read` or `written`.
        action: &'static str,
    },
    /// The device did what the specification or the driver forbids.
    #[error("the device broke a rule: {0}")]
    Device(String),
    /// A step of the vhost-user handshake failed.
    #[error("vhost-user: {step}: {source}")]
    VhostUser {
        /// The request.
        step: &'static str,
        /// What the frontend said.
        source: vhost::Error,
    },
    /// The system refused something.
    #[error("{step}: {source}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err` on a system call.
    pub(crate) fn io<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Io {
            step,
            source: source.into(),
        }
    }

    /// For `map_err` on a vhost-user request.
    pub(crate) fn vhost_user(step: &'static str) -> impl FnOnce(vhost::Error) -> Self {
        move |source| Self::VhostUser { step, source }
    }
}
