//! The OpenAPI document says what the server does: each operation, each status and each
//! field of it is seen, and nothing else is.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers fail the test, too.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::http::{Answer, Control, EventStream, read_answer, vm};
use support::schema::Document;
use support::{BINARY, Daemon, PATIENCE, directory};
use vsock_testkit::host::{Client, Service};
use vsock_testkit::{Guest, Setup};

/// A daemon, the document it serves, and what was seen of it.
struct Stage {
    dir: PathBuf,
    control: Control,
    document: Document,
    /// Method, path and status.
    answers: BTreeSet<(String, String, String)>,
}

impl Stage {
    /// Asks for `path`, which is written `template` in the document.
    fn ask(&mut self, method: &str, template: &str, path: &str, body: &str) -> Answer {
        let answer = self.control.ask(method, path, body);
        self.see(method, template, body, &answer);
        answer
    }

    fn see(&mut self, method: &str, template: &str, body: &str, answer: &Answer) {
        let operation = self.document.operation(template, method).clone();
        let responses = operation["responses"].as_object().unwrap();
        let status = answer.status.to_string();
        let status = if responses.contains_key(&status) {
            status
        } else {
            "default".to_owned()
        };
        let response = &responses[&status];
        match answer.header("content-type") {
            Some(kind) => {
                let schema = &response["content"][kind]["schema"];
                assert!(schema.is_object(), "{method} {template} {status}: {kind}");
                self.document.check(schema, &answer.json());
            }
            None => assert_eq!(answer.body.len(), 0, "{method} {template} {status}"),
        }
        // What was accepted is what the document describes.
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        if answer.status < 300 && schema.is_object() {
            self.document
                .check(schema, &serde_json::from_str(body).unwrap());
        }
        let method = method.to_lowercase();
        self.answers.insert((method, template.to_owned(), status));
    }

    fn guest(&self, cid: u32) -> Guest {
        Guest::start(self.dir.join(format!("{cid}.sock")), Setup::default()).unwrap()
    }

    /// Waits for an event, and holds all up to it to the document.
    fn wait_for(&mut self, events: &mut EventStream, name: &str) -> Value {
        let schema = json!({ "$ref": "#/components/schemas/Event" });
        loop {
            let event = events.next().expect("the stream goes on");
            self.document.check(&schema, &event);
            if event["event"] == name {
                return event;
            }
        }
    }
}

#[test]
fn the_document_is_held_against_the_server() {
    let dir = directory();
    let config = dir.path().join("vms.toml");
    let control = Control(dir.path().join("control"));
    fs::write(&config, format!("control = \"{}\"\n", control.0.display())).unwrap();
    let mut command = std::process::Command::new(BINARY);
    // One that knows of owners goes on giving sockets to them.
    let owner = rustix::process::geteuid().as_raw();
    command.arg("--config").arg(&config);
    let _daemon = Daemon::start_command(command.arg(format!("--socket-owner={owner}")));
    let document = control.get("/openapi.json").json();
    let mut stage = Stage {
        dir: dir.path().to_owned(),
        control,
        document: Document::new(document),
        answers: BTreeSet::new(),
    };
    let mut events = stage.control.events();
    vms(&mut stage);
    connections(&mut stage, &mut events);
    reloads(&mut stage, &config);
    a_reader_that_does_not_keep_up(&mut stage);
    others(&mut stage);
    let stage = stage;
    let seen: BTreeSet<_> = stage.answers.into_iter().collect();
    let mut expected = stage.document.statuses();
    // The stream itself was read all along.
    expected.remove(&["get", "/events", "200"].map(str::to_owned).into());
    let defaults = |set: &BTreeSet<(String, String, String)>| {
        set.iter()
            .filter(|(_, _, status)| status == "default")
            .count()
    };
    assert!(defaults(&seen) >= 2);
    let listed = |set: BTreeSet<(String, String, String)>| -> BTreeSet<_> {
        let listed = set.into_iter();
        listed
            .filter(|(_, _, status)| status != "default")
            .collect()
    };
    assert_eq!(listed(seen), listed(expected));
    assert_eq!(stage.document.unseen(), BTreeSet::new());
}

