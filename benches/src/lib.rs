//! What the benchmarks in `benches/` and the side-by-side run both measure.

#![allow(clippy::unwrap_used, reason = "a benchmark panics where it fails")]

pub mod lookups;
pub mod switch;
