//! What an operator got wrong.

use std::fmt::{self, Display};

use thiserror::Error;

/// An operator's mistake, told in one line: where it was written and with which value,
/// what is wrong with it, and what to do instead.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub(crate) struct Mistake {
    /// Of what kind it is.
    pub(crate) kind: Kind,
    /// The setting with its value, as the operator wrote it.
    setting: String,
    problem: String,
    remedy: String,
}

/// Kinds of mistakes, for programs to tell apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Wrong, whatever else there is.
    Invalid,
    /// Another VM has the CID.
    CidTaken,
    /// Another socket is at the path, or something that is no socket.
    PathTaken,
    /// The CID means two things to a guest.
    CidAmbiguous,
    /// There are as many VMs as there may be.
    TooMany,
    /// It cannot be done to what is served now.
    Conflict,
}

impl Mistake {
    /// A setting that is wrong by itself.
    pub(crate) fn new(
        setting: impl Into<String>,
        problem: impl Display,
        remedy: impl Display,
    ) -> Self {
        Self::of_kind(Kind::Invalid, setting, problem, remedy)
    }

    /// A setting that is wrong in this way.
    pub(crate) fn of_kind(
        kind: Kind,
        setting: impl Into<String>,
        problem: impl Display,
        remedy: impl Display,
    ) -> Self {
        Self {
            kind,
            setting: setting.into(),
            problem: problem.to_string(),
            remedy: remedy.to_string(),
        }
    }

    /// What is wrong with which setting, on one line.
    pub(crate) fn message(&self) -> String {
        one_line(&format!("{}: {}", self.setting, self.problem))
    }

    /// What to do instead, on one line.
    pub(crate) fn remedy(&self) -> String {
        one_line(&self.remedy)
    }
}

/// One line, whatever bytes a path or a value holds.
impl Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message(), self.remedy())
    }
}

/// The text with its control characters escaped.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_on_one_line() {
        let mistake = Mistake::new("--socket /run/a\nb", "is a file", "name\tanother");
        assert_eq!(
            mistake.to_string(),
            "--socket /run/a\\nb: is a file; name\\tanother"
        );
    }
}