fn vms(stage: &mut Stage) {
    let one = "/vms/{cid}";
    let owner = rustix::process::geteuid().as_raw();
    let all = r#", "cid": 3, "groups": ["a"], "host_cids": [9], "queue_size": 128,
        "socket_mode": "0660", "tx_buffer_size": 4096, "max_connections": 10, "max_backlog": 65536,
        "max_buffered": 262144, "max_handshakes": 1, "max_bytes_per_second": 65536,
        "max_requests_per_second": 1000"#;
    let all = &format!(r#"{all}, "socket_owner": "{owner}""#);
    let dir = stage.dir.clone();
    assert_eq!(
        stage.ask("PUT", one, "/vms/3", &vm(&dir, 3, all)).status,
        201
    );
    stage.ask("PUT", one, "/vms/3", &vm(&dir, 3, ""));
    stage.ask("PUT", one, "/vms/x", "{}");
    stage.ask("PUT", one, "/vms/9", &vm(&dir, 9, ""));
    let changes = r#"{"groups": ["b"], "host_cids": [9], "tx_buffer_size": 65536,
        "max_connections": 20, "max_backlog": 131072, "max_buffered": 524288,
        "max_handshakes": 2, "max_bytes_per_second": 0, "max_requests_per_second": 0}"#;
    assert_eq!(stage.ask("PATCH", one, "/vms/3", changes).status, 200);
    stage.ask("PATCH", one, "/vms/3", r#"{"queue_size": 4}"#);
    stage.ask("PATCH", one, "/vms/4", "{}");
    let conflict = stage.ask("PATCH", one, "/vms/9", r#"{"groups": ["b"]}"#);
    assert_eq!(conflict.status, 409);
    stage.ask("DELETE", one, "/vms/9", "");
    stage.ask("DELETE", one, "/vms/9", "");
    stage.ask("DELETE", one, "/vms/x", "");
    stage.ask("GET", one, "/vms/3", "");
    stage.ask("GET", one, "/vms/9", "");
    stage.ask("GET", one, "/vms/x", "");
    stage.ask("GET", "/vms", "/vms", "");
}

fn connections(stage: &mut Stage, events: &mut EventStream) {
    let uds_path = stage.dir.join("3.vsock");
    let _service = Service::echo(&uds_path, 80).unwrap();
    // Before the guest is there.
    let client = Client::dial(&uds_path, 1).unwrap();
    client.expect_refusal(PATIENCE).unwrap();
    let nonsense = {
        let mut client = Client::connect(&uds_path).unwrap();
        client.say(b"nonsense\n").unwrap();
        client
    };
    nonsense.expect_refusal(PATIENCE).unwrap();
    for _ in 0..2 {
        stage.wait_for(events, "client_refused");
    }
    let mut guest = stage.guest(3);
    stage.wait_for(events, "vm_up");
    let stream = guest.connect(80).unwrap();
    guest.exchange(stream, b"hello", 5).unwrap();
    assert!(guest.connect(81).is_err());
    let opened = stage.wait_for(events, "connection_opened");
    stage.wait_for(events, "connection_refused");
    let list = stage.ask("GET", "/connections", "/connections?cid=3", "");
    assert_eq!(list.json()["connections"][0]["id"], opened["id"]);
    stage.ask("GET", "/connections", "/connections?cid=9", "");
    stage.ask("GET", "/connections", "/connections?cid=x", "");
    let (template, path) = (
        "/connections/{id}",
        format!("/connections/{}", opened["id"]),
    );
    assert_eq!(stage.ask("DELETE", template, &path, "").status, 204);
    guest.expect_reset(stream).unwrap();
    stage.wait_for(events, "connection_closed");
    let deadline = Instant::now() + PATIENCE;
    while stage.control.get("/connections").json()["connections"] != json!([]) {
        assert!(
            Instant::now() < deadline,
            "the killed connection is still there"
        );
        guest.pump(Duration::from_millis(5)).unwrap();
    }
    stage.ask("DELETE", template, &path, "");
    stage.ask("DELETE", template, "/connections/x", "");
    guest.stop().unwrap();
    stage.wait_for(events, "vm_paused");
    drop(guest);
    stage.wait_for(events, "vm_down");
    let dir = stage.dir.clone();
    stage.control.add(&dir, 4, "");
    stage.wait_for(events, "vm_added");
    stage.control.ask("DELETE", "/vms/4", "");
    stage.wait_for(events, "vm_removed");
}

fn reloads(stage: &mut Stage, config: &Path) {
    let right = fs::read_to_string(config).unwrap();
    let dir = stage.dir.display().to_string();
    let table = |cid: u32, more: &str| {
        format!(
            "[[vm]]\ncid = {cid}\nsocket = \"{dir}/{cid}.sock\"\nuds_path = \"{dir}/{cid}.vsock\"\n{more}"
        )
    };
    let reload = |stage: &mut Stage, text: String| {
        fs::write(config, right.clone() + &text).unwrap();
        stage.ask("POST", "/reload", "/reload", "")
    };
    assert_eq!(reload(stage, table(5, "")).json()["added"], json!([5]));
    let changed = reload(stage, table(5, "groups = [\"x\"]\n"));
    assert_eq!(changed.json()["changed"], json!([5]));
    assert_eq!(reload(stage, table(5, "groups = [\"\"]\n")).status, 400);
    assert_eq!(reload(stage, table(3, "")).status, 409);
    assert_eq!(reload(stage, String::new()).json()["removed"], json!([5]));
}

/// Events pile up for a client that reads none: it is told how many it has missed.
fn a_reader_that_does_not_keep_up(stage: &mut Stage) {
    const BATCH: usize = 500;
    let mut slow = stage.control.events();
    let stream = stage.control.connect();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    for batch in 0..30 {
        let requests = (0..BATCH).map(|index| {
            let body = format!(
                r#"{{"max_connections": {}}}"#,
                batch % 2 * BATCH + index + 1
            );
            let length = body.len();
            format!("PATCH /vms/3 HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}")
        });
        let requests: String = requests.collect();
        let mut stream = &stream;
        let writer = stream.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || (&writer).write_all(requests.as_bytes()).unwrap());
            for _ in 0..BATCH {
                assert_eq!(read_answer(&mut answers).status, 200);
            }
        });
        stream.flush().unwrap();
    }
    let missed = stage.wait_for(&mut slow, "missed");
    assert!(missed["count"].as_u64().unwrap() > 0);
}

