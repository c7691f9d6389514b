//! What two guests of one daemon do to each other.

mod kernel_tests;

use std::path::Path;

use anyhow::Result;

use super::{Case, Setting};
use crate::equipment::Equipment;
use crate::siblings::Siblings;

/// All cases, in their order: what takes guests apart comes last.
pub(super) fn cases() -> Vec<Case<Siblings>> {
    kernel_tests::cases()
}

impl Setting for Siblings {
    const NAME: &'static str = "a daemon and two guests";

    fn start(equipment: &Equipment) -> Result<Self> {
        Self::start(equipment)
    }

    fn check(&mut self) -> Result<()> {
        self.check()
    }

    fn keep_logs(&self, directory: &Path) -> Result<String> {
        let daemon = self.keep_logs(directory)?;
        let consoles = self.console_tails();
        Ok(format!(
            "the end of the daemon's log:\n{daemon}\n{consoles}"
        ))
    }
}
