//! vhost-user messages byte by byte, right or wrong.

use std::io::{ErrorKind, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::IoSlice;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use vsock_testkit::Guest;

/// The requests that a device of ours has an answer to.
pub(crate) mod request {
    pub(crate) const GET_FEATURES: u32 = 1;
    pub(crate) const SET_FEATURES: u32 = 2;
    pub(crate) const SET_OWNER: u32 = 3;
    pub(crate) const RESET_OWNER: u32 = 4;
    pub(crate) const SET_MEM_TABLE: u32 = 5;
    pub(crate) const SET_VRING_NUM: u32 = 8;
    pub(crate) const SET_VRING_ADDR: u32 = 9;
    pub(crate) const SET_VRING_BASE: u32 = 10;
    pub(crate) const GET_VRING_BASE: u32 = 11;
    pub(crate) const SET_VRING_KICK: u32 = 12;
    pub(crate) const SET_VRING_CALL: u32 = 13;
    pub(crate) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(crate) const SET_VRING_ENABLE: u32 = 18;
    pub(crate) const ADD_MEM_REG: u32 = 37;
    pub(crate) const REM_MEM_REG: u32 = 38;
    /// One more than there are.
    pub(crate) const END: u32 = 46;
}

/// Version 1, and version 1 with the wish for an answer.
pub(crate) const VERSION: u32 = 1;
pub(crate) const NEED_REPLY: u32 = VERSION | 8;

/// A frontend that says anything.
pub(crate) struct RawFrontend(UnixStream);

impl RawFrontend {
    /// Connects to a VM's socket, and says nothing.
    pub(crate) fn connect(socket: &Path) -> Self {
        Self::over(UnixStream::connect(socket).unwrap())
    }

    /// The connection of a guest that is served.
    pub(crate) fn of(guest: &mut Guest) -> Self {
        let fd = guest.transport().frontend().as_raw_fd();
        let this = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        Self::over(
            pidfd_getfd(this, fd, PidfdGetfdFlags::empty())
                .unwrap()
                .into(),
        )
    }

    fn over(stream: UnixStream) -> Self {
        let patience = Some(Duration::from_secs(10));
        stream.set_read_timeout(patience).unwrap();
        stream.set_write_timeout(patience).unwrap();
        Self(stream)
    }

    /// Sends bytes with descriptors. `false` when the device has hung up.
    pub(crate) fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let mut space = vec![MaybeUninit::uninit(); SendAncillaryMessage::ScmRights(fds).size()];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let sent = sendmsg(
            &self.0,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        );
        sent == Ok(bytes.len())
    }

    /// Sends a message. `false` when the device has hung up.
    pub(crate) fn say(&self, code: u32, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        self.send(&message(code, flags, body), fds)
    }

    /// Sends a message that needs no particular answer, and waits until it was dealt with.
    /// `false` when the device hangs up for it.
    pub(crate) fn ask(&self, code: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        self.say(code, NEED_REPLY, body, fds) && self.read().is_some_and(|answer| answer == 0)
    }

    /// The last word of the next answer; `None` when the device has hung up.
    pub(crate) fn read(&self) -> Option<u64> {
        let mut header = [0; 12];
        (&self.0).read_exact(&mut header).ok()?;
        let len = u32::from_le_bytes(*header.last_chunk().unwrap());
        let mut body = vec![0; len as usize];
        (&self.0).read_exact(&mut body).ok()?;
        Some(
            body.last_chunk()
                .map_or(0, |word| u64::from_le_bytes(*word)),
        )
    }

    /// Waits until the device hangs up; what it says before is passed over.
    #[track_caller]
    pub(crate) fn expect_end(&self) {
        let end = (&self.0).read_to_end(&mut Vec::new());
        let in_time = end.as_ref().is_ok_and(|_| true)
            || end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
        assert!(in_time, "the device did not hang up");
    }

    /// Whether the device has said nothing and not hung up for as long as this.
    pub(crate) fn is_quiet_for(&self, time: Duration) -> bool {
        self.0.set_read_timeout(Some(time)).unwrap();
        loop {
            match (&self.0).read(&mut [0; 1]) {
                // The machine was paused meanwhile.
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                answer => return answer.is_err_and(|error| error.kind() == ErrorKind::WouldBlock),
            }
        }
    }
}

/// A message as it goes over the wire.
pub(crate) fn message(code: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let words = [code, flags, body.len() as u32].map(u32::to_le_bytes);
    [words.as_flattened(), body].concat()
}

/// Words of 32 bits, as most bodies have them.
pub(crate) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Words of 64 bits.
pub(crate) fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_le_bytes()).collect()
}

/// Memory that can be shared, and is not sealed.
pub(crate) fn memfd(len: u64) -> OwnedFd {
    let fd = memfd_create("hostile", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, len).unwrap();
    fd
}

/// For the many that want one.
pub(crate) fn null() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}
