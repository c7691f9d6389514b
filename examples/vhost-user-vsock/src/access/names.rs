//! The users and groups of this machine.

use crate::number::decimal;

/// As they were when the daemon started: later it cannot read of them.
#[derive(Clone, Default, Debug)]
pub(super) struct Names {
    users: Vec<(String, u32)>,
    groups: Vec<(String, u32)>,
}

impl Names {
    /// Those of the files; who is known to a directory service only has a number.
    pub(super) fn read() -> Self {
        let text = |path| {
            let text = std::fs::read(path).unwrap_or_default();
            String::from_utf8_lossy(&text).into_owned()
        };
        Self::of(&text("/etc/passwd"), &text("/etc/group"))
    }

    /// Those of the files' texts: `name:x:number:...`, a line each.
    pub(super) fn of(passwd: &str, group: &str) -> Self {
        Self {
            users: names(passwd),
            groups: names(group),
        }
    }

    /// The number of a user, by name or number.
    pub(super) fn user(&self, text: &str) -> Option<u32> {
        number(text, &self.users)
    }

    /// The number of a group, by name or number.
    pub(super) fn group(&self, text: &str) -> Option<u32> {
        number(text, &self.groups)
    }
}

fn names(text: &str) -> Vec<(String, u32)> {
    let name = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        Some((name.to_owned(), decimal(fields.nth(1)?)?))
    };
    text.lines().filter_map(name).collect()
}

/// A name comes first, also one that looks like a number. The greatest number means nobody.
fn number(text: &str, names: &[(String, u32)]) -> Option<u32> {
    let known = names.iter().find(|(known, _)| known == text);
    let number = known.map(|(_, number)| *number).or_else(|| decimal(text));
    number.filter(|&number| number != u32::MAX)
}
