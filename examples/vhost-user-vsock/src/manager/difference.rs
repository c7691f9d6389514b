//! What came of a reload.

use vsock_packet::GuestCid;

use crate::plan::Step;

/// What a reload did, by CIDs.
#[derive(Default, Debug)]
pub(crate) struct Difference {
    pub(crate) added: Vec<GuestCid>,
    pub(crate) removed: Vec<GuestCid>,
    pub(crate) changed: Vec<GuestCid>,
}

impl Difference {
    /// A VM that was removed and added again has changed.
    pub(super) fn of(steps: &[Step]) -> Self {
        let mut difference = Self::default();
        for step in steps {
            match step {
                Step::Add(vm) => difference.added.push(vm.cid),
                Step::Remove(vm) => difference.removed.push(vm.cid),
                Step::Change { to, .. } => difference.changed.push(to.cid),
            }
        }
        let (added, removed) = (&mut difference.added, &mut difference.removed);
        let both: Vec<_> = added
            .iter()
            .copied()
            .filter(|cid| removed.contains(cid))
            .collect();
        added.retain(|cid| !both.contains(cid));
        removed.retain(|cid| !both.contains(cid));
        difference.changed.extend(both);
        for cids in [added, removed, &mut difference.changed] {
            cids.sort();
        }
        difference
    }
}
