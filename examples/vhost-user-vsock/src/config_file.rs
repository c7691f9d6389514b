//! The configuration file: TOML, one `[[vm]]` table for each VM.

use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::mistake::Mistake;
use crate::spec::{Origin, Settings, VmSpec};

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    #[serde(default)]
    vm: Vec<Settings>,
}

/// Reads the VMs of the file at `path`.
///
/// # Errors
///
/// The file cannot be read, is not TOML, holds an unknown key or a value of the wrong
/// kind, or describes no VM.
pub(crate) fn read(path: &Path) -> Result<Vec<VmSpec>, Mistake> {
    let setting = format!("--config {}", path.display());
    let text = fs::read_to_string(path).map_err(|error| {
        Mistake::new(
            &setting,
            format!("cannot be read: {error}; name a readable TOML file"),
        )
    })?;
    let file: ConfigFile = toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(&text, span.start));
        let message = error.message().replace('\n', ", ");
        Mistake::new(
            format!("{setting}: line {line}"),
            format!("{message}; the keys of a [[vm]] and their kinds are in docs/options.md"),
        )
    })?;
    if file.vm.is_empty() {
        return Err(Mistake::new(setting, "describes no VM; add a [[vm]] table"));
    }
    Ok(specs(path, file.vm))
}

fn specs(path: &Path, tables: Vec<Settings>) -> Vec<VmSpec> {
    let with_origin = |(index, settings)| VmSpec {
        origin: Origin::File {
            path: path.to_owned(),
            number: index + 1,
        },
        settings,
    };
    tables.into_iter().enumerate().map(with_origin).collect()
}

/// The number of the line, from 1, that holds the byte at `offset`.
fn line_of(text: &str, offset: usize) -> usize {
    text.bytes()
        .take(offset)
        .filter(|&byte| byte == b'\n')
        .count()
        + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm_option;

    fn file(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vms.toml");
        fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn says_the_same_as_the_options() {
        let (_dir, path) = file(
            r#"
            [[vm]]
            guest_cid = 3
            socket = "/run/3.sock"
            uds_path = "/run/3.vsock"
            groups = ["a", "b"]
            host_cids = [5, 6]
            queue_size = 256
            tx_buffer_size = 65536
            max_connections = 10

            [[vm]]
            guest_cid = 4
            socket = "/run/4.sock"
            uds_path = "/run/4.vsock"
            "#,
        );
        let options = [
            "guest-cid=3,socket=/run/3.sock,uds-path=/run/3.vsock,\
             groups=a+b,host-cids=5+6,queue-size=256,tx-buffer-size=65536,max-connections=10",
            "guest-cid=4,socket=/run/4.sock,uds-path=/run/4.vsock",
        ];
        let from_file: Vec<_> = read(&path)
            .unwrap()
            .into_iter()
            .map(|vm| vm.settings)
            .collect();
        assert_eq!(
            from_file,
            options.map(|text| vm_option::parse(text).unwrap().settings)
        );
    }

    #[test]
    fn names_the_line_of_an_unknown_key() {
        let (_dir, path) = file("[[vm]]\nguest_cid = 3\nsokcet = \"/run/3.sock\"\n");
        let mistake = read(&path).unwrap_err().to_string();
        assert!(
            mistake.contains("vms.toml: line 3: unknown field `sokcet`"),
            "{mistake}"
        );
    }

    #[test]
    fn has_no_key_for_an_inherited_descriptor() {
        let (_dir, path) = file("[[vm]]\nfd = 3\n");
        assert!(
            read(&path)
                .unwrap_err()
                .to_string()
                .contains("unknown field `fd`")
        );
    }
}
