//! Settings that are there once, for the whole daemon: on the command line, or in one file
//! outside of its tables.

use std::collections::BTreeMap;

use crate::mistake::{Kind, Mistake};
use crate::spec::Origin;

/// One setting as it is written, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Written {
    key: &'static str,
    pub(crate) value: String,
    origin: Origin,
}

impl Written {
    pub(crate) fn new(key: &'static str, value: &str, origin: &Origin) -> Self {
        Self {
            key,
            value: value.to_owned(),
            origin: origin.clone(),
        }
    }

    /// As the operator wrote it.
    pub(crate) fn setting(&self) -> String {
        self.origin.setting(self.key, &self.value)
    }
}

/// Those that are written, by the command line's names for them.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct WrittenOnce(BTreeMap<&'static str, Written>);

impl WrittenOnce {
    /// The settings at one place, of which some have a value.
    pub(crate) fn at(
        origin: &Origin,
        settings: impl IntoIterator<Item = (&'static str, Option<String>)>,
    ) -> Self {
        let written = settings.into_iter().filter_map(|(key, value)| {
            let value = value?;
            Some((key, Written::new(key, &value, origin)))
        });
        Self(written.collect())
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Written> {
        self.0.get(key)
    }

    /// These settings and others, of which each is there once.
    ///
    /// # Errors
    ///
    /// One is there twice.
    pub(crate) fn and(mut self, others: Self) -> Result<Self, Mistake> {
        for (key, other) in others.0 {
            if let Some(one) = self.0.get(key) {
                return Err(Mistake::new(
                    other.setting(),
                    format!("there is also {}", one.setting()),
                    "keep one of them",
                ));
            }
            self.0.insert(key, other);
        }
        Ok(self)
    }

    /// # Errors
    ///
    /// They are not what they were at the start.
    pub(crate) fn refuse_other(&self, start: &Self) -> Result<(), Mistake> {
        let other = self.0.iter().find(|(key, now)| {
            let start = start.get(key);
            start.is_none_or(|start| start.value != now.value)
        });
        match other {
            None => Ok(()),
            Some((_, now)) => Err(Mistake::of_kind(
                Kind::Conflict,
                now.setting(),
                "cannot be changed while the daemon runs",
                "restart it, or write the former value",
            )),
        }
    }
}
