//! Which methods the paths of the control socket take, and what HEAD is answered.

mod support;

use std::path::Path;

use support::http::{Answer, Control};
use support::{Daemon, directory};

/// A daemon that serves nothing yet, and its control socket.
fn daemon(dir: &Path) -> (Daemon, Control) {
    let control = dir.join("control");
    let daemon = Daemon::start([Path::new("--control"), &control]);
    (daemon, Control(control))
}

#[test]
fn says_which_methods_a_path_takes() {
    let dir = directory();
    let (_daemon, control) = daemon(dir.path());
    for (path, allowed) in [
        ("/vms", "GET, HEAD"),
        ("/events", "GET, HEAD"),
        ("/vms/3", "GET, HEAD, PUT, PATCH, DELETE"),
        ("/connections/3", "DELETE"),
        ("/reload", "POST"),
    ] {
        let answer = control.ask("TRACE", path, "");
        assert_eq!(answer.refusal(), (405, "method_not_allowed".to_owned()));
        assert_eq!(answer.header("allow"), Some(allowed));
    }
}

/// RFC 9110, section 9.3.2.
#[test]
fn answers_a_head_with_the_headers_of_get_and_no_body() {
    let dir = directory();
    let (_daemon, control) = daemon(dir.path());
    control.add(dir.path(), 3, "");
    let but_for_the_time = |answer: &Answer| {
        let headers = answer.headers.iter().filter(|(name, _)| name != "date");
        (answer.status, headers.cloned().collect::<Vec<_>>())
    };
    for path in [
        "/version",
        "/openapi.json",
        "/vms",
        "/vms/3",
        "/vms/4",
        "/connections?cid=3",
        "/nothing",
    ] {
        let (head, get) = (control.head(path), control.get(path));
        assert_eq!(but_for_the_time(&head), but_for_the_time(&get), "{path}");
        assert!(head.header("content-length").is_some(), "{path}");
    }
    for path in ["/connections/1", "/reload"] {
        let head = control.head(path);
        assert_eq!(head.status, 405, "{path}");
        assert!(!head.header("allow").unwrap().contains("HEAD"));
    }
}

/// However many have asked whether there is one.
#[test]
fn the_head_of_a_stream_takes_no_streams_place() {
    let dir = directory();
    let (_daemon, control) = daemon(dir.path());
    for _ in 0..20 {
        let head = control.head("/events");
        assert_eq!(head.status, 200);
        assert_eq!(head.header("content-type"), Some("application/x-ndjson"));
        assert_eq!(head.header("content-length"), None);
    }
    let streams: Vec<_> = (0..16).map(|_| control.events()).collect();
    assert_eq!(control.head("/events").status, 503);
    drop(streams);
}
