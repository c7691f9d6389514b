//! Context identifiers, port numbers and the addresses made of them (§5.10.4).

use std::fmt;
use std::hash::{Hash, Hasher};

use thiserror::Error;

/// A context identifier: 64 bits on the wire, of which the upper 32 are zero (§5.10.4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Cid(u32);

impl Cid {
    /// CID 0, reserved.
    pub const HYPERVISOR: Self = Self(0);
    /// CID 1, reserved: the local context, for loopback.
    pub const LOCAL: Self = Self(1);
    /// CID 2: the host.
    pub const HOST: Self = Self(2);
    /// CID 0xffff_ffff, reserved: any context.
    pub const ANY: Self = Self(u32::MAX);

    /// A CID of any value.
    pub const fn new(value: u32) -> Self {
        Self(value)
    }

    /// A CID from its 64 bits on the wire; `None` when the upper 32 bits are not zero.
    pub fn from_wire(value: u64) -> Option<Self> {
        u32::try_from(value).ok().map(Self)
    }

    /// The CID's number.
    pub const fn value(self) -> u32 {
        self.0
    }

    /// Whether no guest may have this CID (§5.10.4).
    pub const fn is_reserved(self) -> bool {
        self.0 <= Self::HOST.0 || self.0 == Self::ANY.0
    }
}

impl From<Cid> for u64 {
    fn from(cid: Cid) -> Self {
        Self::from(cid.0)
    }
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The CID of a guest: never a reserved one (§5.10.6.4.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct GuestCid(Cid);

/// The value is reserved, or does not fit a CID.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("{0} is not a guest's CID: choose one from 3 to 4294967294")]
pub struct ReservedCid(pub u64);

impl GuestCid {
    /// A guest's CID.
    ///
    /// # Errors
    ///
    /// [`ReservedCid`] for 0, 1, 2, 0xffff_ffff and whatever exceeds 32 bits.
    pub fn new(value: u64) -> Result<Self, ReservedCid> {
        match Cid::from_wire(value) {
            Some(cid) if !cid.is_reserved() => Ok(Self(cid)),
            _ => Err(ReservedCid(value)),
        }
    }

    /// The same, as a CID among all others.
    pub const fn cid(self) -> Cid {
        self.0
    }
}

impl TryFrom<u64> for GuestCid {
    type Error = ReservedCid;

    fn try_from(value: u64) -> Result<Self, ReservedCid> {
        Self::new(value)
    }
}

impl From<GuestCid> for Cid {
    fn from(guest: GuestCid) -> Self {
        guest.0
    }
}

impl fmt::Display for GuestCid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A vsock port number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PortNumber(u32);

impl PortNumber {
    /// A port of any value.
    pub const fn new(value: u32) -> Self {
        Self(value)
    }

    /// The port's number.
    pub const fn value(self) -> u32 {
        self.0
    }
}

impl fmt::Display for PortNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One end of a connection, printed as `cid:port`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct VsockAddr {
    /// The context.
    pub cid: Cid,
    /// The port in that context.
    pub port: PortNumber,
}

/// In one step: a hasher that is safe against guests which choose their ports needs as long
/// for each as for the whole address.
impl Hash for VsockAddr {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(u64::from(self.cid) << 32 | u64::from(self.port.value()));
    }
}

impl VsockAddr {
    /// The end at `port` of `cid`.
    pub fn new(cid: impl Into<Cid>, port: u32) -> Self {
        Self {
            cid: cid.into(),
            port: PortNumber::new(port),
        }
    }
}

impl fmt::Display for VsockAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.cid, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_never_has_a_reserved_cid() {
        for value in [0, 1, 2, 0xffff_ffff, 0x1_0000_0003, u64::MAX] {
            assert_eq!(GuestCid::new(value), Err(ReservedCid(value)));
        }
        for value in [3, 42, 0xffff_fffe] {
            assert_eq!(
                GuestCid::new(value).map(|guest| u64::from(guest.cid())),
                Ok(value)
            );
        }
    }

    #[test]
    fn a_cid_keeps_its_upper_half_zero() {
        assert_eq!(Cid::from_wire(2), Some(Cid::HOST));
        assert_eq!(Cid::from_wire(0x1_0000_0002), None);
    }

    #[test]
    fn an_address_reads_as_cid_and_port() {
        assert_eq!(VsockAddr::new(Cid::HOST, 1024).to_string(), "2:1024");
    }
}
