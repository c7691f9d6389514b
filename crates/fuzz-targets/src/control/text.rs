//! What operators write, by chance.

use std::path::PathBuf;
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// Stands for the directory of the sockets in whatever is written.
const PLACE: &str = "/run/";

/// The directory where all of an input's sockets are.
pub(super) fn directory() -> PathBuf {
    beside("sockets")
}

/// A path near that directory and outside of it.
pub(super) fn beside(name: &str) -> PathBuf {
    static PARENT: OnceLock<TempDir> = OnceLock::new();
    let parent = PARENT.get_or_init(|| {
        let mut builder = tempfile::Builder::new();
        let memory = builder.prefix("control-").tempdir_in("/dev/shm");
        memory.or_else(|_| builder.tempdir()).unwrap()
    });
    parent.path().join(name)
}

/// These bytes with the directory where [`PLACE`] is.
pub(super) fn settled(bytes: &[u8]) -> Vec<u8> {
    let place = format!("{}/", directory().display());
    let mut settled = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, others)) = rest.split_first() {
        if let Some(behind) = rest.strip_prefix(PLACE.as_bytes()) {
            settled.extend(place.as_bytes());
            rest = behind;
        } else {
            settled.push(*first);
            rest = others;
        }
    }
    settled
}

/// A guest's CID, mostly.
pub(super) fn cid(number: u8) -> u64 {
    match number {
        255 => u64::from(u32::MAX),
        254 => 1 << 40,
        few => u64::from(few % 8),
    }
}

#[derive(Arbitrary, Debug)]
pub(super) struct Text(String);

impl Text {
    pub(super) fn settled(&self) -> String {
        self.0
            .replace(PLACE, &format!("{}/", directory().display()))
    }

    /// A word of a request's first line.
    pub(super) fn word(&self) -> String {
        let is_part = |c: &char| c.is_ascii_graphic();
        let word: String = self.0.chars().filter(is_part).collect();
        if word.is_empty() {
            "-".to_owned()
        } else {
            word
        }
    }
}

/// Settings of a VM, right or wrong.
#[derive(Arbitrary, Debug)]
pub(super) struct AnyVm {
    cid: Option<u8>,
    socket: Option<AnyPath>,
    uds_path: Option<AnyPath>,
    groups: Option<Vec<Group>>,
    host_cids: Option<Vec<u8>>,
    numbers: Vec<(Key, Number)>,
}

#[derive(Arbitrary, Debug)]
enum AnyPath {
    Usual(u8),
    /// Where a guest finds a host application.
    Port(u8, u8),
    Deep(u8),
    Long(u8),
    Any(Text),
}

#[derive(Arbitrary, Debug)]
enum Group {
    Usual(u8),
    Any(Text),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Key {
    QueueSize,
    TxBufferSize,
    MaxConnections,
    MaxBacklog,
    MaxBuffered,
    MaxHandshakes,
    MaxBytesPerSecond,
    MaxRequestsPerSecond,
}

#[derive(Arbitrary, Debug)]
enum Number {
    Power(u8),
    Any(u64),
}

impl AnyVm {
    /// As the body of a request has it.
    pub(super) fn json(&self) -> Value {
        let mut settings = Map::new();
        let mut set = |key: &str, value: Option<Value>| {
            settings.extend(value.map(|value| (key.to_owned(), value)));
        };
        set("cid", self.cid.map(|number| cid(number).into()));
        set(
            "socket",
            self.socket.as_ref().map(|path| path.text("socket")),
        );
        set(
            "uds_path",
            self.uds_path.as_ref().map(|path| path.text("vsock")),
        );
        let names = |groups: &Vec<Group>| groups.iter().map(Group::text).collect();
        set("groups", self.groups.as_ref().map(names));
        let cids = |cids: &Vec<u8>| {
            cids.iter()
                .map(|number| Value::from(cid(*number)))
                .collect()
        };
        set("host_cids", self.host_cids.as_ref().map(cids));
        for (key, number) in &self.numbers {
            set(key.name(), Some(number.value().into()));
        }
        Value::Object(settings)
    }

    /// As a configuration has it.
    pub(super) fn table(&self) -> String {
        table(&self.json())
    }
}

/// A `[[vm]]` with these settings: a value of JSON is one of TOML, but for some characters
/// and numbers.
pub(super) fn table(settings: &Value) -> String {
    let settings = settings.as_object().into_iter().flatten();
    let lines = settings.map(|(key, value)| {
        let value = value.to_string().replace('\u{7f}', "\\u007f");
        format!("{key} = {value}\n")
    });
    format!("[[vm]]\n{}", lines.collect::<String>())
}

impl AnyPath {
    fn text(&self, kind: &str) -> Value {
        let directory = directory();
        let directory = directory.display();
        match self {
            Self::Usual(number) => json!(format!("{directory}/{}.{kind}", number % 8)),
            Self::Port(number, port) => {
                json!(format!("{directory}/{}.vsock_{port}", number % 8))
            }
            Self::Deep(number) => json!(format!("{directory}/../{}", number % 8)),
            Self::Long(len) => json!(format!("{directory}/{}", "x".repeat((*len).into()))),
            Self::Any(text) => json!(text.settled()),
        }
    }
}

impl Group {
    fn text(&self) -> Value {
        match self {
            Self::Usual(number) => json!(format!("group {}", number % 4)),
            Self::Any(text) => json!(text.0),
        }
    }
}

impl Key {
    fn name(self) -> &'static str {
        match self {
            Self::QueueSize => "queue_size",
            Self::TxBufferSize => "tx_buffer_size",
            Self::MaxConnections => "max_connections",
            Self::MaxBacklog => "max_backlog",
            Self::MaxBuffered => "max_buffered",
            Self::MaxHandshakes => "max_handshakes",
            Self::MaxBytesPerSecond => "max_bytes_per_second",
            Self::MaxRequestsPerSecond => "max_requests_per_second",
        }
    }
}

impl Number {
    fn value(&self) -> u64 {
        match self {
            Self::Power(bits) => 1 << (bits % 64),
            Self::Any(number) => *number,
        }
    }
}
