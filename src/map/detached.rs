//! Parts of a disk that cannot be read: their file was left closed, or ends before.

use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::format_id::FormatId;
use crate::reference::Reference;
use crate::source::{BlockSource, Salvageable};

/// A source of known size in a file that the caller's resolver left closed. Reading it fails.
#[derive(Debug)]
pub(crate) struct Detached {
    pub(crate) reference: Box<Reference>,
    /// In bytes.
    pub(crate) size: u64,
}

impl Detached {
    fn error(&self) -> Error {
        Error::Detached {
            reference: self.reference.clone(),
        }
    }
}

impl BlockSource for Detached {
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

impl Salvageable for Detached {
    fn lost_with(&self, offset: u64) -> u64 {
        self.size.saturating_sub(offset).max(1)
    }
}

/// A source of known size that is missing from a file which was cut short. Reading it fails.
#[derive(Debug)]
pub(crate) struct Missing {
    /// In bytes.
    pub(crate) size: u64,
    pub(crate) format: FormatId,
    /// What the file is to the image.
    pub(crate) structure: &'static str,
    /// What is wrong with it.
    pub(crate) problem: String,
}

impl Missing {
    fn error(&self) -> Error {
        Error::malformed(self.format, self.structure, None, self.problem.clone())
    }
}

impl BlockSource for Missing {
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

impl Salvageable for Missing {
    fn lost_with(&self, offset: u64) -> u64 {
        self.size.saturating_sub(offset).max(1)
    }
}
