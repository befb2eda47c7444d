//! Parts of a disk that cannot be read.

use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::format_id::FormatId;
use crate::reference::Reference;
use crate::source::{BlockSource, Salvageable};

/// A source of known size whose reads fail.
#[derive(Debug)]
pub(crate) struct Unreadable {
    /// In bytes.
    pub(crate) size: u64,
    pub(crate) reason: Reason,
}

/// The reason why a source cannot be read.
#[derive(Debug)]
pub(crate) enum Reason {
    /// The caller's resolver left its file closed.
    Detached(Reference),
    /// It is missing from a structure of the image.
    Missing(FormatId, &'static str, String),
    /// The image forbids it.
    Unsupported(FormatId, &'static str),
}

impl Unreadable {
    fn error(&self) -> Error {
        match &self.reason {
            Reason::Detached(reference) => Error::Detached {
                reference: Box::new(reference.clone()),
            },
            Reason::Missing(format, structure, problem) => {
                Error::malformed(*format, structure, None, problem.clone())
            }
            Reason::Unsupported(format, feature) => Error::Unsupported {
                format: *format,
                feature: (*feature).to_owned(),
                hint: None,
            },
        }
    }
}

impl BlockSource for Unreadable {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, _: &mut [u8], _: u64) -> Result<usize> {
        Err(self.error())
    }

    fn extent_at(&self, _: u64, _: u64) -> Result<Extent> {
        Err(self.error())
    }

    fn salvage(&self) -> Option<&dyn Salvageable> {
        Some(self)
    }
}

impl Salvageable for Unreadable {
    fn lost_with(&self, offset: u64) -> u64 {
        self.size.saturating_sub(offset).max(1)
    }
}
