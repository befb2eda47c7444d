//! Named checks of the safety of an image for software that trusts it.

use crate::error::{Error, Result};

/// Check of an image's safety, and its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SafetyCheck {
    /// Its name, which stays the same from version to version.
    pub name: &'static str,
    /// Outcome of the check.
    pub outcome: Outcome,
}

/// Outcome of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The image is safe in this respect.
    Passed,
    /// The image is not safe, for this reason. Text from the image is escaped in it.
    Failed(String),
    /// The format has nothing of the kind.
    NotApplicable,
}

impl SafetyCheck {
    /// A check that passed.
    pub fn passed(name: &'static str) -> Self {
        let outcome = Outcome::Passed;
        SafetyCheck { name, outcome }
    }

    /// A check that failed.
    pub fn failed(name: &'static str, reason: impl Into<String>) -> Self {
        let outcome = Outcome::Failed(reason.into());
        SafetyCheck { name, outcome }
    }

    /// A check that fails if there is a reason.
    pub fn unless(name: &'static str, reason: Option<String>) -> Self {
        match reason {
            None => SafetyCheck::passed(name),
            Some(reason) => SafetyCheck::failed(name, reason),
        }
    }

    /// The check `version` of a header: it fails for a version that is not known.
    ///
    /// # Errors
    /// Any other error of the header.
    pub(crate) fn version<T>(header: Result<T>) -> Result<Self> {
        match header {
            Ok(_) => Ok(SafetyCheck::passed("version")),
            Err(Error::Unsupported { feature, .. }) => {
                let reason = format!("{feature} is not known");
                Ok(SafetyCheck::failed("version", reason))
            }
            Err(error) => Err(error),
        }
    }

    /// Returns true if it failed.
    pub fn has_failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed(_))
    }
}
