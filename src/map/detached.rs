//! A part of a disk whose file was left closed.

use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::reference::Reference;
use crate::source::BlockSource;

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
}
