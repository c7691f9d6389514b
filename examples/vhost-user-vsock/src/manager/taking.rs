//! Takes steps, and undoes those before one that fails.

use std::sync::atomic::Ordering;

use tracing::{info, warn};
use vsock_vhost_user::{ChangeError, Changes};

use super::{Failure, Manager, lock};
use crate::access::is_open_to_all;
use crate::plan::Step;
use crate::systemd::Hint;
use crate::vm::Vm;

impl Manager {
    /// Takes these steps, or none of them as far as can be.
    pub(super) fn take_all(&self, steps: &[Step]) -> Result<(), Failure> {
        for (index, step) in steps.iter().enumerate() {
            let Err(failure) = self.take(step) else {
                continue;
            };
            let remains = self.undo(&steps[..index]);
            return Err(failure.with(remains));
        }
        Ok(())
    }

    /// Undoes these steps, the last one first; returns what is not as it was.
    fn undo(&self, taken: &[Step]) -> Vec<String> {
        let undone = taken.iter().rev().map(|step| {
            let failure = self.take(&step.clone().inverse()).err();
            step.remains(failure.map(|failure| failure.message()).as_deref())
        });
        undone.flatten().collect()
    }

    pub(super) fn take(&self, step: &Step) -> Result<(), Failure> {
        self.progress.fetch_add(1, Ordering::Relaxed);
        let result = match step {
            Step::Add(vm) => self.serve(vm),
            Step::Remove(vm) => {
                self.server.remove(vm.cid);
                lock(&self.vms).remove(vm.cid);
                info!("no longer serving CID {}", vm.cid);
                Ok(())
            }
            Step::Change { from, to } => self.tell(from, to),
        };
        self.progress.fetch_add(1, Ordering::Relaxed);
        if let Some(hints) = self.hints.get() {
            // It fails at the daemon's end, when nobody needs it.
            let _ = hints.send(Hint::Look);
        }
        result
    }

    fn serve(&self, vm: &Vm) -> Result<(), Failure> {
        let shortage = |error: &dyn ToString| Failure::System(error.to_string());
        let mut config = vm.config().map_err(|error| shortage(&error))?;
        config.busy_poll = self.sources.busy_poll;
        self.server.add(config).map_err(|error| shortage(&error))?;
        lock(&self.vms).put(vm.clone());
        info!("{}", vm.summary());
        if is_open_to_all(vm.access) {
            warn!(
                "any user of this host can connect to the sockets of CID {}",
                vm.cid
            );
        }
        Ok(())
    }

    fn tell(&self, from: &Vm, to: &Vm) -> Result<(), Failure> {
        let cid = to.cid;
        match self.server.change(cid, &changes(from, to)) {
            Ok(()) => {
                lock(&self.vms).put(to.clone());
                info!("now {}", to.summary());
                Ok(())
            }
            Err(ChangeError::NoSuchGuest(cid)) => Err(Failure::NoSuchVm(cid)),
            Err(error) => Err(Failure::System(error.to_string())),
        }
    }
}

/// Only what is different.
fn changes(from: &Vm, to: &Vm) -> Changes {
    fn changed<T: PartialEq + Clone>(from: &T, to: &T) -> Option<T> {
        (from != to).then(|| to.clone())
    }
    let (from, to) = (&from.policy, &to.policy);
    Changes {
        groups: changed(&from.groups, &to.groups),
        host_cids: changed(&from.host_cids, &to.host_cids),
        tx_buffer_size: changed(&from.tx_buffer_size, &to.tx_buffer_size),
        max_connections: changed(&from.max_connections, &to.max_connections),
        max_backlog: changed(&from.max_backlog, &to.max_backlog),
        max_buffered: changed(&from.max_buffered, &to.max_buffered),
        max_handshakes: changed(&from.max_handshakes, &to.max_handshakes),
        max_bytes_per_second: changed(&from.max_bytes_per_second, &to.max_bytes_per_second),
        max_requests_per_second: changed(
            &from.max_requests_per_second,
            &to.max_requests_per_second,
        ),
    }
}
