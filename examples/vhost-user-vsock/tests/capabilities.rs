//! What the daemon says of itself: QEMU's conventions for back-end programs.

#![allow(clippy::unwrap_used)] // Helpers fail the test, too.

mod support;

use serde_json::{Value, json};
use support::run;

#[test]
fn prints_its_capabilities_and_ends() {
    for args in [
        &["--print-capabilities"][..],
        &["--nonsense", "--print-capabilities"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
        let capabilities: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(capabilities, json!({ "type": "vsock" }));
    }
}

/// A management program finds the back end by this file.
#[test]
fn its_description_file_agrees_with_its_capabilities() {
    let text = include_str!("../50-vhost-user-vsock.json");
    let description: Value = serde_json::from_str(text).unwrap();
    let capabilities: Value =
        serde_json::from_slice(&run(["--print-capabilities"]).stdout).unwrap();
    assert_eq!(description["type"], capabilities["type"]);
    let binary = description["binary"].as_str().unwrap();
    assert!(binary.starts_with('/') && binary.ends_with(concat!("/", env!("CARGO_PKG_NAME"))));
    assert!(description["description"].is_string());
    assert!(
        description["tags"]
            .as_array()
            .unwrap()
            .iter()
            .all(Value::is_string)
    );
    assert_eq!(
        description.as_object().unwrap().len(),
        4,
        "no key that QEMU doesn't know"
    );
}

#[test]
fn help_and_version_are_for_people_and_no_mistake() {
    for (option, says) in [
        ("--help", "--socket-path"),
        ("--version", env!("CARGO_PKG_VERSION")),
    ] {
        let output = run([option]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(String::from_utf8(output.stdout).unwrap().contains(says));
    }
}
