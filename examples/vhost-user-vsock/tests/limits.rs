//! docs/limits.md has the numbers of the code.

#![allow(clippy::unwrap_used)] // Helpers fail the test, too.

mod formula;

use std::fs;
use std::path::Path;
use std::time::Duration;

use formula::{Bounds, KIB, MIB};
use vsock_connection::{Connection, Entry, HostPorts, Timeouts};
use vsock_packet::{CreditRequests, UnreadPackets, chain};
use vsock_vhost_user::{GuestConfig, Server};

const LIMITS: &str = include_str!("../../../docs/limits.md");

/// This page has some of the numbers, too.
const HYBRID: &str = include_str!("../../../docs/hybrid-vsock.md");

const ROUTER: &str = "crates/vsock-router";
const VHOST_USER: &str = "crates/vsock-vhost-user";
const DAEMON: &str = "examples/vhost-user-vsock";

const CONTROL: &str = "examples/vhost-user-vsock/src/control";

/// The row that begins so, or ends the test.
#[track_caller]
fn row(start: &str) -> &'static str {
    let start = format!("| {start}");
    let mut rows = LIMITS.lines().filter(|line| line.starts_with(&start));
    let row = rows.next().unwrap_or_else(|| panic!("no row {start}"));
    assert_eq!(rows.next(), None, "two rows");
    row
}

/// The second cell of a row says this.
#[track_caller]
fn says(start: &str, bound: &str) {
    let cell = row(start).split('|').nth(2).unwrap();
    assert!(cell.contains(bound), "no '{bound}' in: {start}: {cell}");
}

/// With a comma between thousands.
fn number(value: usize) -> String {
    match value {
        0..1000 => value.to_string(),
        _ => format!("{},{:03}", number(value / 1000), value % 1000),
    }
}

/// The text that a package gives a constant which is nobody else's to use.
#[track_caller]
fn constant(package: &str, name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found = Vec::new();
    let directory = root.join(package);
    let sources = match directory.join("src") {
        sources if sources.is_dir() => sources,
        _ => directory,
    };
    search(&sources, name, &mut found);
    assert_eq!(found.len(), 1, "{name} of {package}: {found:?}");
    found.remove(0)
}

fn search(path: &Path, name: &str, found: &mut Vec<String>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            search(&entry.unwrap().path(), name, found);
        }
    } else if let Ok(text) = fs::read_to_string(path) {
        let start = format!("const {name}: ");
        let lines = text.lines().filter(|line| line.contains(&start));
        let values = lines.filter_map(|line| line.trim().strip_suffix(';')?.split_once(" = "));
        found.extend(values.map(|(_, value)| value.to_owned()));
    }
}

#[test]
fn the_bounds_that_may_be_chosen() {
    let default = GuestConfig::DEFAULT_MAX_CONNECTIONS;
    says(
        "connections, both",
        &format!("`max-connections`, {}", number(default)),
    );
    let buffer = GuestConfig::DEFAULT_TX_BUFFER_SIZE as usize / KIB;
    says(
        "data of a guest for one host",
        &format!("`tx-buffer-size`, {buffer} KiB"),
    );
    says(
        "the same for all of its host applications",
        &format!(
            "`max-buffered`, {} MiB",
            GuestConfig::DEFAULT_MAX_BUFFERED / MIB
        ),
    );
    let least = GuestConfig::MIN_TX_BUFFER_SIZE as usize / KIB;
    assert!(row("the same for all of its").contains(&format!("at least {least} KiB")));
    assert_eq!(constant(VHOST_USER, "SHARE"), "64");
    assert_eq!(constant(VHOST_USER, "BURST"), "Duration::from_millis(250)");
    assert!(LIMITS.contains("a quarter of a second's worth"));
    says(
        "length of a ring",
        &format!("`queue-size`, {}", GuestConfig::MAX_QUEUE_SIZE),
    );
}

