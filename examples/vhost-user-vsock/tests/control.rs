//! The control socket: VMs come, change and go while others are served.

#![allow(clippy::unwrap_used)] // Helpers fail the test, too.

mod support;

use std::fs;
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use support::http::{Control, read_answer, send, vm};
use support::{BINARY, Daemon, PATIENCE, directory, finish, listing};
use vsock_packet::{Cid, VsockAddr};
use vsock_testkit::host::Service;
use vsock_testkit::{Guest, Setup};

/// A daemon that serves nothing yet, and its control socket.
fn daemon(dir: &Path) -> (Daemon, Control) {
    let control = dir.join("control");
    let daemon = Daemon::start([Path::new("--control"), &control]);
    (daemon, Control(control))
}

fn guest(dir: &Path, cid: u32) -> Guest {
    Guest::start(dir.join(format!("{cid}.sock")), Setup::default()).unwrap()
}

/// Pumps the guest until the VM's field is so.
fn wait_for(control: &Control, guest: &mut Guest, cid: u32, field: &str, value: &Value) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let vm = control.get(&format!("/vms/{cid}")).json();
        if vm[field] == *value {
            return;
        }
        assert!(Instant::now() < deadline, "no {field} {value}: {vm}");
        guest.pump(Duration::from_millis(5)).unwrap();
    }
}

#[test]
fn a_vm_comes_changes_and_goes() {
    let dir = directory();
    let (daemon, control) = daemon(dir.path());
    assert_eq!(control.get("/vms").json(), json!({ "vms": [] }));
    let added = control.add(dir.path(), 3, r#", "groups": ["a"], "queue_size": 256"#);
    assert_eq!(added["state"], "waiting");
    assert_eq!(added["queue_size"], 256);
    UnixStream::connect(dir.path().join("3.sock")).unwrap();
    let mut events = control.events();
    UnixStream::connect(dir.path().join("3.vsock")).unwrap();
    // This one said nothing, which is counted by then; nothing else is from now on.
    events.wait_for("client_refused");
    drop(events);

    let changes = r#"{"groups": ["b", "c"], "host_cids": [9], "tx_buffer_size": 4096,
                      "max_connections": 1, "max_backlog": 65536}"#;
    let changed = control.ask("PATCH", "/vms/3", changes);
    assert_eq!(changed.status, 200);
    let changed = changed.json();
    let changes: Value = serde_json::from_str(changes).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        assert_eq!(changed[key], *value, "{key}");
    }
    assert_eq!(changed["queue_size"], 256, "what was not named stays");
    assert_eq!(control.get("/vms").json(), json!({ "vms": [changed] }));

    let removed = control.ask("DELETE", "/vms/3", "");
    assert_eq!((removed.status, removed.body.len()), (204, 0));
    assert_eq!(
        control.get("/vms/3").refusal(),
        (404, "no_such_vm".to_owned())
    );
    assert_eq!(
        listing(dir.path()).len(),
        1,
        "only the control socket is left"
    );
    control.add(dir.path(), 3, "");
    assert_eq!(daemon.end(Signal::TERM), Some(0));
    assert!(listing(dir.path()).is_empty());
}

