//! A client of the control socket, and the shape that every answer has.

use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// What docs/control.md says a request is answered, beside success.
const REFUSALS: &[(u16, &[&str])] = &[
    (400, &["bad_request", "invalid_setting"]),
    (404, &["no_such_path", "no_such_vm", "no_such_connection"]),
    (405, &["method_not_allowed"]),
    (408, &["too_slow"]),
    (
        409,
        &[
            "cid_taken",
            "path_taken",
            "cid_ambiguous",
            "no_config",
            "conflict",
        ],
    ),
    (413, &["too_large"]),
    (500, &["system"]),
    (503, &["too_many_streams"]),
];

/// One answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// Says these bytes on a connection of its own. Returns all that came back until the end, or
/// until a stream began.
pub(super) async fn say(stream: UnixStream, bytes: &[u8]) -> Vec<u8> {
    let (mut reader, mut writer) = stream.into_split();
    let write = async {
        // It fails when the rest is not wanted, and never ends when nobody takes it.
        let _ = writer.write_all(bytes).await;
        std::future::pending().await
    };
    let read = async {
        let mut said = Vec::new();
        while !is_stream(&said) && reader.read_buf(&mut said).await.is_ok_and(|read| read > 0) {}
        said
    };
    tokio::select! {
        said = read => said,
        never = write => never,
    }
}

/// Whether a stream has begun: it ends only when the client does.
fn is_stream(said: &[u8]) -> bool {
    let kind = b"content-type: application/x-ndjson\r\n";
    let mut heads = said.windows(kind.len());
    heads
        .position(|window| window == kind)
        .is_some_and(|at| end_of_head(&said[at..]).is_some())
}

fn end_of_head(said: &[u8]) -> Option<usize> {
    said.windows(4).position(|window| window == b"\r\n\r\n")
}

/// The answers in what was said. Each has the shape that is documented.
pub(super) fn answers(said: &[u8], to_head: bool) -> Vec<Answer> {
    let mut answers = Vec::new();
    let mut rest = said;
    while !rest.is_empty() {
        let (answer, others) = next(rest, to_head);
        rest = others;
        if answer.status != 100 {
            answer.check(to_head);
            answers.push(answer);
        }
    }
    answers
}

fn next(said: &[u8], to_head: bool) -> (Answer, &[u8]) {
    let end = end_of_head(said).expect("an answer has a head");
    let head = std::str::from_utf8(&said[..end]).expect("a head is text");
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1."));
    let status = status.and_then(|line| line.get(2..5)?.parse().ok());
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(": ").expect("a header has a value");
        (name.to_ascii_lowercase(), value.to_owned())
    });
    let mut answer = Answer {
        status: status.expect("an answer has a status"),
        headers: headers.collect(),
        body: Vec::new(),
    };
    let rest = &said[end + 4..];
    if is_stream(&said[..end + 4]) {
        return (answer, &[]);
    }
    let len = answer.header("content-length");
    let len = len.map_or(0, |len| len.parse().expect("a length is a number"));
    let len = if to_head { 0 } else { len };
    assert!(len <= rest.len(), "an answer is whole");
    let (body, rest) = rest.split_at(len);
    body.clone_into(&mut answer.body);
    (answer, rest)
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find_map(|(other, value)| (other == name).then_some(value.as_str()))
    }

    pub(super) fn is_success(&self) -> bool {
        self.status < 300
    }

    /// The body, which is JSON.
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a body is JSON")
    }

    fn check(&self, to_head: bool) {
        let kind = self.header("content-type");
        match self.status {
            200 | 201 if kind == Some("application/x-ndjson") => (),
            200 | 201 => {
                assert_eq!(kind, Some("application/json"));
                assert!(to_head || self.json().is_object(), "{self:?}");
            }
            204 => assert_eq!((kind, self.body.as_slice()), (None, &[][..])),
            // Hyper's own word on what is no HTTP.
            400 | 414 | 431 if kind.is_none() => assert!(self.body.is_empty(), "{self:?}"),
            _ if to_head => (),
            _ => self.check_refusal(),
        }
    }

    fn check_refusal(&self) {
        let status = self.status;
        let refusal: Map<String, Value> = serde_json::from_slice(&self.body).expect("an error");
        let text = |key| refusal.get(key).and_then(Value::as_str).expect("a text");
        assert_eq!(refusal.len(), 3, "{refusal:?}");
        let codes = REFUSALS.iter().find(|(known, _)| *known == status);
        let codes = codes.expect("a status that is documented").1;
        assert!(codes.contains(&text("code")), "{status}: {refusal:?}");
        for key in ["message", "remedy"] {
            let is_line = !text(key).is_empty() && !text(key).contains(char::is_control);
            assert!(is_line, "{refusal:?}");
        }
        assert_eq!(self.header("allow").is_some(), status == 405, "{self:?}");
    }
}
