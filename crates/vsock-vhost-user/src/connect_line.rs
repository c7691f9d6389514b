//! The line with which a host application asks for a port of the guest.

use thiserror::Error;
use vsock_packet::PortNumber;

/// The longest line, in bytes with its end: twice what any port needs.
const MAX_LINE: usize = 32;

/// The line `CONNECT <port>\n` of hybrid vsock, as it arrives: in any number of pieces, the
/// keyword in either case, payload perhaps right behind it.
///
/// ```
/// use vsock_packet::PortNumber;
/// use vsock_vhost_user::{ConnectLine, ConnectLineError};
///
/// let mut line = ConnectLine::default();
/// assert_eq!(line.take(b"CONNECT 10"), Ok((10, None)));
/// assert_eq!(line.take(b"24\nhello"), Ok((3, Some(PortNumber::new(1024)))));
///
/// let mut line = ConnectLine::default();
/// assert_eq!(line.take(b"GET / HTTP/1.1\r\n"), Err(ConnectLineError::Malformed));
/// ```
#[derive(Clone, Debug, Default)]
pub struct ConnectLine {
    bytes: [u8; MAX_LINE],
    len: usize,
}

/// What is wrong with a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ConnectLineError {
    /// It goes on beyond [`ConnectLine::MAX_LEN`].
    #[error("the line is longer than {MAX_LINE} bytes")]
    TooLong,
    /// It says something else.
    #[error("the line is not CONNECT and a port")]
    Malformed,
}

impl ConnectLine {
    /// The longest line, in bytes with its end.
    pub const MAX_LEN: usize = MAX_LINE;

    /// Takes what arrived next, up to the end of the line. Returns how many bytes of it
    /// are the line's, and the port when the line is complete; what is behind is payload.
    ///
    /// # Errors
    ///
    /// [`ConnectLineError`]: the client is to be left.
    pub fn take(
        &mut self,
        arrived: &[u8],
    ) -> Result<(usize, Option<PortNumber>), ConnectLineError> {
        let room = &mut self.bytes[self.len..];
        let seen = &arrived[..arrived.len().min(room.len())];
        let end = seen.iter().position(|byte| *byte == b'\n');
        let count = end.map_or(seen.len(), |at| at + 1);
        room[..count].copy_from_slice(&seen[..count]);
        self.len += count;
        match end {
            Some(_) => parse(&self.bytes[..self.len])
                .map(|port| (count, Some(port)))
                .ok_or(ConnectLineError::Malformed),
            None if self.len == MAX_LINE => Err(ConnectLineError::TooLong),
            None => Ok((count, None)),
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
    use super::*;

    fn port_of(line: &[u8]) -> Result<Option<PortNumber>, ConnectLineError> {
        ConnectLine::default().take(line).map(|(_, port)| port)
    }

    #[test]
    fn reads_the_port_in_either_case() {
        for line in ["CONNECT 1024\n", "connect 1024\n", "Connect  1024 \r\n"] {
            let port = port_of(line.as_bytes());
            assert_eq!(port, Ok(Some(PortNumber::new(1024))), "{line:?}");
        }
        let all = port_of(b"CONNECT 4294967295\n");
        assert_eq!(all, Ok(Some(PortNumber::new(u32::MAX))));
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
            let port = port_of(line.as_bytes());
            assert_eq!(port, Err(ConnectLineError::Malformed), "{line:?}");
        }
        let no_text = port_of(b"CONNECT \xff\n");
        assert_eq!(no_text, Err(ConnectLineError::Malformed));
    }

    #[test]
    fn takes_nothing_behind_the_line() {
        let mut line = ConnectLine::default();
        let port = Some(PortNumber::new(80));
        assert_eq!(line.take(b"CONNECT 80\nhello\n"), Ok((11, port)));
    }

    #[test]
    fn bounds_the_line() {
        let mut line = ConnectLine::default();
        let most = ConnectLine::MAX_LEN - 1;
        assert_eq!(line.take(&vec![b'C'; most]), Ok((most, None)));
        assert_eq!(line.take(b"C"), Err(ConnectLineError::TooLong));
        let much = port_of(&[b'C'; 1000]);
        assert_eq!(much, Err(ConnectLineError::TooLong));
    }
}