#[test]
fn the_bounds_between_siblings() {
    says(
        "connections the guest has opened",
        &number(GuestConfig::DEFAULT_MAX_CONNECTIONS),
    );
    says(
        "data that waits for siblings",
        &format!("{} MiB", GuestConfig::DEFAULT_MAX_BACKLOG / MIB),
    );
    assert_eq!(constant(ROUTER, "MAX_WINDOW"), "4 << 20");
    says("data that waits for one sibling", "at most 4 MiB");
    assert_eq!(constant(ROUTER, "STREAM_CHUNKS"), "1024..=65536");
    assert_eq!(constant(ROUTER, "CHUNK_COST"), "64");
    assert!(LIMITS.contains("1 to 64 KiB, one of a message its length, and each 64 bytes more"));
    assert_eq!(constant(ROUTER, "MAX_STRANGERS"), "1024");
    says("resets for packets", "1,024");
    assert_eq!(constant(ROUTER, "LINGER"), "Duration::from_secs(60)");
    says("data that was sent before a close", "60 s");
}

#[test]
fn the_times() {
    let Timeouts { request, shutdown } = Timeouts::default();
    says(
        "the time for the guest to answer",
        &format!("{} s", request.as_secs()),
    );
    says(
        "the time for the guest to confirm",
        &format!("{} s", shutdown.as_secs()),
    );
    assert_eq!(
        constant(ROUTER, "ANSWER_TIMEOUT"),
        "Duration::from_secs(10)"
    );
    says("the time for a sibling to answer", "10 s");
    says("the time for a sibling to confirm", "10 s");
    assert_eq!(
        constant(VHOST_USER, "HANDSHAKE_TIMEOUT"),
        "Duration::from_secs(5)"
    );
    says("the time for that line", "5 s");
    assert!(HYBRID.contains("complete 5 seconds after"));
    assert!(HYBRID.contains(&format!("answer within {} seconds", request.as_secs())));
    assert!(HYBRID.contains(&format!("close within {} seconds", shutdown.as_secs())));
}

#[test]
fn a_guest_is_asked_for_credit_as_often_as_it_says() {
    assert!(LIMITS.contains("after 20 ms, then\nafter twice as long each time, at most every 2 s"));
    let mut now = std::time::Instant::now();
    let mut requests = CreditRequests::default();
    requests.begin();
    for wait in [20, 40, 80, 160, 320, 640, 1280, 2000, 2000].map(Duration::from_millis) {
        requests.sent(now);
        now += wait;
        assert_eq!(requests.deadline(), Some(now));
        assert!(requests.expire(now));
    }
}

#[test]
fn the_bounds_at_the_door() {
    let mut ports = HostPorts::default();
    let taken: Vec<_> = std::iter::from_fn(|| ports.take()).collect();
    let [first, last] = [taken.iter().min(), taken.iter().max()].map(Option::unwrap);
    let words = format!("{} ({first} to {last})", number(taken.len()));
    says("host ports", &words);
    let handshakes = GuestConfig::DEFAULT_MAX_HANDSHAKES;
    says(
        "host applications that have not",
        &format!("`max-handshakes`, {handshakes}"),
    );
    assert_eq!(constant(VHOST_USER, "MAX_LINE"), "32");
    says("the length of the `CONNECT` line", "32 bytes");
    assert!(HYBRID.contains("at most 32 bytes"));
    assert!(HYBRID.contains(&format!("from {first} to {last}")));
    assert_eq!(constant(VHOST_USER, "BACKLOG"), "128");
    says("host applications that wait to be let in", "128");
}

