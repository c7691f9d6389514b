//! To whom the daemon may give its sockets.

use rustix::process::{getegid, geteuid, getgroups};
use rustix::thread::{CapabilitySet, capabilities};

/// Whom the daemon may give a file of its own.
#[derive(Clone, Default, Debug)]
pub(super) struct Privilege {
    pub(super) user: u32,
    pub(super) groups: Vec<u32>,
    pub(super) may_chown: bool,
}

impl Privilege {
    pub(super) fn now() -> Self {
        let mut groups = vec![getegid().as_raw()];
        let further = getgroups().unwrap_or_default();
        groups.extend(further.into_iter().map(rustix::process::Gid::as_raw));
        let may_chown = capabilities(None)
            .is_ok_and(|capabilities| capabilities.effective.contains(CapabilitySet::CHOWN));
        Self {
            user: geteuid().as_raw(),
            groups,
            may_chown,
        }
    }

    pub(super) fn may_give_to(&self, user: u32) -> bool {
        self.may_chown || user == self.user
    }

    pub(super) fn may_share_with(&self, group: u32) -> bool {
        self.may_chown || self.groups.contains(&group)
    }
}
