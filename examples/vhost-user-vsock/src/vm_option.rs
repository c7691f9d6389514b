//! The value of `--vm`: `guest-cid=3,socket=/run/vm3.sock,uds-path=/run/vm3.vsock`.

use std::collections::BTreeSet;

use crate::mistake::Mistake;
use crate::spec::{KEYS, Origin, Settings, VmSpec};

/// Reads the text of one `--vm`.
///
/// # Errors
///
/// A part that is not `key=value`, a key that is unknown or repeated, a bad number.
pub(crate) fn parse(text: &str) -> Result<VmSpec, Mistake> {
    let origin = Origin::VmOption(text.to_owned());
    let mut settings = Settings::default();
    let mut seen = BTreeSet::new();
    for part in text.split(',') {
        let Some((key, value)) = part.split_once('=') else {
            return Err(Mistake::new(
                format!("--vm {text}"),
                format!("'{part}' is not KEY=VALUE"),
                format!("the keys are {KEYS}"),
            ));
        };
        if !seen.insert(key) {
            return Err(Mistake::new(
                origin.setting(key, value),
                format!("{key} is given twice in one --vm"),
                "keep one of them",
            ));
        }
        settings.set(&origin, key, value)?;
    }
    Ok(VmSpec::new(origin, settings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_key() {
        let spec = parse(
            "guest-cid=3,socket=/run/3.sock,uds-path=/run/3.vsock,\
             socket-mode=0660,socket-owner=vm:kvm,groups=a+b,host-cids=4+5,queue-size=256,\
             tx-buffer-size=65536,max-connections=10,max-backlog=1048576,max-buffered=2097152,max-handshakes=5,\
             max-bytes-per-second=65536,max-requests-per-second=7",
        )
        .unwrap();
        assert_eq!(
            spec.settings,
            Settings {
                cid: Some(3),
                socket: Some("/run/3.sock".into()),
                fd: None,
                uds_path: Some("/run/3.vsock".into()),
                socket_mode: Some("0660".to_owned()),
                socket_owner: Some("vm:kvm".to_owned()),
                groups: Some(vec!["a".to_owned(), "b".to_owned()]),
                host_cids: Some(vec![4, 5]),
                queue_size: Some(256),
                tx_buffer_size: Some(65536),
                max_connections: Some(10),
                max_backlog: Some(1 << 20),
                max_buffered: Some(2 << 20),
                max_handshakes: Some(5),
                max_bytes_per_second: Some(65536),
                max_requests_per_second: Some(7),
            }
        );
    }

    #[test]
    fn knows_each_key_that_it_lists() {
        for key in KEYS.split(", ") {
            assert!(parse(&format!("{key}=3")).is_ok(), "{key}");
        }
    }

    #[test]
    fn keeps_an_equals_sign_of_a_path() {
        let spec = parse("socket=/run/a=b").unwrap();
        assert_eq!(spec.settings.socket, Some("/run/a=b".into()));
    }

    #[test]
    fn refuses_what_is_no_known_key_with_a_value() {
        for text in [
            "",
            "guest-cid",
            "guest-cid=3,",
            "cid=3",
            "guest_cid=3",
            "guest-cid=three",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
