//! Runs every input that the fuzzers have kept: those that reach something, and those
//! that once found a defect.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fuzz_targets::TARGETS;

/// Where the inputs of a target are, by what they are kept for.
fn inputs(kind: &str, target: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let Ok(entries) = fs::read_dir(root.join(kind).join(target)) else {
        return Vec::new();
    };
    let mut inputs: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    inputs
}

fn replay(kind: &str) -> usize {
    let mut count = 0;
    let mut failed = Vec::new();
    for target in TARGETS {
        for path in inputs(kind, target.name) {
            let data = fs::read(&path).unwrap();
            if catch_unwind(AssertUnwindSafe(|| (target.run)(&data))).is_err() {
                failed.push(path);
            }
            count += 1;
        }
    }
    assert!(failed.is_empty(), "these inputs fail: {failed:#?}");
    count
}

#[test]
fn every_kept_input_passes() {
    let count = replay("corpus");
    assert!(count >= TARGETS.len(), "the corpus is missing");
}

#[test]
fn every_defect_that_was_found_stays_mended() {
    replay("regressions");
}

#[test]
fn any_bytes_are_an_input() {
    for target in TARGETS {
        (target.run)(&[]);
        for byte in [0, 0x55, 0xff] {
            (target.run)(&[byte; 300]);
        }
    }
}
