//! What an operator got wrong.

use std::fmt::{self, Display, Write};

use thiserror::Error;

/// An operator's mistake, told in one line: where it was written and with which value,
/// what is wrong with it, and what to write instead.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub(crate) struct Mistake {
    /// The option with its value, as the operator wrote it.
    setting: String,
    /// What is wrong, and the remedy.
    complaint: String,
}

impl Mistake {
    /// `complaint` says what is wrong with `setting` and, after a semicolon, the remedy.
    pub(crate) fn new(setting: impl Into<String>, complaint: impl Display) -> Self {
        Self {
            setting: setting.into(),
            complaint: complaint.to_string(),
        }
    }
}

/// One line, whatever bytes a path or a value holds.
impl Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self
            .setting
            .chars()
            .chain(": ".chars())
            .chain(self.complaint.chars())
        {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                f.write_char(c)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_on_one_line() {
        let mistake = Mistake::new("--socket /run/a\nb", "is a file;\tname another");
        assert_eq!(
            mistake.to_string(),
            "--socket /run/a\\nb: is a file;\\tname another"
        );
    }
}
