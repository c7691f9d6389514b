//! Host ports for connections that the host's applications begin.

use std::collections::HashSet;

use vsock_packet::PortNumber;

/// The first port that is given out. Those below are left to well-known services.
const FIRST: u32 = 1024;
/// The last one. Clients such as systemd's ssh proxy have room for five digits only.
const LAST: u32 = 65_535;

/// The host ports given out to connections, each freed when its connection ends.
///
/// They are given out in turn, so that a port just freed is the last to be used again.
#[derive(Debug)]
pub struct HostPorts {
    taken: HashSet<u32>,
    next: u32,
}

impl Default for HostPorts {
    fn default() -> Self {
        Self {
            taken: HashSet::new(),
            next: FIRST,
        }
    }
}

impl HostPorts {
    /// Takes a port; `None` when all are taken.
    pub fn take(&mut self) -> Option<PortNumber> {
        if self.taken.len() > (LAST - FIRST) as usize {
            return None;
        }
        loop {
            let port = self.next;
            self.next = if port == LAST { FIRST } else { port + 1 };
            if self.taken.insert(port) {
                return Some(PortNumber::new(port));
            }
        }
    }

    /// Gives a port back. One that was not taken is left alone.
    pub fn free(&mut self, port: PortNumber) {
        self.taken.remove(&port.value());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_out_every_port_once_and_then_none() {
        let mut ports = HostPorts::default();
        let mut seen = HashSet::new();
        while let Some(port) = ports.take() {
            assert!((FIRST..=LAST).contains(&port.value()));
            assert!(seen.insert(port));
        }
        assert_eq!(seen.len(), (LAST - FIRST + 1) as usize);
        ports.free(PortNumber::new(5000));
        assert_eq!(ports.take(), Some(PortNumber::new(5000)));
    }

    #[test]
    fn uses_a_freed_port_last() {
        let mut ports = HostPorts::default();
        let first = ports.take().unwrap();
        ports.free(first);
        assert_ne!(ports.take(), Some(first));
    }
}
