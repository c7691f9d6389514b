//! Applications of the host that do all they should not, or just go: what happens then is
//! theirs alone.

#![allow(clippy::unwrap_used)] // What fails here fails the test.

#[path = "../hostile/mod.rs"]
mod hostile;
#[path = "../support/mod.rs"]
mod support;

mod clients;
mod descriptors;
mod listeners;
