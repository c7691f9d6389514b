//! Requests as they go over the control socket, byte by byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::PATIENCE;

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The body, which is JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"));
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The status and the code of a refusal.
    #[track_caller]
    pub(crate) fn refusal(&self) -> (u16, String) {
        let body = self.json();
        let fields: Vec<_> = body.as_object().unwrap().keys().cloned().collect();
        assert_eq!(fields, ["code", "message", "remedy"], "{body}");
        for text in body.as_object().unwrap().values() {
            let text = text.as_str().unwrap();
            assert!(!text.is_empty() && !text.contains('\n'), "{body}");
        }
        (self.status, body["code"].as_str().unwrap().to_owned())
    }
}

/// A daemon's control socket.
#[derive(Clone, Debug)]
pub(crate) struct Control(pub(crate) PathBuf);

impl Control {
    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.0).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "")
    }

    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let stream = self.connect();
        send(&stream, method, path, body);
        read_answer(&mut BufReader::new(stream))
    }

    /// Asks for a HEAD, and for something else on the same connection: a body between the two
    /// would not be overlooked.
    #[track_caller]
    pub(crate) fn head(&self, path: &str) -> Answer {
        let stream = self.connect();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        send(&stream, "HEAD", path, "");
        let (status, headers) = read_head(&mut reader);
        send(&stream, "GET", "/version", "");
        assert_eq!(read_answer(&mut reader).status, 200);
        Answer {
            status,
            headers,
            body: Vec::new(),
        }
    }

    /// Serves a VM whose sockets are in `dir` and named by its CID.
    #[track_caller]
    pub(crate) fn add(&self, dir: &Path, cid: u32, more: &str) -> Value {
        let answer = self.ask("PUT", &format!("/vms/{cid}"), &vm(dir, cid, more));
        assert_eq!(answer.status, 201, "{:?}", answer.json());
        answer.json()
    }

    /// Follows the events from now on.
    pub(crate) fn events(&self) -> EventStream {
        let stream = self.connect();
        send(&stream, "GET", "/events", "");
        let mut reader = BufReader::new(stream);
        let (status, headers) = read_head(&mut reader);
        assert_eq!(status, 200);
        assert!(headers.contains(&("transfer-encoding".to_owned(), "chunked".to_owned())));
        EventStream(reader)
    }
}

/// The body for a VM.
pub(crate) fn vm(dir: &Path, cid: u32, more: &str) -> String {
    let dir = dir.display();
    format!(r#"{{"socket": "{dir}/{cid}.sock", "uds_path": "{dir}/{cid}.vsock"{more}}}"#)
}

pub(crate) fn send(mut stream: &UnixStream, method: &str, path: &str, body: &str) {
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
    stream
        .write_all(format!("{head}{body}").as_bytes())
        .unwrap();
}

pub(crate) fn read_answer(reader: &mut impl BufRead) -> Answer {
    let (status, headers) = read_head(reader);
    let mut answer = Answer {
        status,
        headers,
        body: Vec::new(),
    };
    let length = answer.header("content-length").unwrap_or("0");
    answer.body = vec![0; length.parse().unwrap()];
    reader.read_exact(&mut answer.body).unwrap();
    answer
}

fn read_head(reader: &mut impl BufRead) -> (u16, Vec<(String, String)>) {
    let mut lines = reader.by_ref().lines().map(Result::unwrap);
    let status = lines.next().expect("an answer");
    let status = status.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse();
    let headers = lines.take_while(|line| !line.is_empty()).map(|line| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_owned(), value.to_owned())
    });
    (status.unwrap(), headers.collect())
}

/// A stream of events, chunk by chunk.
pub(crate) struct EventStream(BufReader<UnixStream>);

impl EventStream {
    /// The next event; `None` at the stream's proper end.
    pub(crate) fn next(&mut self) -> Option<Value> {
        let mut size = String::new();
        self.0.read_line(&mut size).unwrap();
        let size = usize::from_str_radix(size.trim_end(), 16).unwrap();
        let mut chunk = vec![0; size + 2];
        self.0.read_exact(&mut chunk).unwrap();
        if size == 0 {
            return None;
        }
        let line = chunk[..size].strip_suffix(b"\n").expect("a whole line");
        Some(serde_json::from_slice(line).unwrap())
    }

    /// Events up to the first of this name, which is returned.
    pub(crate) fn wait_for(&mut self, name: &str) -> Value {
        loop {
            let event = self.next().expect("the stream goes on");
            if event["event"] == name {
                return event;
            }
        }
    }
}
