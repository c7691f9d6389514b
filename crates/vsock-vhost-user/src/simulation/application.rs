//! A host application at the end of its socket.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// What there was to read.
#[derive(Debug)]
pub(super) enum Heard {
    Bytes(Vec<u8>),
    /// Nothing more comes.
    End,
}

/// An application that a guest has reached, or that asks for one of its ports.
pub(super) struct Application {
    socket: UnixStream,
    /// What of its CONNECT is not said.
    line: Vec<u8>,
    /// It has been told `OK`, or has no need to be.
    is_greeted: bool,
}

impl Application {
    /// One that has been connected to.
    pub(super) fn reached(socket: UnixStream) -> Self {
        socket.set_nonblocking(true).unwrap();
        Self {
            socket,
            line: Vec::new(),
            is_greeted: true,
        }
    }

    /// One that asks at the guest's socket for `port`.
    pub(super) fn asking(path: &Path, port: u32) -> Self {
        Self {
            line: format!("CONNECT {port}\n").into_bytes(),
            is_greeted: false,
            ..Self::reached(UnixStream::connect(path).unwrap())
        }
    }

    /// Says some of its line. `true` when there was something to say.
    pub(super) fn ask(&mut self, max: usize) -> bool {
        let some = max.min(self.line.len());
        let said = self.line.drain(..some).collect::<Vec<_>>();
        // Whoever was dismissed meanwhile will hear it.
        let _ = self.socket.write_all(&said);
        some > 0
    }

    /// Whether it may say what it wants.
    pub(super) fn has_asked(&self) -> bool {
        self.line.is_empty()
    }

    pub(super) fn is_greeted(&self) -> bool {
        self.is_greeted
    }

    /// How many of the bytes were taken; `None` when none ever are.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Option<usize> {
        match self.socket.write(bytes) {
            Ok(count) => Some(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Some(0),
            Err(_) => None,
        }
    }

    /// Up to `max` bytes; `None` when there is nothing now.
    pub(super) fn read(&mut self, max: usize) -> Option<Heard> {
        if !self.is_greeted {
            return self.read_greeting();
        }
        let mut bytes = vec![0; max];
        match self.socket.read(&mut bytes) {
            Ok(0) => Some(Heard::End),
            Ok(count) => {
                bytes.truncate(count);
                Some(Heard::Bytes(bytes))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(_) => Some(Heard::End),
        }
    }

    /// `OK` and a port, in one piece and before anything else.
    fn read_greeting(&mut self) -> Option<Heard> {
        let mut line = Vec::new();
        let mut byte = [0];
        while line.last() != Some(&b'\n') {
            match self.socket.read(&mut byte) {
                Ok(1) => line.extend(byte),
                Err(error) if error.kind() == ErrorKind::WouldBlock && line.is_empty() => {
                    return None;
                }
                _ if line.is_empty() => return Some(Heard::End),
                result => panic!("half a greeting, then {result:?}"),
            }
        }
        let port = line
            .strip_prefix(b"OK ")
            .and_then(|line| line.strip_suffix(b"\n"));
        let port = port.and_then(|port| std::str::from_utf8(port).ok()?.parse::<u16>().ok());
        assert!(port.is_some(), "{line:?} is no greeting");
        self.is_greeted = true;
        Some(Heard::Bytes(Vec::new()))
    }

    /// Says that it will send no more.
    pub(super) fn shut(&mut self) {
        // It fails when the other end is gone.
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
    }
}
