//! Benchmarks of the vsock crates: see `benches/`.
