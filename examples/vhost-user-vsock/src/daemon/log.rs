//! The daemon's log.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::mistake::Mistake;

/// Logs to standard error what `RUST_LOG` asks for, by default `info`.
pub(super) fn start() -> Result<(), Mistake> {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text).map_err(|error| {
            Mistake::new(
                format!("RUST_LOG={text}"),
                error,
                "write a level (error, warn, info, debug, trace) or target=level",
            )
        })?,
        _ => EnvFilter::new("info"),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    Ok(())
}
