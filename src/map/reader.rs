//! The one way to the tables of an image that is read.

use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::format_id::FormatId;
use crate::image::Request;
use crate::limits::Limits;
use crate::source::{BlockSource, BlockSourceExt};

use super::{TableCache, Unread};

/// Reads tables and keeps those used last, within the limits. If the image is salvaged, a table is read as
/// far as it can be, and the entries in bad sectors are remembered.
#[derive(Debug)]
pub(crate) struct TableReader {
    format: FormatId,
    limits: Limits,
    salvages: bool,
    cache: TableCache,
    unread: Unread,
}

impl TableReader {
    pub(crate) fn new(format: FormatId, limits: &Limits, salvages: bool) -> Self {
        TableReader {
            format,
            limits: limits.clone(),
            salvages,
            cache: TableCache::new(limits.cache_bytes),
            unread: Unread::default(),
        }
    }

    /// A reader for what `request` asks for.
    pub(crate) fn of(format: FormatId, request: &Request<'_>) -> Self {
        Self::new(format, request.limits, request.salvages)
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Returns `true` if damage of a table costs only what it hits: what is missing is lost, and so is a unit
    /// that two entries have.
    pub(crate) fn salvages(&self) -> bool {
        self.salvages
    }

    /// Fills `buf` with the bytes of a table at `at`. If the image is salvaged, those that cannot be read are
    /// zeros.
    ///
    /// # Errors
    /// What reading fails with, and [`Error::LimitExceeded`](crate::Error::LimitExceeded).
    pub(crate) fn read(&self, file: &dyn BlockSource, buf: &mut [u8], at: u64) -> Result<()> {
        match self.salvages {
            true => self.unread.read(file, buf, at, &self.limits),
            false => file.read_exact_at(buf, at),
        }
    }

    /// The table at `host`, read by `read` unless it was kept.
    pub(crate) fn table(
        &self,
        host: u64,
        read: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<Arc<Vec<u8>>> {
        self.cache.table(host, || read().map(Arc::new))
    }

    /// Notes that these bytes of tables cannot be read.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`](crate::Error::LimitExceeded).
    pub(crate) fn note_unread(&self, bad: Vec<Range<u64>>) -> Result<()> {
        self.unread.note(bad, &self.limits)
    }

    /// Returns `true` if any of these bytes of tables could not be read.
    pub(crate) fn is_unread(&self, at: u64, len: u64) -> bool {
        self.unread.has(at, len)
    }

    /// Fails if an entry of `len` bytes at `at` could not be read.
    ///
    /// # Errors
    /// [`Error::Malformed`](crate::Error::Malformed), so that nobody asks for smaller pieces: the entry tells
    /// of a unit as a whole.
    pub(crate) fn check(&self, structure: &'static str, at: u64, len: u64) -> Result<()> {
        self.unread.check(self.format, structure, at, len)
    }
}
