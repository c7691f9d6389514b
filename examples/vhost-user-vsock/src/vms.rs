//! VMs none of which is in another's way.

use std::collections::BTreeMap;
use std::sync::Arc;

use vsock_packet::GuestCid;
use vsock_vhost_user::Server;

use crate::mistake::{Kind, Mistake};
use crate::place::{Allow, Place};
use crate::policy::list;
use crate::vm::{Claim, Vm};

/// VMs with CIDs of their own, and places of their own for their sockets.
#[derive(Clone, Debug)]
pub(crate) struct Vms {
    /// Shared, so that a snapshot of many is made at once.
    vms: BTreeMap<GuestCid, Arc<Vm>>,
    /// Whose the places are.
    places: BTreeMap<Place, GuestCid>,
    /// The place of the daemon's own socket, which is no VM's.
    control: Option<Claim>,
    /// How many there may be.
    most: usize,
}

impl Default for Vms {
    fn default() -> Self {
        Self {
            vms: BTreeMap::new(),
            places: BTreeMap::new(),
            control: None,
            most: Server::DEFAULT_MAX_GUESTS,
        }
    }
}

impl Vms {
    /// No VM yet, and a place that none may have.
    pub(crate) fn beside(control: Option<Claim>) -> Self {
        Self {
            control,
            ..Self::default()
        }
    }

    /// The same, of which there may be no more than this.
    pub(crate) fn at_most(self, most: usize) -> Self {
        Self { most, ..self }
    }

    /// How many there may be.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// Takes one more VM.
    ///
    /// # Errors
    ///
    /// It is in the way of one that is here; nothing has changed.
    pub(crate) fn admit(&mut self, vm: Vm) -> Result<(), Mistake> {
        self.refuse(&vm)?;
        self.put(vm);
        Ok(())
    }

    /// Finds out whether one more VM would be in nobody's way.
    ///
    /// # Errors
    ///
    /// It would be in the way of one that is here.
    pub(crate) fn refuse(&self, vm: &Vm) -> Result<(), Mistake> {
        if self.vms.contains_key(&vm.cid) {
            return Err(Mistake::of_kind(
                Kind::CidTaken,
                vm.origin.setting("guest-cid", vm.cid),
                "is another VM's CID",
                "give each VM a CID of its own",
            ));
        }
        if self.vms.len() >= self.most {
            return Err(Mistake::of_kind(
                Kind::TooMany,
                vm.origin.setting("guest-cid", vm.cid),
                format!("would be one VM more than max-guests {}", self.most),
                "remove another VM, or restart the daemon with a larger --max-guests",
            ));
        }
        self.refuse_conflicts(vm)?;
        self.refuse_two_meanings(vm)
    }

    /// Has `vm` among them, whatever is in its way: between two sets in which nothing is,
    /// step by step, there may be some in which something is.
    pub(crate) fn put(&mut self, vm: Vm) {
        self.remove(vm.cid);
        for claim in &vm.claims {
            self.places.insert(claim.place.clone(), vm.cid);
        }
        self.vms.insert(vm.cid, Arc::new(vm));
    }

    pub(crate) fn remove(&mut self, cid: GuestCid) -> Option<Arc<Vm>> {
        let vm = self.vms.remove(&cid)?;
        for claim in &vm.claims {
            if self.places.get(&claim.place) == Some(&cid) {
                self.places.remove(&claim.place);
            }
        }
        Some(vm)
    }

    pub(crate) fn get(&self, cid: GuestCid) -> Option<&Arc<Vm>> {
        self.vms.get(&cid)
    }

