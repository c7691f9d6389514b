//! Guests, and VMMs, that do all they should not: what happens then is theirs alone.
//!
//! One family a file, one scenario a test. See [`hostile`] for what each asserts.

#![allow(clippy::unwrap_used)] // What fails here fails the test.

#[path = "../hostile/mod.rs"]
mod hostile;
#[path = "../support/mod.rs"]
mod support;

mod chains;
mod credit;
mod floods;
mod headers;
mod memory;
mod messages;
mod notifiers;
mod rings;
mod siblings;