fn others(stage: &mut Stage) {
    stage.ask("GET", "/version", "/version", "");
    stage.ask("GET", "/openapi.json", "/openapi.json", "");
    let long = format!(r#"{{"socket": "{}"}}"#, "x".repeat(70_000));
    let too_large = stage.ask("PUT", "/vms/{cid}", "/vms/8", &long);
    assert_eq!(too_large.status, 413);
    let streams: Vec<_> = (0..14).map(|_| stage.control.events()).collect();
    let mut one_too_many = None;
    // Those that were closed are not forgotten at once.
    for _ in 0..3 {
        let answer = stage.control.ask("GET", "/events", "");
        if answer.status == 503 {
            one_too_many = Some(answer);
            break;
        }
    }
    drop(streams);
    if let Some(answer) = one_too_many {
        stage.see("GET", "/events", "", &answer);
    }
}

/// The daemon under test, so that an unused import is none.
#[test]
fn the_document_is_that_of_the_source() {
    let dir = directory();
    let control = Control(dir.path().join("control"));
    let mut command = std::process::Command::new(BINARY);
    let _daemon = Daemon::start_command(command.arg("--control").arg(&control.0));
    let text: Value = serde_json::from_str(include_str!("../src/control/openapi.json")).unwrap();
    assert_eq!(control.get("/openapi.json").json(), text);
    assert_eq!(text["openapi"], "3.1.0");
}
