//! What two guests of one daemon do to each other.

mod bulk;
mod groups;
mod kernel_tests;
mod leaving;
mod life;
mod tools;

use std::path::Path;

use anyhow::Result;

use super::{Case, Setting};
use crate::equipment::Equipment;
use crate::siblings::Siblings;

/// All cases, in their order: what takes guests apart comes last. What all their names
/// begin with chooses them by `--filter`.
pub(super) fn cases() -> Vec<Case<Siblings>> {
    let mut cases = kernel_tests::cases();
    cases.extend(bulk::cases());
    cases.extend(life::cases());
    cases.extend(tools::cases());
    cases.extend(groups::cases());
    cases.extend(leaving::cases());
    for case in &mut cases {
        case.name.insert_str(0, "siblings: ");
    }
    cases
}

/// A shell's command for a client whose server is about to listen: it is repeated while it
/// fails, but not for ever.
fn once_accepted(command: &str) -> String {
    format!("for try in $(seq 500); do {command} && exit; usleep 20000; done; exit 1")
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
