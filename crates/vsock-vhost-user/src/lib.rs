//! The vhost-user glue (stub).
mod config;
mod server;
pub use config::{GuestConfig, VhostUserSocket};
pub use server::{AddError, Server};
