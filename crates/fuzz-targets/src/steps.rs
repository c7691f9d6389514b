//! Inputs as steps.

use std::fmt::Debug;
use std::sync::OnceLock;

use arbitrary::{Arbitrary, Unstructured};

/// An input that is read step by step.
pub(crate) struct Steps<'a>(Unstructured<'a>);

impl<'a> Steps<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Self(Unstructured::new(data))
    }

    /// The next step; `None` at the end of the input.
    pub(crate) fn next<S: Arbitrary<'a> + Debug>(&mut self) -> Option<S> {
        if self.0.is_empty() {
            return None;
        }
        let step = self.0.arbitrary().ok()?;
        trace(|| format!("{step:?}"));
        Some(step)
    }
}

/// Tells what happens, for those who look into an input.
pub(crate) fn trace(line: impl FnOnce() -> String) {
    static WANTED: OnceLock<bool> = OnceLock::new();
    if *WANTED.get_or_init(|| std::env::var_os("VSOCK_FUZZ_TRACE").is_some()) {
        eprintln!("{}", line());
    }
}
