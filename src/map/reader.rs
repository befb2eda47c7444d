//! The one way to the tables of an image that is read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::{Error, Result};
use crate::format_id::FormatId;
use crate::image::Request;
use crate::limits::Limits;
use crate::lock::lock;
use crate::source::{BlockSource, BlockSourceExt};

use super::{TableCache, read_what_is_left};

/// Memory that a range takes up, in bytes.
const RANGE_BYTES: u64 = 64;

/// Reads tables and keeps those used last, within the limits. If the image is salvaged, a table is read as
/// far as it can be, and the entries in bad sectors are remembered.
#[derive(Debug)]
pub(crate) struct TableReader {
    format: FormatId,
    limits: Limits,
    salvages: bool,
    cache: TableCache,
    /// Set if a table could not be read, so that reads of a sound image take no lock.
    any_unread: AtomicBool,
    /// The start and the end of each range of tables that could not be read. A range that was bad once stays
    /// so, whatever a later read brings.
    unread: Mutex<BTreeMap<u64, u64>>,
}

impl TableReader {
    pub(crate) fn new(format: FormatId, limits: &Limits, salvages: bool) -> Self {
        TableReader {
            format,
            limits: limits.clone(),
            salvages,
            cache: TableCache::new(limits.cache_bytes),
            any_unread: AtomicBool::new(false),
            unread: Mutex::default(),
        }
    }

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
    /// Errors of reading, and [`Error::LimitExceeded`].
    pub(crate) fn read(&self, file: &dyn BlockSource, buf: &mut [u8], at: u64) -> Result<()> {
        match self.salvages {
            true => self.note_unread(read_what_is_left(file, buf, at)?),
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
    /// [`Error::LimitExceeded`].
    pub(crate) fn note_unread(&self, bad: Vec<Range<u64>>) -> Result<()> {
        if bad.is_empty() {
            return Ok(());
        }
        let mut ranges = lock(&self.unread);
        for range in bad {
            let (mut start, mut end) = (range.start, range.end);
            // They stay apart, whatever was read in which pieces.
            while let Some((from, to)) = ranges.range(..=end).next_back() {
                let (from, to) = (*from, *to);
                if to < start {
                    break;
                }
                (start, end) = (start.min(from), end.max(to));
                ranges.remove(&from);
            }
            ranges.insert(start, end);
        }
        self.any_unread.store(true, Ordering::Release);
        let kept = (ranges.len() as u64).saturating_mul(RANGE_BYTES);
        let what = "the list of sectors that cannot be read";
        self.limits.check_metadata(what, kept)
    }

    /// Returns `true` if any of these bytes of tables could not be read.
    pub(crate) fn is_unread(&self, at: u64, len: u64) -> bool {
        if !self.any_unread.load(Ordering::Acquire) {
            return false;
        }
        let ranges = lock(&self.unread);
        let before = ranges.range(..at.saturating_add(len)).next_back();
        before.is_some_and(|(_, end)| *end > at)
    }

    /// Fails if an entry of `len` bytes at `at` could not be read.
    ///
    /// # Errors
    /// [`Error::Malformed`], so that salvage asks for no smaller pieces: an entry maps a whole unit.
    pub(crate) fn check(&self, structure: &'static str, at: u64, len: u64) -> Result<()> {
        if !self.is_unread(at, len) {
            return Ok(());
        }
        let problem = "has an entry here that cannot be read";
        Err(Error::malformed(self.format, structure, at, problem))
    }
}
