//! Which methods the paths of the control socket take, and what HEAD is answered.

#![allow(clippy::unwrap_used)] // Helpers fail the test, too.

mod support;

use std::collections::BTreeSet;
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
fn takes_the_methods_that_the_document_lists() {
    let dir = directory();
    let (_daemon, control) = daemon(dir.path());
    let document = control.get("/openapi.json").json();
    let about = document["info"]["description"].as_str().unwrap();
    assert!(about.contains("HEAD is answered where GET is"), "{about}");
    for (template, operations) in document["paths"].as_object().unwrap() {
        let path = template.replace("{cid}", "3").replace("{id}", "3");
        let answer = control.ask("TRACE", &path, "");
        assert_eq!(answer.refusal(), (405, "method_not_allowed".to_owned()));
        let allowed: BTreeSet<_> = answer.header("allow").unwrap().split(", ").collect();
        let names = operations.as_object().unwrap().keys();
        let operations = names.filter(|name| *name != "parameters");
        let mut listed: BTreeSet<_> = operations.map(|name| name.to_uppercase()).collect();
        if listed.contains("GET") {
            listed.insert("HEAD".to_owned());
        }
        assert!(
            allowed.iter().eq(&listed),
            "{path}: {allowed:?}, {listed:?}"
        );
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
