//! From the VMs that are served to those that are to be served, step by step.

use crate::access::AccessRules;
use crate::mistake::Mistake;
use crate::spec::{Origin, VmSpec};
use crate::vm::Vm;
use crate::vms::Vms;

/// One thing to do. Each can be undone by another.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Add(Vm),
    Remove(Vm),
    /// The policy of a VM that goes on being served.
    Change {
        from: Box<Vm>,
        to: Box<Vm>,
    },
}

impl Step {
    /// What undoes it.
    pub(crate) fn inverse(self) -> Self {
        match self {
            Self::Add(vm) => Self::Remove(vm),
            Self::Remove(vm) => Self::Add(vm),
            Self::Change { from, to } => Self::Change { from: to, to: from },
        }
    }

    /// What is not as it was when this has been undone, or was not to be for that reason.
    pub(crate) fn remains(&self, failure: Option<&str>) -> Option<String> {
        match (self, failure) {
            (Self::Remove(vm), None) => Some(format!("CID {} was away for a moment", vm.cid)),
            (Self::Add(_) | Self::Change { .. }, None) => None,
            (Self::Remove(vm), Some(why)) => {
                Some(format!("CID {} is no longer served ({why})", vm.cid))
            }
            (Self::Add(vm), Some(why)) => Some(format!("CID {} is still served ({why})", vm.cid)),
            (Self::Change { to, .. }, Some(why)) => {
                Some(format!("CID {} has its new settings ({why})", to.cid))
            }
        }
    }
}

/// The VMs to be served when the configuration is `specs`: these, and those of `now` that
/// it has no say about, because they were added at the control socket or by options.
///
/// Such a VM becomes the configuration's if that describes the same one: the CID, the
/// sockets and the ring are the same.
///
/// # Errors
///
/// A setting that is wrong, or VMs in each other's way.
pub(crate) fn wanted(now: &Vms, specs: Vec<VmSpec>, rules: &AccessRules) -> Result<Vms, Mistake> {
    let mut wanted = now.clone();
    let of_config = now.iter().filter(|vm| is_of_config(vm));
    for vm in of_config {
        wanted.remove(vm.cid);
    }
    for spec in specs {
        let vm = Vm::parse(spec, rules)?;
        if let Some(same) = wanted.get(vm.cid)
            && !is_of_config(same)
            && same.is_same_but_for_policy(&vm)
        {
            wanted.remove(vm.cid);
        }
        wanted.admit(vm)?;
    }
    Ok(wanted)
}

fn is_of_config(vm: &Vm) -> bool {
    matches!(vm.origin, Origin::File(_))
}

