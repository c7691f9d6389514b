//! What every refusal looks like.

use std::path::Path;
use std::process::Output;

use super::{listing, run};

/// Runs the daemon with `args`, in which `D` stands for `dir`, and expects the refusal to
/// contain each of `words`, in which it does too.
pub(crate) fn refused(dir: &Path, args: &[&str], words: &[&str]) {
    let name = dir.to_str().unwrap();
    let args: Vec<_> = args
        .iter()
        .map(|arg| arg.replace("D/", &format!("{name}/")))
        .collect();
    let words: Vec<_> = words
        .iter()
        .map(|word| word.replace("D/", &format!("{name}/")))
        .collect();
    let before = listing(dir);
    let output = run(&args);
    assert_refusal(&output, &words);
    assert_eq!(listing(dir), before, "{args:?} changed the directory");
}

pub(crate) fn assert_refusal(output: &Output, words: &[String]) {
    let line = str::from_utf8(&output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{line}");
    assert_eq!(line.matches('\n').count(), 1, "not one line: {line}");
    assert!(
        line.starts_with("vhost-user-vsock: ") && line.ends_with('\n'),
        "{line}"
    );
    assert!(output.stdout.is_empty(), "{output:?}");
    for word in words {
        assert!(line.contains(word), "no '{word}' in: {line}");
    }
}