#[test]
fn a_guest_is_seen_with_its_connections_and_loses_one_that_is_killed() {
    let dir = directory();
    let (_daemon, control) = daemon(dir.path());
    control.add(dir.path(), 3, "");
    let mut events = control.events();
    let _service = Service::echo(&dir.path().join("3.vsock"), 80).unwrap();
    let mut three = guest(dir.path(), 3);
    wait_for(&control, &mut three, 3, "state", &json!("running"));
    let [kept, killed] = [(); 2].map(|()| three.connect(80).unwrap());
    three.exchange(kept, b"hello", 5).unwrap();
    wait_for(&control, &mut three, 3, "connections", &json!(2));
    let list = control.get("/connections?cid=3").json();
    let all = control.get("/connections").json();
    assert_eq!(all["connections"].as_array().unwrap().len(), 2);
    let first = &list["connections"][0];
    assert_eq!(first["from"]["cid"], 3);
    assert_eq!(first["to"], json!({ "cid": 2, "port": 80 }));
    assert_eq!(first["kind"], "guest_to_host");
    assert_eq!(first["state"], "established");
    assert_eq!(
        (&first["sent_bytes"], &first["received_bytes"]),
        (&json!(5), &json!(5))
    );

    let id = list["connections"][1]["id"].as_u64().unwrap();
    let kill = format!("/connections/{id}");
    assert_eq!(control.ask("DELETE", &kill, "").status, 204);
    three.expect_reset(killed).unwrap();
    three.exchange(kept, b"still", 5).unwrap();
    wait_for(&control, &mut three, 3, "connections", &json!(1));
    let again = control.ask("DELETE", &kill, "").refusal();
    assert_eq!(again, (404, "no_such_connection".to_owned()));

    assert_eq!(events.wait_for("vm_up")["cid"], 3);
    assert_eq!(events.wait_for("connection_opened")["to"]["port"], 80);
    assert_eq!(events.wait_for("connection_closed")["id"], id);
    assert!(three.connect(81).is_err());
    let refused = events.wait_for("connection_refused");
    assert_eq!(refused["reason"], "not_listening");
    three.stop().unwrap();
    events.wait_for("vm_paused");
    drop(three);
    events.wait_for("vm_down");
}

