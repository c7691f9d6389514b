//! What holds for the whole process, from its start to its end.

use std::ops::RangeInclusive;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;
use vsock_vhost_user::{GuestConfig, Server};

use crate::mistake::Mistake;
use crate::number::decimal;
use crate::once::{Written, WrittenOnce};

/// The most VMs that `max-guests` may allow.
const MAX_MAX_GUESTS: usize = 65_536;

/// The settings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Process {
    /// How many VMs there may be at once.
    pub(crate) max_guests: usize,
    /// How long workers look for more to do before they sleep.
    pub(crate) busy_poll: Duration,
}

impl Process {
    /// # Errors
    ///
    /// A setting is out of bounds.
    pub(crate) fn new(written: &WrittenOnce) -> Result<Self, Mistake> {
        let longest = GuestConfig::MAX_BUSY_POLL.as_micros() as usize;
        let busy_poll_us = number(written.get("busy-poll-us"), 0..=longest)?;
        Ok(Self {
            max_guests: number(written.get("max-guests"), 1..=MAX_MAX_GUESTS)?
                .unwrap_or(Server::DEFAULT_MAX_GUESTS),
            busy_poll: busy_poll_us.map_or(GuestConfig::DEFAULT_BUSY_POLL, |micros| {
                Duration::from_micros(micros as u64)
            }),
        })
    }
}

/// Raises the soft limit of open descriptors to the hard one: each connection to the
/// host is one descriptor, and the customary 1,024 would be few for many guests.
pub(crate) fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    if let Err(error) = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    ) {
        warn!("the limit of open descriptors stays at {current:?}: {error}");
    }
}

fn number(
    written: Option<&Written>,
    bounds: RangeInclusive<usize>,
) -> Result<Option<usize>, Mistake> {
    let Some(written) = written else {
        return Ok(None);
    };
    let number = decimal(&written.value).filter(|number| bounds.contains(number));
    let refusal = || {
        let (least, most) = bounds.into_inner();
        Mistake::new(
            written.setting(),
            "is out of bounds",
            format!("choose from {least} to {most}"),
        )
    };
    number.ok_or_else(refusal).map(Some)
}
