//! The name of a format.

use std::fmt;

/// The name of an image format, such as `qcow2`.
///
/// An open set: each format's folder declares its own id. Two ids are equal if their names are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FormatId(&'static str);

impl FormatId {
    /// An id of this name, which is in lower case.
    pub const fn new(name: &'static str) -> Self {
        FormatId(name)
    }

    /// The name, for as long as the program runs.
    pub const fn into_str(self) -> &'static str {
        self.0
    }

    /// The name.
    pub const fn as_str(&self) -> &'static str {
        self.0
    }
}

impl fmt::Debug for FormatId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Display for FormatId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}
