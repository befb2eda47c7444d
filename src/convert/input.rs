//! Source of a conversion.

use crate::open::{Arriving, StreamImage};
use crate::source::{BlockSource, BlockSourceExt, FileIdentity};

/// Source of a conversion: a disk that is read in any order, or an image that
/// [arrives](StreamImage) and is read once.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    pub(super) disk: &'a dyn BlockSource,
    pub(super) arriving: Option<&'a Arriving>,
}

impl Input<'_> {
    /// Returns true if reading the source reads that file: see
    /// [`Stored::uses_file`](crate::Stored::uses_file).
    pub fn uses_file(&self, file: FileIdentity) -> bool {
        self.disk.uses_file(file)
    }

    /// Returns true if the size is known only when the end was seen.
    pub(super) fn is_endless(&self) -> bool {
        self.arriving.is_some_and(Arriving::is_endless)
    }
}

impl<'a, S: BlockSource> From<&'a S> for Input<'a> {
    fn from(disk: &'a S) -> Self {
        Input {
            disk,
            arriving: None,
        }
    }
}

impl<'a> From<&'a (dyn BlockSource + 'a)> for Input<'a> {
    fn from(disk: &'a (dyn BlockSource + 'a)) -> Self {
        Input {
            disk,
            arriving: None,
        }
    }
}

impl<'a> From<&'a StreamImage> for Input<'a> {
    fn from(image: &'a StreamImage) -> Self {
        Input {
            disk: &image.0,
            arriving: Some(&image.0),
        }
    }
}
