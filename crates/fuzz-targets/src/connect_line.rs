//! The line with which a host application asks for a port, in pieces.

use vsock_packet::PortNumber;
use vsock_vhost_user::{ConnectLine, ConnectLineError};

/// Runs an input: the lengths of the pieces, a zero, and what arrives.
pub(crate) fn run(data: &[u8]) {
    let cut = data.iter().position(|byte| *byte == 0);
    let (lengths, text) = match cut {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (&[][..], data),
    };
    assert_eq!(read_in_pieces(lengths, text), expected(text));
}

type Outcome = Result<Option<(usize, PortNumber)>, ConnectLineError>;

/// The length of the line and its port.
fn read_in_pieces(lengths: &[u8], text: &[u8]) -> Outcome {
    let mut line = ConnectLine::default();
    let mut lengths = lengths.iter().map(|len| usize::from(*len));
    let mut taken = 0;
    while taken < text.len() {
        let rest = &text[taken..];
        let piece = lengths.next().unwrap_or(rest.len()).min(rest.len());
        let (count, port) = line.take(&rest[..piece])?;
        taken += count;
        if let Some(port) = port {
            return Ok(Some((taken, port)));
        }
        assert_eq!(count, piece, "part of the line is left");
    }
    Ok(None)
}

fn expected(text: &[u8]) -> Outcome {
    let most = &text[..text.len().min(ConnectLine::MAX_LEN)];
    let Some(end) = most.iter().position(|byte| *byte == b'\n') else {
        return match most.len() < ConnectLine::MAX_LEN {
            true => Ok(None),
            false => Err(ConnectLineError::TooLong),
        };
    };
    let is_space = |byte: &u8| b" \t\n\r\x0c".contains(byte);
    let words: Vec<_> = most[..=end]
        .split(is_space)
        .filter(|word| !word.is_empty())
        .collect();
    let [keyword, port] = words[..] else {
        return Err(ConnectLineError::Malformed);
    };
    if !keyword.eq_ignore_ascii_case(b"connect") {
        return Err(ConnectLineError::Malformed);
    }
    let mut number = 0u64;
    for digit in port {
        match digit {
            b'0'..=b'9' => {
                number = number
                    .saturating_mul(10)
                    .saturating_add(u64::from(digit - b'0'));
            }
            _ => return Err(ConnectLineError::Malformed),
        }
    }
    let port = u32::try_from(number).map_err(|_| ConnectLineError::Malformed)?;
    Ok(Some((end + 1, PortNumber::new(port))))
}