#[test]
fn other_groups_reset_what_they_no_longer_allow() {
    let dir = directory();
    let (_daemon, control) = daemon(dir.path());
    control.add(dir.path(), 3, r#", "groups": ["a"]"#);
    control.add(dir.path(), 4, r#", "groups": ["a"]"#);
    let mut three = guest(dir.path(), 3);
    let name = dir.path().to_owned();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let sibling = thread::spawn(move || {
        let mut four = guest(&name, 4);
        four.listen(80);
        ready.send(()).unwrap();
        let stream = four.accept(80).unwrap();
        four.write_all(stream, b"x").unwrap();
        four.expect_reset(stream).unwrap();
    });
    is_ready.recv().unwrap();
    for cid in [3, 4] {
        wait_for(&control, &mut three, cid, "state", &json!("running"));
    }
    let to = VsockAddr::new(Cid::new(4), 80);
    let stream = three.connect_to(to).unwrap();
    three.read_exact(stream, 1).unwrap();
    assert_eq!(
        control.ask("PATCH", "/vms/4", r#"{"groups": []}"#).status,
        200
    );
    three.expect_reset(stream).unwrap();
    assert!(three.connect_to(to).is_err());
    sibling.join().unwrap();
}

#[test]
fn refuses_what_is_in_the_way_and_changes_nothing() {
    let dir = directory();
    let (_daemon, control) = daemon(dir.path());
    let name = dir.path().display();
    let _live = UnixListener::bind(dir.path().join("live")).unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    control.add(dir.path(), 3, r#", "groups": ["a"], "host_cids": [5]"#);
    let before = (listing(dir.path()), control.get("/vms").json());
    let body = |socket: &str, uds_path: &str| {
        format!(r#"{{"socket": "{name}/{socket}", "uds_path": "{name}/{uds_path}"}}"#)
    };
    for (method, path, body, expected) in [
        ("PUT", "/vms/3", vm(dir.path(), 4, ""), (409, "cid_taken")),
        (
            "PUT",
            "/vms/4",
            body("3.sock", "4.vsock"),
            (409, "path_taken"),
        ),
        (
            "PUT",
            "/vms/4",
            body("4.sock", "3.vsock"),
            (409, "path_taken"),
        ),
        (
            "PUT",
            "/vms/4",
            body("3.vsock_1", "4.vsock"),
            (409, "path_taken"),
        ),
        (
            "PUT",
            "/vms/4",
            body("control", "4.vsock"),
            (409, "path_taken"),
        ),
        ("PUT", "/vms/4", body("4.sock", "live"), (409, "path_taken")),
        ("PUT", "/vms/4", body("4.sock", "file"), (409, "path_taken")),
        (
            "PUT",
            "/vms/4",
            body("4.sock", "none/4"),
            (400, "invalid_setting"),
        ),
        (
            "PUT",
            "/vms/5",
            vm(dir.path(), 5, r#", "groups": ["a"]"#),
            (409, "cid_ambiguous"),
        ),
        (
            "PUT",
            "/vms/4",
            vm(dir.path(), 4, r#", "queue_size": 3"#),
            (400, "invalid_setting"),
        ),
        (
            "PUT",
            "/vms/2",
            vm(dir.path(), 2, ""),
            (400, "invalid_setting"),
        ),
        (
            "PUT",
            "/vms/4",
            r#"{"socket": "/a"}"#.to_owned(),
            (400, "invalid_setting"),
        ),
        (
            "PUT",
            "/vms/4",
            r#"{"uds_path": "/a"}"#.to_owned(),
            (400, "invalid_setting"),
        ),
        (
            "PUT",
            "/vms/4",
            r#"{"socket": "a", "uds_path": "b"}"#.to_owned(),
            (400, "invalid_setting"),
        ),
        (
            "PUT",
            "/vms/4",
            vm(dir.path(), 4, r#", "cid": 5"#),
            (400, "bad_request"),
        ),
        (
            "PUT",
            "/vms/4",
            vm(dir.path(), 4, r#", "fd": 5"#),
            (400, "bad_request"),
        ),
        (
            "PUT",
            "/vms/4",
            vm(dir.path(), 4, r#", "groups": "a""#),
            (400, "bad_request"),
        ),
        ("PUT", "/vms/4", String::new(), (400, "bad_request")),
        (
            "PUT",
            "/vms/four",
            vm(dir.path(), 4, ""),
            (400, "bad_request"),
        ),
        (
            "PATCH",
            "/vms/3",
            r#"{"groups": ["x"], "max_backlog": 1}"#.to_owned(),
            (400, "invalid_setting"),
        ),
        (
            "PATCH",
            "/vms/3",
            r#"{"socket": "/a"}"#.to_owned(),
            (400, "invalid_setting"),
        ),
        ("PATCH", "/vms/3", "[]".to_owned(), (400, "bad_request")),
        ("PATCH", "/vms/4", "{}".to_owned(), (404, "no_such_vm")),
        ("DELETE", "/vms/4", String::new(), (404, "no_such_vm")),
        (
            "DELETE",
            "/connections/1",
            String::new(),
            (404, "no_such_connection"),
        ),
        (
            "DELETE",
            "/connections/x",
            String::new(),
            (400, "bad_request"),
        ),
        (
            "GET",
            "/connections?cid=4",
            String::new(),
            (404, "no_such_vm"),
        ),
        (
            "GET",
            "/connections?cid=+3",
            String::new(),
            (400, "bad_request"),
        ),
        (
            "GET",
            "/connections?vm=3",
            String::new(),
            (400, "bad_request"),
        ),
        ("GET", "/vms?cid=3", String::new(), (400, "bad_request")),
        ("GET", "/vms/", String::new(), (400, "bad_request")),
        ("GET", "/", String::new(), (404, "no_such_path")),
        ("GET", "/vms/3/x", String::new(), (404, "no_such_path")),
        ("POST", "/reload", String::new(), (409, "no_config")),
    ] {
        let refusal = control.ask(method, path, &body).refusal();
        let expected = (expected.0, expected.1.to_owned());
        assert_eq!(refusal, expected, "{method} {path} {body}");
    }
    assert_eq!((listing(dir.path()), control.get("/vms").json()), before);
}

#[test]
fn the_socket_is_its_owners_alone() {
    let dir = directory();
    let (_daemon, control) = daemon(dir.path());
    let metadata = fs::metadata(&control.0).unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o600);
    if !rustix::process::geteuid().is_root() {
        return; // Nobody else can be played.
    }
    // Even with the doors open.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&control.0, fs::Permissions::from_mode(0o666)).unwrap();
    let mut stranger = Command::new("curl");
    stranger
        .args(["-s", "http://x/vms", "--unix-socket"])
        .arg(&control.0);
    let output = finish(stranger.uid(65534).gid(65534));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["code"], "forbidden");
}

#[test]
fn bounds_what_a_client_may_send() {
    let dir = directory();
    let (_daemon, control) = daemon(dir.path());
    let long = format!(r#"{{"socket": "{}"}}"#, "x".repeat(65_536));
    let answer = control.ask("PUT", "/vms/3", &long);
    assert_eq!(answer.refusal(), (413, "too_large".to_owned()));
    let mut nonsense = control.connect();
    nonsense.write_all(b"nonsense\r\n\r\n").unwrap();
    let mut answer = String::new();
    nonsense.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(control.get("/version").status, 200);
}

/// Slow clients, and more of them than are let in, do not lock out others for long.
#[test]
fn clients_that_say_nothing_are_dismissed() {
    let dir = directory();
    let (_daemon, control) = daemon(dir.path());
    let slow = control.connect();
    send(&slow, "PUT", "/vms/3", "");
    let mut unfinished = control.connect();
    unfinished
        .write_all(b"PUT /vms/3 HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
        .unwrap();
    let crowd: Vec<_> = (0..70).map(|_| control.connect()).collect();
    let answer = read_answer(&mut BufReader::new(&unfinished));
    assert_eq!(answer.refusal(), (408, "too_slow".to_owned()));
    assert_eq!(control.get("/version").status, 200);
    for mut client in crowd {
        let unread = client.read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(unread, 0, "dismissed");
    }
}

#[test]
fn a_connection_serves_many_requests() {
    let dir = directory();
    let (_daemon, control) = daemon(dir.path());
    let stream = control.connect();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    for _ in 0..3 {
        send(&stream, "GET", "/vms", "");
        assert_eq!(read_answer(&mut reader).json(), json!({ "vms": [] }));
    }
    // Two at once.
    for _ in 0..2 {
        send(&stream, "GET", "/version", "");
    }
    for _ in 0..2 {
        assert_eq!(read_answer(&mut reader).status, 200);
    }
}

#[test]
fn streams_are_bounded_and_end_with_the_daemon() {
    let dir = directory();
    let (daemon, control) = daemon(dir.path());
    let mut streams: Vec<_> = (0..16).map(|_| control.events()).collect();
    assert_eq!(
        control.get("/events").refusal(),
        (503, "too_many_streams".to_owned())
    );
    control.add(dir.path(), 3, "");
    for stream in &mut streams {
        let event = stream.next().unwrap();
        assert_eq!(
            (&event["event"], &event["cid"]),
            (&json!("vm_added"), &json!(3))
        );
        assert!(event["time"].as_f64().unwrap() > 1.7e9);
    }
    streams.pop();
    let deadline = Instant::now() + PATIENCE;
    while control.get("/version").status == 200 {
        let stream = control.connect();
        send(&stream, "GET", "/events", "");
        let mut head = [0; 12];
        (&stream).read_exact(&mut head).unwrap();
        if head == *b"HTTP/1.1 200" {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "a stream that was left is still counted"
        );
    }
    assert_eq!(daemon.end(Signal::TERM), Some(0));
    for stream in &mut streams {
        while stream.next().is_some() {}
    }
    assert!(listing(dir.path()).is_empty());
}

#[test]
fn what_the_system_refuses_leaves_nothing_behind() {
    let dir = directory();
    let control = dir.path().join("control");
    let mut command = Command::new("prlimit");
    command
        .args(["--nofile=40", BINARY, "--control"])
        .arg(&control);
    let daemon = Daemon::start_command(&mut command);
    let control = Control(control);
    let mut served = 0;
    let refusal = loop {
        let cid = 3 + served;
        let answer = control.ask("PUT", &format!("/vms/{cid}"), &vm(dir.path(), cid, ""));
        if answer.status != 201 {
            break answer.refusal();
        }
        served += 1;
        assert!(served < 40);
    };
    assert_eq!(refusal, (500, "system".to_owned()));
    assert_eq!(listing(dir.path()).len(), 1 + 2 * served as usize);
    assert_eq!(control.ask("DELETE", "/vms/3", "").status, 204);
    control.add(dir.path(), 3, "");
    assert_eq!(daemon.end(Signal::TERM), Some(0));
    assert!(listing(dir.path()).is_empty());
}

/// A client that asked for a change and left gets it done.
#[test]
fn a_client_that_leaves_has_not_undone_its_request() {
    let dir = directory();
    let (_daemon, control) = daemon(dir.path());
    let mut events = control.events();
    let body = vm(dir.path(), 3, "");
    let stream = control.connect();
    send(&stream, "PUT", "/vms/3", &body);
    drop(stream);
    let event = events.wait_for("vm_added");
    assert_eq!(event["cid"], 3);
    assert_eq!(control.ask("DELETE", "/vms/3", "").status, 204);
}
