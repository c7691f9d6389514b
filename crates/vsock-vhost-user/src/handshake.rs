//! The line with which a host application asks for a port of the guest.
//!
//! `CONNECT <port>\n`, in any number of pieces, the keyword in either case. Payload may
//! follow at once; it stays in the socket until the guest has accepted.

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use thiserror::Error;
use vsock_packet::PortNumber;

/// The longest line, in bytes with its end: twice what any port needs.
pub(crate) const MAX_LINE: usize = 32;

/// A client that is about to say which port it wants.
#[derive(Debug)]
pub(crate) struct Handshake {
    pub(crate) socket: OwnedFd,
    pub(crate) deadline: Instant,
    line: [u8; MAX_LINE],
    len: usize,
}

/// Why a client gets no connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub(crate) enum HandshakeError {
    #[error("the line is longer than {MAX_LINE} bytes")]
    TooLong,
    #[error("the line is not CONNECT and a port")]
    Malformed,
    #[error("the client left before the end of the line")]
    Left,
}

impl Handshake {
    pub(crate) fn new(socket: OwnedFd, deadline: Instant) -> Self {
        Self {
            socket,
            deadline,
            line: [0; MAX_LINE],
            len: 0,
        }
    }

    /// Reads on; the port when the line is complete, `None` while it is not. Not a byte
    /// behind the line is taken from the socket.
    pub(crate) fn read(&mut self) -> Result<Option<PortNumber>, HandshakeError> {
        loop {
            if self.len == MAX_LINE {
                return Err(HandshakeError::TooLong);
            }
            let room = &mut self.line[self.len..];
            let seen = match receive(&self.socket, room, RecvFlags::PEEK) {
                Ok(0) => return Err(HandshakeError::Left),
                Ok(seen) => seen,
                Err(Errno::AGAIN) => return Ok(None),
                Err(_) => return Err(HandshakeError::Left),
            };
            let end = room[..seen].iter().position(|byte| *byte == b'\n');
            let wanted = end.map_or(seen, |at| at + 1);
            // What was seen is there, and nobody else reads this socket.
            let taken = receive(&self.socket, &mut room[..wanted], RecvFlags::empty())
                .map_err(|_| HandshakeError::Left)?;
            self.len += taken;
            if end.is_some() {
                return parse(&self.line[..self.len])
                    .ok_or(HandshakeError::Malformed)
                    .map(Some);
            }
        }
    }
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

fn parse(line: &[u8]) -> Option<PortNumber> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (keyword, port) = (words.next()?, words.next()?);
    let plain = port.bytes().all(|byte| byte.is_ascii_digit());
    if !keyword.eq_ignore_ascii_case("connect") || !plain || words.next().is_some() {
        return None;
    }
    port.parse().ok().map(PortNumber::new)
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
    fn reads_the_port_in_either_case() {
        for line in ["CONNECT 1024\n", "connect 1024\n", "Connect  1024 \r\n"] {
            assert_eq!(
                read_after(line.as_bytes()),
                Ok(Some(PortNumber::new(1024))),
                "{line:?}"
            );
        }
        let all = b"CONNECT 4294967295\n";
        assert_eq!(read_after(all), Ok(Some(PortNumber::new(u32::MAX))));
    }

    #[test]
    fn refuses_what_is_not_a_port() {
        for line in [
            "\n",
            "CONNECT\n",
            "CONNECT x\n",
            "CONNECT -1\n",
            "CONNECT +1\n",
            "CONNECT 4294967296\n",
            "CONNECT 1 2\n",
            "GET / HTTP/1.1\n",
            "\u{0}\n",
        ] {
            assert_eq!(
                read_after(line.as_bytes()),
                Err(HandshakeError::Malformed),
                "{line:?}"
            );
        }
        assert_eq!(
            read_after(b"CONNECT \xff\n"),
            Err(HandshakeError::Malformed)
        );
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
        assert_eq!(read_after(&[b'C'; 1000]), Err(HandshakeError::TooLong));
        let (mut client, mut handshake) = handshake();
        client.write_all(&[b'C'; MAX_LINE - 1]).unwrap();
        assert_eq!(handshake.read(), Ok(None));
        client.write_all(b"C").unwrap();
        assert_eq!(handshake.read(), Err(HandshakeError::TooLong));
    }

    #[test]
    fn notices_a_client_that_leaves() {
        let (mut client, mut handshake) = handshake();
        client.write_all(b"CONN").unwrap();
        drop(client);
        assert_eq!(handshake.read(), Err(HandshakeError::Left));
    }
}
