//! What goes wrong, and what operators do.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::operator::Order;
use crate::plan::{ACCEPTOR, Kind, OPENER};
use crate::side::Side;
use crate::vm::{Change, State, Vm};
use crate::wire::Wire;
use crate::world::World;

/// Groups a VM may be in.
const GROUPS: [&[&str]; 5] = [&["a"], &["b"], &["a", "b"], &["a", "c"], &[]];

/// The tag of requests that concern no VM.
const NOBODY: usize = usize::MAX;

impl World {
    /// Something goes wrong.
    pub(crate) fn disturb_something(&mut self, now: Instant) -> Result<()> {
        let vm = self.random.below(self.vms.len() as u64) as usize;
        let soon = |most: u64, world: &mut Self| {
            now + Duration::from_millis(world.random.magnitude(1, most))
        };
        let chosen = self.random.below(16);
        let is_steady = self.vms[vm].is_steady();
        let how = match chosen {
            0 | 1 if is_steady => {
                self.disturb(vm, "its guest was reset");
                self.vms[vm].reset(chosen == 0)?;
                "guests reset"
            }
            2 if is_steady => {
                self.disturb(vm, "its VM ended");
                let until = soon(500, self);
                self.vms[vm].end(until);
                "VMs that ended"
            }
            3 | 4 if is_steady => {
                let until = soon(1500, self);
                self.vms[vm].pause(until)?;
                "VMs paused"
            }
            5 if is_steady => {
                let until = soon(1500, self);
                self.vms[vm].stall(until);
                "guests that do nothing for a while"
            }
            6 if is_steady => {
                self.remove_vm(vm)?;
                "VMs removed and added"
            }
            7 if is_steady => {
                self.regroup(vm)?;
                "groups changed"
            }
            8 | 9 if self.vms[vm].service.is_some() => {
                let until = soon(300, self);
                self.kill_service(vm, until);
                "host servers that died, their sockets replaced"
            }
            10 | 11 => {
                self.kill_clients();
                "host clients that died"
            }
            12 | 13 => {
                self.kill_connections();
                "connections killed by an operator"
            }
            14 if self.vms.iter().all(Vm::is_steady) => {
                let until = soon(300, self);
                self.starve(until)?;
                "times without descriptors"
            }
            _ => return Ok(()),
        };
        self.tally.disturbed(how);
        Ok(())
    }

    /// Some of the host's applications that dialed a guest die.
    fn kill_clients(&mut self) {
        let of_host = |kind| kind == Kind::HostToGuest;
        for connection in self.connections.values_mut() {
            let is_open = connection.side(OPENER).is_some_and(Side::is_open);
            if of_host(connection.plan.kind) && is_open && self.random.one_in(4) {
                if connection.side(ACCEPTOR).is_none() {
                    connection.disturb("its opener died early");
                }
                connection.kill_application();
            }
        }
    }

    /// An operator resets a few connections.
    fn kill_connections(&mut self) {
        let mut orders = Vec::new();
        for connection in self.connections.values_mut() {
            let of_opener = connection.side(OPENER).and_then(Side::wire);
            let of_acceptor = connection.side(ACCEPTOR).and_then(Side::wire);
            let ends = match (of_opener, of_acceptor) {
                (Some(wire @ Wire::Guest { .. }), _) => ends(wire, &mut self.vms),
                (_, Some(wire @ Wire::Guest { .. })) => {
                    ends(wire, &mut self.vms).map(|(local, peer)| (peer, local))
                }
                _ => None,
            };
            if let Some((from, to)) = ends
                && self.random.one_in(10)
            {
                connection.disturb("it was killed");
                let ordered = Instant::now();
                orders.push(Order::Kill { from, to, ordered });
            }
        }
        for order in orders {
            self.operator.order(NOBODY, order);
        }
    }

    /// The daemon gets few descriptors more, or none, until then.
    fn starve(&mut self, until: Instant) -> Result<()> {
        let more = self.random.below(4);
        self.daemon.limit_descriptors(Some(more))?;
        while Instant::now() < until {
            self.refusals_until = Instant::now() + Duration::from_secs(3);
            self.turn(true)?;
        }
        self.daemon.limit_descriptors(None)
    }