    /// By their CIDs.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Vm> {
        self.vms.values().map(Arc::as_ref)
    }

    pub(crate) fn len(&self) -> usize {
        self.vms.len()
    }

    /// Whether a socket of these VMs is at this place.
    pub(crate) fn has(&self, place: &Place) -> bool {
        let is_control = |claim: &Claim| claim.place == *place;
        self.places.contains_key(place) || self.control.as_ref().is_some_and(is_control)
    }

    /// Finds out whether all sockets of `vms` can be created, but for those that these
    /// VMs have.
    ///
    /// # Errors
    ///
    /// The first that could not.
    pub(crate) fn examine<'a>(
        &self,
        vms: impl IntoIterator<Item = &'a Vm>,
        allow: Allow,
    ) -> Result<(), Mistake> {
        let claims = vms.into_iter().flat_map(|vm| &vm.claims);
        claims
            .filter(|claim| !self.has(&claim.place))
            .try_for_each(|claim| claim.examine(allow))
    }

    /// Claims that may be in this one's way, found without looking at all of them.
    fn near(&self, claim: &Claim) -> impl Iterator<Item = &Claim> {
        let place = &claim.place;
        let same = self.places.get_key_value(place);
        let owner = place.owner();
        let owner = owner.and_then(|owner| self.places.get_key_value(&owner));
        let first_port = place.first_port();
        let ports = self.places.range(first_port.clone()..);
        let ports = ports.take_while(move |(place, _)| first_port.begins(place));
        let near = same.into_iter().chain(owner).chain(ports);
        near.filter_map(|(place, cid)| {
            let mut claims = self.vms.get(cid)?.claims.iter();
            claims.find(|claim| claim.place == *place)
        })
        .chain(&self.control)
    }

    /// Each place belongs to one socket of one VM, and none is where a guest would look for
    /// a host application: that guest would reach into another's sockets.
    fn refuse_conflicts(&self, vm: &Vm) -> Result<(), Mistake> {
        for (index, claim) in vm.claims.iter().enumerate() {
            let own = vm.claims[..index].iter();
            for other in self.near(claim).chain(own) {
                refuse_conflict(other, claim)?;
            }
        }
        Ok(())
    }

    /// A CID that means the host to a guest is that of no sibling which it reaches, and
    /// which reaches it: neither could be told from the host. Of a guest that it shares no
    /// group with, no packet comes, and none goes there.
    fn refuse_two_meanings(&self, vm: &Vm) -> Result<(), Mistake> {
        let others = self.iter();
        others
            .flat_map(|other| [(vm, other), (other, vm)])
            .try_for_each(|(guest, sibling)| refuse_two_meanings(guest, sibling))
    }
}

fn refuse_conflict(earlier: &Claim, later: &Claim) -> Result<(), Mistake> {
    let taken = |problem, remedy| {
        Err(Mistake::of_kind(
            Kind::PathTaken,
            &later.setting,
            problem,
            remedy,
        ))
    };
    if earlier.place == later.place {
        return taken(
            format!("is also the path of {}", earlier.setting),
            "give each socket its own",
        );
    }
    if let Some(port) = later.port_of(earlier) {
        return taken(
            format!("is where port {port} of {} leads", earlier.setting),
            "choose a path that doesn't end so",
        );
    }
    if let Some(port) = earlier.port_of(later) {
        return taken(
            format!("its port {port} would lead to {}", earlier.setting),
            "choose another path",
        );
    }
    Ok(())
}

impl Claim {
    fn port_of(&self, owner: &Self) -> Option<u32> {
        let of_owner = || self.place.port_of(&owner.place);
        owner.has_ports.then(of_owner).flatten()
    }
}

fn refuse_two_meanings(guest: &Vm, sibling: &Vm) -> Result<(), Mistake> {
    let (own, other) = (&guest.policy, &sibling.policy);
    // First, since it is seldom so and there may be thousands of groups.
    if !own.host_cids.contains(&sibling.cid.cid()) {
        return Ok(());
    }
    let shared = own.groups.iter().find(|group| other.groups.contains(group));
    match shared {
        Some(group) => Err(Mistake::of_kind(
            Kind::CidAmbiguous,
            guest.origin.setting("host-cids", list(&own.host_cids)),
            format!(
                "{} is also the CID of a VM in the same group '{group}'",
                sibling.cid
            ),
            "choose another CID, or other groups",
        )),
        None => Ok(()),
    }
}