#[test]
fn the_bounds_of_the_process_and_of_its_control_socket() {
    let guests = format!("`max-guests`, {}", number(Server::DEFAULT_MAX_GUESTS));
    assert!(LIMITS.contains(&guests), "{guests}");
    for (name, value, start, words) in [
        ("MAX_CLIENTS", "64", "clients |", "64"),
        ("MAX_STREAMS", "16", "streams of events", "16"),
        ("MAX_LINES", "64", "events that wait", "64 lines"),
        (
            "HEAD_PATIENCE",
            "Duration::from_secs(5)",
            "the time for a request's head",
            "5 s",
        ),
        (
            "BODY_PATIENCE",
            "Duration::from_secs(5)",
            "the time for a request's body",
            "5 s",
        ),
        (
            "PATIENCE",
            "Duration::from_secs(30)",
            "the time for a client to take",
            "30 s",
        ),
        (
            "MAX_BODY",
            "64 * 1024",
            "the length of a request's head",
            "64 KiB",
        ),
    ] {
        assert_eq!(constant(CONTROL, name), value, "{name}");
        says(start, words);
    }
    assert_eq!(constant(DAEMON, "MAX_JOBS"), "stream::MAX_STREAMS + 8");
    says("requests that are done at once", "24");
    assert_eq!(constant(VHOST_USER, "QUEUE_LENGTH"), "4096");
    says("events that wait", "4,096");
}

#[test]
fn the_bounds_of_packets() {
    let unread = UnreadPackets::default();
    let most = unread.room(u32::MAX);
    assert_eq!([unread.room(0), unread.room(256 << 10)], [1, 256]);
    let words = format!(
        "one for each KiB of its receive buffer, at least 1, at most {}",
        number(most)
    );
    says("unread packets", &words);
    says("descriptors of a packet", &number(chain::MAX_DESCRIPTORS));
    assert_eq!(constant(VHOST_USER, "NUM_QUEUES"), "3");
    says("rings", "3");
    assert_eq!(constant(VHOST_USER, "MAX_REGIONS"), "509");
    says("memory regions", "509");
    assert_eq!(constant(VHOST_USER, "IDLE_KICKS"), "1000");
    says("kicks in a row", "1,000");
    assert_eq!(constant(DAEMON, "MAX_PAYLOAD"), "4096");
    assert_eq!(constant(DAEMON, "MAX_FDS"), "32");
    assert!(LIMITS.contains("at most 4,096 bytes of\npayload and 32 descriptors"));
}

#[test]
fn the_worst_case_is_what_the_formula_gives() {
    assert_eq!(constant(VHOST_USER, "CHUNK_SIZES"), "4096..=16384");
    says("the memory for that data", "what was promised + 32 KiB");
    assert!(row("the memory for that data").contains("chunks of 4 to 16 KiB"));
    let defaults = Bounds {
        max_connections: GuestConfig::DEFAULT_MAX_CONNECTIONS,
        max_buffered: GuestConfig::DEFAULT_MAX_BUFFERED,
        max_backlog: GuestConfig::DEFAULT_MAX_BACKLOG,
        max_handshakes: GuestConfig::DEFAULT_MAX_HANDSHAKES,
    };
    let (first, all) = (defaults.unread_by_the_host(), defaults.worst_case());
    let words = format!(
        "that is {} MiB, of which the first line is {}:",
        number(all.div_ceil(MIB)),
        number(first.div_ceil(MIB))
    );
    assert!(LIMITS.contains(&words), "{words}");
    let small = Bounds {
        max_connections: 256,
        max_buffered: 16 * MIB,
        max_backlog: 16 * MIB,
        ..defaults
    };
    let small = small.worst_case().div_ceil(MIB);
    let words = format!("with 16 MiB each and 256 connections\nthe worst case is {small} MiB");
    assert!(LIMITS.contains(&words), "{words}");
}

/// An entry with room for the host's socket and what is known of it; the memory of tables
/// doubles when they grow.
#[test]
fn an_idle_connection_costs_less_than_a_kibibyte() {
    let entry = size_of::<Entry<[u8; 128]>>();
    assert!(
        2 * entry < KIB,
        "{} of {entry} bytes",
        size_of::<Connection>()
    );
}