    /// Has a VM put into other groups.
    fn regroup(&mut self, vm: usize) -> Result<()> {
        let groups = self.random.pick(&GROUPS);
        self.vms[vm].groups = groups.to_vec();
        let apart: Vec<_> = self
            .vms
            .iter()
            .map(|other| !other.shares_a_group(&self.vms[vm]))
            .collect();
        for connection in self.connections.values_mut() {
            let plan = &connection.plan;
            let is_sibling = matches!(plan.kind, Kind::Siblings(_)) && plan.concerns(vm);
            if is_sibling && apart[if plan.vm == vm { plan.peer } else { plan.vm }] {
                connection.disturb("its VMs share no group any more");
            }
        }
        self.vms[vm].change = Some(Change::Regroup);
        if self.vms[vm].is_configured {
            self.vms[vm].write_configuration()?;
            self.reload(vm);
        } else {
            let body = json!({"groups": groups});
            self.ask(vm, "PATCH", body, &[200]);
        }
        Ok(())
    }

    /// Has a VM removed; when it is, it is added again.
    fn remove_vm(&mut self, vm: usize) -> Result<()> {
        self.disturb(vm, "its VM was removed");
        if self.random.one_in(2) {
            self.vms[vm].end(Instant::now());
        }
        self.vms[vm].change = Some(Change::Remove);
        if self.vms[vm].is_configured {
            self.vms[vm].delete_configuration()?;
            self.reload(vm);
        } else {
            self.ask(vm, "DELETE", Value::Null, &[204]);
        }
        if self.vms[vm].state != State::Up {
            self.vms[vm].state = State::Removed;
        }
        Ok(())
    }

    /// Has a VM added.
    pub(crate) fn add_vm(&mut self, vm: usize) {
        self.vms[vm].change = Some(Change::Add);
        let Vm {
            socket,
            uds,
            groups,
            ..
        } = &self.vms[vm];
        let body = json!({"socket": socket, "uds_path": uds, "groups": groups});
        self.ask(vm, "PUT", body, &[201]);
    }

    fn ask(&mut self, vm: usize, method: &'static str, body: Value, allowed: &'static [u16]) {
        let path = format!("/vms/{}", self.vms[vm].cid);
        let order = Order::Ask {
            method,
            path,
            body,
            allowed,
        };
        self.operator.order(vm, order);
    }

    fn reload(&mut self, vm: usize) {
        let order = Order::Ask {
            method: "POST",
            path: "/reload".to_owned(),
            body: Value::Null,
            allowed: &[200],
        };
        self.operator.order(vm, order);
    }

    /// Takes what became of requests, and does what follows.
    pub(crate) fn take_results(&mut self) -> Result<()> {
        while let Some((vm, result)) = self.operator.result() {
            result.context("an operator's request")?;
            if vm != NOBODY {
                self.change_is_done(vm)?;
            }
        }
        Ok(())
    }

    fn change_is_done(&mut self, vm: usize) -> Result<()> {
        let now = Instant::now();
        match self.vms[vm].change.take() {
            None | Some(Change::Regroup) => (),
            Some(Change::Add) => {
                self.vms[vm].state = State::Gone;
                self.vms[vm].until = now;
            }
            Some(Change::Remove) => {
                // What was opened since then is gone with the rest.
                self.disturb(vm, "its VM was removed");
                self.vms[vm].end(now);
                self.vms[vm].state = State::Removed;
                if self.vms[vm].is_configured {
                    self.vms[vm].change = Some(Change::Add);
                    self.vms[vm].write_configuration()?;
                    self.reload(vm);
                } else {
                    self.add_vm(vm);
                }
            }
        }
        Ok(())
    }
}

/// The ends of a guest's connection: its own, and the peer's.
fn ends(wire: &Wire, vms: &mut [Vm]) -> Option<(vsock_packet::VsockAddr, vsock_packet::VsockAddr)> {
    let Wire::Guest { vm, life, id, .. } = wire else {
        return None;
    };
    if vms[*vm].life != *life {
        return None;
    }
    let stream = vms[*vm].guest()?.stream(*id);
    Some((stream.local(), stream.peer()))
}