/// The steps from one set to the other. What is added and needs nothing of what goes, neither a
/// place nor that there is one VM less, comes first, so that a shortage is found before anything
/// was taken from anybody.
pub(crate) fn steps(now: &Vms, wanted: &Vms) -> Vec<Step> {
    let room = now.most().saturating_sub(now.iter().count());
    let (mut first, mut removals, mut last, mut changes) = (vec![], vec![], vec![], vec![]);
    for vm in wanted.iter() {
        match now.get(vm.cid) {
            Some(served) if served.is_same_but_for_policy(vm) => {
                if served.policy != vm.policy {
                    changes.push(Step::Change {
                        from: Box::new(Vm::clone(served)),
                        to: Box::new(vm.clone()),
                    });
                }
            }
            None if first.len() < room && !vm.claims.iter().any(|claim| now.has(&claim.place)) => {
                first.push(Step::Add(vm.clone()));
            }
            _ => last.push(Step::Add(vm.clone())),
        }
    }
    for vm in now.iter() {
        let stays = wanted.get(vm.cid);
        if !stays.is_some_and(|wanted| wanted.is_same_but_for_policy(vm)) {
            removals.push(Step::Remove(vm.clone()));
        }
    }
    [first, removals, last, changes].concat()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::spec::{Settings, Table};

    fn wanted(now: &Vms, specs: Vec<VmSpec>) -> Result<Vms, Mistake> {
        super::wanted(now, specs, &AccessRules::default())
    }

    fn spec(dir: &Path, cid: u64, socket: &str, groups: &[&str], in_file: bool) -> VmSpec {
        let origin = if in_file {
            Origin::File(Table {
                path: "vms.toml".into(),
                line: 1,
                keys: Default::default(),
            })
        } else {
            Origin::Request(cid)
        };
        let settings = Settings {
            cid: Some(cid),
            socket: Some(dir.join(socket)),
            uds_path: Some(dir.join(format!("{socket}.vsock"))),
            groups: Some(groups.iter().map(|&group| group.to_owned()).collect()),
            ..Settings::default()
        };
        VmSpec::new(origin, settings)
    }

    fn set(specs: Vec<VmSpec>) -> Vms {
        let mut vms = Vms::default();
        for spec in specs {
            vms.admit(Vm::parse(spec, &AccessRules::default()).unwrap())
                .unwrap();
        }
        vms
    }

    fn describe(steps: &[Step]) -> Vec<String> {
        let describe = |step: &Step| match step {
            Step::Add(vm) => format!("+{}", vm.cid),
            Step::Remove(vm) => format!("-{}", vm.cid),
            Step::Change { to, .. } => format!("~{}", to.cid),
        };
        steps.iter().map(describe).collect()
    }

    #[test]
    fn goes_from_one_configuration_to_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let vm = |cid, socket: &str, groups: &[&str]| spec(dir.path(), cid, socket, groups, true);
        let now = set(vec![
            vm(3, "a", &[]),
            vm(4, "b", &[]),
            vm(5, "c", &[]),
            vm(6, "d", &[]),
        ]);
        let next = vec![
            vm(3, "a", &[]),
            vm(4, "b", &["x"]),
            vm(5, "e", &[]),
            vm(7, "d", &[]),
            vm(8, "f", &[]),
        ];
        let wanted = wanted(&now, next).unwrap();
        let steps = steps(&now, &wanted);
        assert_eq!(describe(&steps), ["+8", "-5", "-6", "+5", "+7", "~4"]);
        let back: Vec<_> = steps.into_iter().rev().map(Step::inverse).collect();
        assert_eq!(describe(&back), ["~4", "-7", "-5", "+6", "+5", "-8"]);
    }

    #[test]
    fn never_has_more_vms_than_there_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let vm = |cid, socket: &str| spec(dir.path(), cid, socket, &[], true);
        let now = set(vec![vm(3, "a"), vm(4, "b")]).at_most(3);
        let next = vec![vm(5, "c"), vm(6, "d"), vm(7, "e")];
        let wanted = wanted(&now, next).unwrap();
        let steps = steps(&now, &wanted);
        assert_eq!(describe(&steps), ["+5", "-3", "-4", "+6", "+7"]);
    }

    #[test]
    fn leaves_alone_what_the_configuration_never_had() {
        let dir = tempfile::tempdir().unwrap();
        let now = set(vec![
            spec(dir.path(), 3, "a", &[], false),
            spec(dir.path(), 4, "b", &[], true),
        ]);
        let without = wanted(&now, vec![]).unwrap();
        assert_eq!(describe(&steps(&now, &without)), ["-4"]);
    }

    #[test]
    fn takes_over_the_same_vm_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let now = set(vec![spec(dir.path(), 3, "a", &[], false)]);
        let same = wanted(&now, vec![spec(dir.path(), 3, "a", &["x"], true)]).unwrap();
        assert_eq!(describe(&steps(&now, &same)), ["~3"]);
        assert!(is_of_config(
            same.get(same.iter().next().unwrap().cid).unwrap()
        ));
        assert!(wanted(&now, vec![spec(dir.path(), 3, "b", &[], true)]).is_err());
        let twice = vec![
            spec(dir.path(), 3, "a", &[], true),
            spec(dir.path(), 3, "a", &[], true),
        ];
        assert!(wanted(&now, twice).is_err());
    }
}
