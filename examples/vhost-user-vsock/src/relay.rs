//! A frontend that is connected already (`--fd`), brought to a server that only accepts.
//!
//! ```text
//!   VMM ──── inherited connection ────▶ Relay ──── private connection ────▶ Server
//! ```
//!
//! The relay passes vhost-user messages on in both directions, each with its descriptors,
//! until either end closes. It keeps messages whole: the system hands out descriptors with
//! the first bytes read, and those must not be another message's.

use std::fs::Permissions;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, Builder, JoinHandle};

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tracing::{debug, warn};

/// A message's request, flags and the size of its payload, 4 bytes each.
const HEADER: usize = 12;
/// The longest payload passed on, in bytes; the server takes no longer one.
const MAX_PAYLOAD: usize = 4096;
/// The most descriptors of a message; the server takes no more.
const MAX_FDS: usize = 32;

/// An inherited connection, and the one with the server to which it is relayed.
#[derive(Debug)]
pub(crate) struct Relay {
    frontend: UnixStream,
    server: UnixStream,
}

impl Relay {
    /// A relay for `frontend`, and the listening socket where it, and nobody else, waits to
    /// be accepted: the socket's name is gone when this returns.
    ///
    /// # Errors
    ///
    /// What the system said when no socket could be made in the directory for temporary
    /// files.
    pub(crate) fn new(frontend: UnixStream) -> io::Result<(Self, UnixListener)> {
        frontend.set_nonblocking(false)?;
        let directory = tempfile::Builder::new()
            .prefix("vsock")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()?;
        let path = directory.path().join("relay");
        let listener = UnixListener::bind(&path)?;
        let server = UnixStream::connect(&path)?;
        Ok((Self { frontend, server }, listener))
    }

    /// Relays on threads of its own, until either end closes; then calls `ended`.
    ///
    /// # Errors
    ///
    /// There are no threads to spare.
    pub(crate) fn start(self, ended: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
        Builder::new().name("relay".to_owned()).spawn(move || {
            thread::scope(|scope| {
                let back = Builder::new().name("relay-back".to_owned());
                match back.spawn_scoped(scope, || forward(&self.server, &self.frontend)) {
                    Ok(_) => forward(&self.frontend, &self.server),
                    Err(error) => warn!(%error, "cannot serve the inherited connection"),
                }
            });
            ended();
        })
    }
}

/// Passes messages on until there are no more; then there are none the other way either.
fn forward(from: &UnixStream, to: &UnixStream) {
    let error = loop {
        if let Err(error) = pass_message(from, to) {
            break error;
        }
    };
    debug!(%error, "the inherited connection ends");
    for socket in [from, to] {
        // It fails when the other end is gone already.
        let _ = socket.shutdown(Shutdown::Both);
    }
}

fn pass_message(from: &UnixStream, to: &UnixStream) -> io::Result<()> {
    let (mut message, mut fds) = (vec![0; HEADER], Vec::new());
    receive(from, &mut message, &mut fds)?;
    let mut size = [0; 4];
    size.copy_from_slice(&message[8..]);
    let size = u32::from_ne_bytes(size) as usize;
    if size > MAX_PAYLOAD {
        return Err(ErrorKind::InvalidData.into());
    }
    message.resize(HEADER + size, 0);
    receive(from, &mut message[HEADER..], &mut fds)?;
    send(to, &message, &fds)
}

/// Fills the buffer, and adds the descriptors that come with its bytes.
fn receive(from: &UnixStream, mut buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<()> {
    while !buffer.is_empty() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = retry_on_intr(|| {
            let buffer = &mut [IoSliceMut::new(buffer)];
            recvmsg(from, buffer, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        })?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.bytes == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if received.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_FDS {
            return Err(ErrorKind::InvalidData.into());
        }
        buffer = &mut buffer[received.bytes..];
    }
    Ok(())
}

/// Sends the message, with the descriptors at its first byte.
fn send(mut to: &UnixStream, message: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let bytes = [IoSlice::new(message)];
    let sent = retry_on_intr(|| sendmsg(to, &bytes, &mut ancillary, SendFlags::NOSIGNAL))?;
    to.write_all(&message[sent..])
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// A VMM's end, a server's end, and the relay's thread between them.
    fn relayed() -> (UnixStream, UnixStream, JoinHandle<()>) {
        let (vmm, inherited) = UnixStream::pair().unwrap();
        let (relay, listener) = Relay::new(inherited).unwrap();
        let (server, _) = listener.accept().unwrap();
        (vmm, server, relay.start(|| ()).unwrap())
    }

    fn message(request: u32, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).unwrap();
        let header = [request, 1, size].map(u32::to_ne_bytes).concat();
        [&header, payload].concat()
    }

    /// Read at once, the messages would lose track of whose the descriptors are.
    #[test]
    fn descriptors_stay_with_their_message() {
        let (vmm, server, thread) = relayed();
        for (from, to) in [(&vmm, &server), (&server, &vmm)] {
            let messages = [message(1, b""), message(2, b"payload"), message(3, b"end")];
            let (_kept, given) = UnixStream::pair().unwrap();
            send(from, &messages[0], &[]).unwrap();
            send(from, &messages[1], &[given.into()]).unwrap();
            send(from, &messages[2], &[]).unwrap();
            for (message, count) in messages.iter().zip([0, 1, 0]) {
                let (mut bytes, mut fds) = (vec![0; message.len()], Vec::new());
                receive(to, &mut bytes, &mut fds).unwrap();
                assert_eq!((&bytes, fds.len()), (message, count));
            }
        }
        drop(vmm);
        assert_eq!((&server).read(&mut [0]).unwrap(), 0);
        thread.join().unwrap();
    }

    #[test]
    fn an_end_on_the_servers_side_ends_it_after_the_last_message() {
        let (vmm, server, thread) = relayed();
        let last = message(4, b"the last");
        send(&server, &last, &[]).unwrap();
        drop(server);
        let mut bytes = Vec::new();
        (&vmm).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, last);
        thread.join().unwrap();
    }

    #[test]
    fn a_message_no_server_takes_ends_it() {
        let (vmm, _server, thread) = relayed();
        let mut header = message(5, b"");
        header[8..].copy_from_slice(&u32::MAX.to_ne_bytes());
        send(&vmm, &header, &[]).unwrap();
        assert_eq!((&vmm).read(&mut [0]).unwrap(), 0);
        thread.join().unwrap();
    }
}
