//! A host application that asks for a port of the guest.
//!
//! It says so in a [`ConnectLine`]. Payload may follow at once; it stays in the socket until
//! the guest has accepted.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use thiserror::Error;
use vsock_packet::PortNumber;

use crate::connect_line::{ConnectLine, ConnectLineError};
use crate::mishaps::{self, Call};

/// A client that is about to say which port it wants.
#[derive(Debug)]
pub(crate) struct Handshake {
    pub(crate) socket: OwnedFd,
    pub(crate) deadline: Instant,
    line: ConnectLine,
}

/// Why a client gets no connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub(crate) enum HandshakeError {
    #[error(transparent)]
    Line(#[from] ConnectLineError),
    #[error("the client left before the end of the line")]
    Left,
}

impl Handshake {
    pub(crate) fn new(socket: OwnedFd, deadline: Instant) -> Self {
        Self {
            socket,
            deadline,
            line: ConnectLine::default(),
        }
    }

    /// Reads on; the port when the line is complete, `None` while it is not. Not a byte
    /// behind the line is taken from the socket.
    pub(crate) fn read(&mut self) -> Result<Option<PortNumber>, HandshakeError> {
        loop {
            let mut bytes = [0; ConnectLine::MAX_LEN];
            let seen = match look(&self.socket, &mut bytes) {
                Ok(0) => return Err(HandshakeError::Left),
                Ok(seen) => seen,
                Err(Errno::AGAIN) => return Ok(None),
                Err(_) => return Err(HandshakeError::Left),
            };
            let (count, port) = self.line.take(&bytes[..seen])?;
            // What was seen is there, and nobody else reads this socket.
            receive(&self.socket, &mut bytes[..count], RecvFlags::empty())
                .map_err(|_| HandshakeError::Left)?;
            if port.is_some() {
                return Ok(port);
            }
        }
    }
}

/// What is there to be received.
fn look(socket: &OwnedFd, into: &mut [u8]) -> Result<usize, Errno> {
    mishaps::instead_of(Call::Transfer, socket.as_fd())?;
    let count = mishaps::limit(socket.as_fd()).take(into.len());
    receive(socket, &mut into[..count], RecvFlags::PEEK)
}

fn receive(socket: &OwnedFd, into: &mut [u8], flags: RecvFlags) -> Result<usize, Errno> {
    loop {
        match rustix::net::recv(socket, &mut *into, flags | RecvFlags::DONTWAIT) {
            Ok((_, bytes)) => return Ok(bytes),
            Err(Errno::INTR) => (),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn handshake() -> (UnixStream, Handshake) {
        let (client, server) = UnixStream::pair().unwrap();
        (client, Handshake::new(server.into(), Instant::now()))
    }

    fn read_after(bytes: &[u8]) -> Result<Option<PortNumber>, HandshakeError> {
        let (mut client, mut handshake) = handshake();
        client.write_all(bytes).unwrap();
        handshake.read()
    }

    #[test]
    fn refuses_another_line() {
        let refused = Err(HandshakeError::Line(ConnectLineError::Malformed));
        assert_eq!(read_after(b"GET / HTTP/1.1\n"), refused);
    }

    #[test]
    fn reads_the_line_in_pieces() {
        let (mut client, mut handshake) = handshake();
        for byte in b"CONNECT 80" {
            assert_eq!(handshake.read(), Ok(None));
            client.write_all(&[*byte]).unwrap();
        }
        assert_eq!(handshake.read(), Ok(None));
        client.write_all(b"\n").unwrap();
        assert_eq!(handshake.read(), Ok(Some(PortNumber::new(80))));
    }

    #[test]
    fn leaves_the_payload_behind_the_line_in_the_socket() {
        let (mut client, mut handshake) = handshake();
        client.write_all(b"CONNECT 80\nhello").unwrap();
        assert_eq!(handshake.read(), Ok(Some(PortNumber::new(80))));
        drop(client);
        let mut rest = String::new();
        UnixStream::from(handshake.socket)
            .read_to_string(&mut rest)
            .unwrap();
        assert_eq!(rest, "hello");
    }

    #[test]
    fn bounds_the_line() {
        let too_long = Err(HandshakeError::Line(ConnectLineError::TooLong));
        assert_eq!(read_after(&[b'C'; 1000]), too_long);
    }

    #[test]
    fn notices_a_client_that_leaves() {
        let (mut client, mut handshake) = handshake();
        client.write_all(b"CONN").unwrap();
        drop(client);
        assert_eq!(handshake.read(), Err(HandshakeError::Left));
    }
}
