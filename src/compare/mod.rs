//! The verb *compare*, which compares the bytes of two disks, in images of any formats.
//!
//! ```
//! use blockform::OpenOptions;
//! use blockform::compare::{CompareOptions, Comparison};
//!
//! let image = OpenOptions::new().open_path("testdata/qcow2/good/plain.qcow2")?;
//! let other = OpenOptions::new().open_path("testdata/qcow2/good/v2.qcow2")?;
//! match CompareOptions::new().compare(&image, &other)? {
//!     Comparison::Same => println!("the same"),
//!     Comparison::Differ { offset } => println!("byte {offset} differs"),
//!     told => println!("{told:?}"),
//! }
//! # Ok::<(), blockform::Error>(())
//! ```
//!
//! Ranges that are zero in both are not read, nor are ranges that both have in the same place of the same file,
//! as an overlay and its backing file do. The result is the same for any number of threads: it is the first
//! difference or failure on the disk.

mod claim;
mod engine;

use std::fmt;

use crate::error::Error;
use crate::progress::{Work, progress_setter, work_setters};
use crate::source::BlockSource;

pub use crate::progress::{Cancel, Phase, Progress};

/// Result of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Comparison {
    /// They hold the same bytes, and what only the longer one has reads as zero. If the comparison was
    /// strict, their sizes and the statuses of all ranges are the same, too.
    Same,
    /// They hold different bytes, or the longer one has something where the other has ended.
    Differ {
        /// Offset of the first byte that differs, from the start of the disk.
        offset: u64,
    },
    /// They are of different sizes. Only a strict comparison says so; nothing was read then.
    SizeDiffers {
        /// Size of the first one, in bytes.
        first: u64,
        /// Size of the second one, in bytes.
        second: u64,
    },
    /// A range is stored in one way here and in another way there: as data, compressed, as recorded zeros
    /// or not at all. Only a strict comparison says so.
    StatusDiffers {
        /// Start of the first such range in bytes from the start of the disk. Everything before it is the same.
        offset: u64,
    },
}

/// One of the two that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The first.
    First,
    /// The second.
    Second,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::First => "first",
            Side::Second => "second",
        })
    }
}

/// The reason for which a comparison has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The status of a range could not be read.
    #[error("cannot find out what the {side} image stores at byte {offset}")]
    Status {
        /// The disk.
        side: Side,
        /// Start of the range in bytes from the start of the disk.
        offset: u64,
        /// Reason.
        source: Error,
    },
    /// A range could not be read.
    #[error("cannot read what the {side} image stores at byte {offset}")]
    Read {
        /// The disk.
        side: Side,
        /// Start of the range in bytes from the start of the disk.
        offset: u64,
        /// Reason.
        source: Error,
    },
    /// The caller stopped it.
    #[error("cancelled")]
    Cancelled,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Status { source, .. } | Failure::Read { source, .. } => source,
            Failure::Cancelled => Error::Cancelled,
        }
    }
}

/// A comparison of two disks.
#[derive(Clone, Default)]
pub struct CompareOptions {
    strict: bool,
    pub(crate) work: Work,
}

impl fmt::Debug for CompareOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompareOptions")
            .field("strict", &self.strict)
            .finish_non_exhaustive()
    }
}

impl CompareOptions {
    /// A comparison of the bytes alone, on every core.
    pub fn new() -> Self {
        CompareOptions::default()
    }

    /// Compares sizes and statuses, too.
    #[must_use]
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    work_setters!(|self| self.work);
    progress_setter!(|self| self.work);

    /// Compares two disks of whatever formats.
    ///
    /// # Errors
    /// [`Failure`] with the disk that could not be read, unless a difference comes before that place.
    pub fn compare(
        &self,
        first: &dyn BlockSource,
        second: &dyn BlockSource,
    ) -> Result<Comparison, Failure> {
        if self.strict && first.size() != second.size() {
            return Ok(Comparison::SizeDiffers {
                first: first.size(),
                second: second.size(),
            });
        }
        engine::run(self, [first, second])
    }
}
