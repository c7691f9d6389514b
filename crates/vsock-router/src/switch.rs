//! The guests that may reach each other.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use thiserror::Error;
use vsock_packet::{Cid, GuestCid};

use crate::member::Member;
use crate::port::Port;
use crate::record::Recorder;
use crate::router::{Refusal, Request, Route, Router};
use crate::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The names of the groups a guest is in.
pub type Groups = BTreeSet<String>;

/// What one guest may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Connections with siblings that it has opened itself.
    pub connections: usize,
    /// Bytes that wait for siblings because of this guest. What waits at one sibling may
    /// be half of it at most; a connection that would make it more is reset.
    pub backlog: usize,
}

impl Default for Limits {
    /// 4096 connections, 64 MiB.
    fn default() -> Self {
        Self {
            connections: 4096,
            backlog: 64 << 20,
        }
    }
}

/// The CID is another guest's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("CID {0} is taken by another guest of the switch")]
pub struct JoinError(pub GuestCid);

/// The guests that may reach each other, by the groups they share. With it their connections
/// go, and nobody is told.
#[derive(Debug, Default)]
pub struct Switch {
    members: RwLock<HashMap<Cid, Arc<Member>>>,
    limits: Limits,
    recorder: Arc<Recorder>,
}

impl Switch {
    /// A switch without guests; each will have these limits.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            members: RwLock::default(),
            recorder: Arc::default(),
        }
    }

    /// Has its connections numbered and observed by `recorder`.
    #[must_use]
    pub fn with_recorder(mut self, recorder: Arc<Recorder>) -> Self {
        self.recorder = recorder;
        self
    }

    /// What numbers the connections.
    pub fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<Cid, Arc<Member>>> {
        self.members.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<Cid, Arc<Member>>> {
        self.members.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a guest, which receives through `port`.
    ///
    /// # Errors
    ///
    /// [`JoinError`] when the CID is taken.
    pub fn join(
        &self,
        cid: GuestCid,
        groups: Groups,
        port: Arc<dyn Port>,
    ) -> Result<Arc<Member>, JoinError> {
        let mut members = self.write();
        if members.contains_key(&cid.cid()) {
            return Err(JoinError(cid));
        }
        let member = Arc::new(Member::new(
            cid.cid(),
            groups,
            port,
            self.limits,
            Arc::clone(&self.recorder),
        ));
        members.insert(cid.cid(), Arc::clone(&member));
        Ok(member)
    }

    /// A member that no guest finds by itself: a service of the VMM's own, which a router
    /// sends connections to. They are addressed to `cid`, the host's for example.
    pub fn service(&self, cid: Cid, port: Arc<dyn Port>) -> Arc<Member> {
        Arc::new(Member::service(
            cid,
            port,
            self.limits,
            Arc::clone(&self.recorder),
        ))
    }

    /// Removes a guest; its connections end at their other ends.
    pub fn leave(&self, cid: GuestCid, now: Instant) {
        let member = self.write().remove(&cid.cid());
        if let Some(member) = member {
            member.leave(now);
        }
    }

    /// Puts a guest into other groups. Connections that they do not allow end at once.
    /// `false` when there is no such guest.
    pub fn set_groups(&self, cid: GuestCid, groups: Groups, now: Instant) -> bool {
        let member = self.read().get(&cid.cid()).cloned();
        match member {
            Some(member) => {
                member.set_groups(groups, now);
                true
            }
            None => false,
        }
    }

    fn route(&self, request: &Request) -> Result<Arc<Member>, Refusal> {
        let members = self.read();
        let (Some(source), Some(target)) = (
            members.get(&request.guest.cid()),
            members.get(&request.dst.cid),
        ) else {
            return Err(Refusal::NoRoute);
        };
        if Arc::ptr_eq(source, target) || !source.shares_group(target) {
            return Err(Refusal::NoSharedGroup);
        }
        if !target.is_up() {
            return Err(Refusal::NotUp);
        }
        if !target.takes(request.socket_type) {
            return Err(Refusal::TypeNotSupported);
        }
        Ok(Arc::clone(target))
    }
}

impl Drop for Switch {
    /// The members of a connection hold each other: nobody is left to end it.
    fn drop(&mut self) {
        for member in self.read().values() {
            member.forget_all();
        }
    }
}

/// Sends connections to the siblings of a switch.
#[derive(Clone, Debug)]
pub struct Siblings(pub Arc<Switch>);

impl Router for Siblings {
    fn route(&self, request: &Request) -> Route {
        match self.0.route(request) {
            Ok(member) => Route::Member(member),
            Err(why) => Route::Refuse(why),
        }
    }
}
