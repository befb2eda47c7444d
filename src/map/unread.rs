//! Tables of which a part cannot be read, as happens on a disk that fails.
//!
//! What can be read of them still tells where most of the guest's data is: a bad sector costs what its entries
//! tell, and no more. This is for [salvage](crate::salvage) alone; whoever else reads a table needs all of it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::error::{Error, Result};
use crate::format_id::FormatId;
use crate::limits::Limits;
use crate::lock::lock;
use crate::source::{BlockSource, BlockSourceExt};

/// What is lost with one bad sector, in bytes, and what a disk reads at once.
const PIECES: [u64; 2] = [4096, 512];
/// What a range takes up in memory.
const RANGE_BYTES: u64 = 64;

/// Fills `buf` with the bytes at `at`, and returns where those are that cannot be read: they are zeros.
///
/// # Errors
/// What reading fails with, if nothing can be read or the environment is not to blame.
pub(crate) fn read_what_is_left(
    source: &dyn BlockSource,
    buf: &mut [u8],
    at: u64,
) -> Result<Vec<Range<u64>>> {
    let error = match source.read_exact_at(buf, at) {
        Err(error @ Error::Io { .. }) => error,
        read => return read.map(|()| Vec::new()),
    };
    let mut bad: Vec<Range<u64>> = Vec::new();
    read_pieces(source, buf, at, &PIECES, &mut bad)?;
    let whole = at..at.saturating_add(buf.len() as u64);
    match bad.as_slice() {
        [all] if *all == whole => Err(error),
        _ => Ok(bad),
    }
}

fn read_pieces(
    source: &dyn BlockSource,
    buf: &mut [u8],
    at: u64,
    pieces: &[u64],
    bad: &mut Vec<Range<u64>>,
) -> Result<()> {
    let Some((piece, smaller)) = pieces.split_first() else {
        buf.fill(0);
        let end = at.saturating_add(buf.len() as u64);
        match bad.last_mut() {
            Some(last) if last.end == at => last.end = end,
            _ => bad.push(at..end),
        }
        return Ok(());
    };
    let mut rest = buf;
    let mut at = at;
    while !rest.is_empty() {
        let len = usize::try_from(piece - at % piece).unwrap_or(rest.len());
        let (now, later) = rest.split_at_mut(len.min(rest.len()));
        match source.read_exact_at(now, at) {
            Err(Error::Io { .. }) => read_pieces(source, now, at, smaller, bad)?,
            read => read?,
        }
        at = at.saturating_add(now.len() as u64);
        rest = later;
    }
    Ok(())
}

/// Where the tables of an image cannot be read, found out as they are.
#[derive(Debug, Default)]
pub(crate) struct Unread {
    /// Whether there is any, so that whoever reads a sound image asks for nothing.
    any: AtomicBool,
    /// Where each range starts and ends. What was found bad once stays so, whatever a later read brings.
    ranges: Mutex<BTreeMap<u64, u64>>,
}

impl Unread {
    fn ranges(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        lock(&self.ranges)
    }

    /// Fills `buf` with the bytes of a table at `at`; those that cannot be read are zeros, and noted.
    ///
    /// # Errors
    /// What reading fails with if nothing can be read, and [`Error::LimitExceeded`].
    pub(crate) fn read(
        &self,
        source: &dyn BlockSource,
        buf: &mut [u8],
        at: u64,
        limits: &Limits,
    ) -> Result<()> {
        let bad = read_what_is_left(source, buf, at)?;
        self.note(bad, limits)
    }

    /// Notes that nobody knows what these bytes of tables are.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`].
    pub(crate) fn note(&self, bad: Vec<Range<u64>>, limits: &Limits) -> Result<()> {
        if bad.is_empty() {
            return Ok(());
        }
        let mut ranges = self.ranges();
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
        self.any.store(true, Ordering::Release);
        let kept = (ranges.len() as u64).saturating_mul(RANGE_BYTES);
        limits.check_metadata("the list of sectors that cannot be read", kept)
    }

    /// Whether any of these bytes could not be read.
    pub(crate) fn has(&self, at: u64, len: u64) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let ranges = self.ranges();
        let before = ranges.range(..at.saturating_add(len)).next_back();
        before.is_some_and(|(_, end)| *end > at)
    }

    /// Fails if an entry at `at` of a table could not be read, or a part of it.
    ///
    /// # Errors
    /// [`Error::Malformed`], so that nobody asks for smaller pieces: the entry tells of a unit as a whole.
    pub(crate) fn check(
        &self,
        format: FormatId,
        structure: &'static str,
        at: u64,
        len: u64,
    ) -> Result<()> {
        if !self.has(at, len) {
            return Ok(());
        }
        let problem = "has an entry here that cannot be read";
        Err(Error::malformed(format, structure, at, problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::Extent;
    use crate::storage::Memory;

    #[derive(Debug)]
    struct Bad(Memory, Vec<Range<u64>>);

    impl BlockSource for Bad {
        fn size(&self) -> u64 {
            self.0.size()
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
            let end = offset + buf.len() as u64;
            match self.1.iter().any(|bad| bad.start < end && offset < bad.end) {
                true => Err(Error::io("read", std::io::Error::from_raw_os_error(5))),
                false => self.0.read_at(buf, offset),
            }
        }

        fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
            self.0.extent_at(offset, limit)
        }
    }

    #[test]
    fn a_bad_byte_costs_its_sector() {
        let disk = vec![7; 20_000];
        let bad = Bad(Memory::new(disk), vec![5000..5001, 9727..9729]);
        let mut buf = vec![1; 12_000];
        let ranges = read_what_is_left(&bad, &mut buf, 300).unwrap();
        assert_eq!(ranges, [4608..5120, 9216..10_240]);
        for (at, byte) in (300..).zip(&buf) {
            let lost = ranges.iter().any(|range| range.contains(&at));
            assert_eq!(*byte, if lost { 0 } else { 7 }, "{at}");
        }
        let mut all = vec![1; 100];
        assert!(read_what_is_left(&bad, &mut all, 4950).is_err());
        let unread = Unread::default();
        let limits = Limits::default();
        unread.read(&bad, &mut buf, 300, &limits).unwrap();
        for (at, len, has) in [
            (4600, 8, false),
            (4600, 9, true),
            (5112, 8, true),
            (5120, 8, false),
            (9000, 4000, true),
            (0, 300, false),
        ] {
            assert_eq!(unread.has(at, len), has, "{at}");
        }
        let mut past = vec![1; 100];
        let missing = read_what_is_left(&bad, &mut past, 19_950);
        assert!(!matches!(missing, Ok(_) | Err(Error::Io { .. })));
    }
}
