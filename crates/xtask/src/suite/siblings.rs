//! What guests of one daemon do to each other.
//!
//! ```text
//!     no group       group `left`         group `right`
//!   ┌───────────┐   ┌──────────┐    ┌───────────────────┐    ┌───────────┐
//!   │ ALONE (6) │   │ LEFT (4) │────│ MIDDLE (3) in both│────│ RIGHT (5) │
//!   └───────────┘   └──────────┘    └───────────────────┘    └───────────┘
//! ```
//!
//! LEFT and MIDDLE are there from the start, and have a cable for the kernel's tests. The
//! others boot when a case asks for them.

pub(crate) mod bulk;
mod groups;
mod kernel_benchmark;
mod kernel_tests;
mod leaving;
mod life;
mod managing;
mod tools;

use std::path::Path;

use anyhow::Result;

use super::{Case, Setting};
use crate::equipment::Equipment;
use crate::siblings::{Plan, Siblings};

/// The guest in both groups.
const MIDDLE: u32 = 3;
/// A guest that shares a group with the middle one.
const LEFT: u32 = 4;
/// A guest that shares another group with the middle one.
const RIGHT: u32 = 5;
/// A guest without a group.
const ALONE: u32 = 6;
/// A guest that the daemon does not know at the start.
const NEWCOMER: u32 = 7;

/// All cases, in their order: what takes guests apart comes last. What all their names
/// begin with chooses them by `--filter`.
pub(super) fn cases() -> Vec<Case<Siblings>> {
    let mut cases = kernel_tests::cases();
    cases.extend(kernel_benchmark::cases());
    cases.extend(bulk::cases());
    cases.extend(life::cases());
    cases.extend(tools::cases());
    cases.extend(groups::cases());
    cases.extend(managing::cases());
    cases.extend(leaving::cases());
    for case in &mut cases {
        case.name.insert_str(0, "siblings: ");
    }
    cases
}

impl Setting for Siblings {
    const NAME: &'static str = "a daemon and two guests";

    fn start(equipment: &Equipment) -> Result<Self> {
        let vms = [
            (MIDDLE, "left+right"),
            (LEFT, "left"),
            (RIGHT, "right"),
            (ALONE, ""),
        ];
        let plan = Plan {
            vms: vms.into(),
            up: vec![MIDDLE, LEFT],
            cable: Some((MIDDLE, LEFT)),
        };
        Self::start(equipment, plan)
    }

    fn check(&mut self) -> Result<()> {
        self.check()
    }

    fn keep_logs(&self, directory: &Path) -> Result<()> {
        self.keep_logs(directory)
    }

    fn log_tails(&self) -> String {
        self.log_tails()
    }
}
