//! Cutting two disks into windows. Ranges that need not be read are skipped.

use crate::compare::{Comparison, Failure, Side};
use crate::extent::{Extent, ExtentKind};
use crate::source::{BlockSource, BlockSourceExt};

/// A result of the comparison.
pub(super) type Decision = Result<Comparison, Failure>;

/// A range that is to be read, from both disks or from one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// The only one to be read: the other reads as zero there, or has ended.
    pub(super) only: Option<Side>,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// The pieces in one window of the disk.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Start in bytes: a multiple of its length.
    pub(super) start: u64,
    /// Everything before this offset has been dealt with once the pieces are.
    pub(super) end: u64,
    pub(super) pieces: Vec<Piece>,
}

impl Window {
    /// Adds a piece, as part of the one before where they are one.
    fn push(&mut self, piece: Piece) {
        match self.pieces.last_mut() {
            Some(last) if last.only == piece.only && last.offset + last.len == piece.offset => {
                last.len += piece.len;
            }
            _ => self.pieces.push(piece),
        }
    }
}

/// Cuts windows in order. Cuts depend on the two disks alone, never on the number of threads.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    sources: [&'a dyn BlockSource; 2],
    sizes: [u64; 2],
    strict: bool,
    /// Bytes of a window.
    length: u64,
    position: u64,
    /// The runs that `position` is in, as far as they are known.
    runs: [Option<Extent>; 2],
}

const SIDES: [Side; 2] = [Side::First, Side::Second];

impl<'a> Cursor<'a> {
    pub(super) fn new(sources: [&'a dyn BlockSource; 2], strict: bool, length: u64) -> Self {
        Cursor {
            sources,
            sizes: sources.map(|source| source.size()),
            strict,
            length,
            position: 0,
            runs: [None; 2],
        }
    }

    /// Size of the longer disk, in bytes.
    pub(super) fn size(&self) -> u64 {
        let [first, second] = self.sizes;
        first.max(second)
    }

    /// Fills `window` with what comes next; `false` if there is nothing left. Where this decides the
    /// comparison, that is returned with its offset, and the window holds what lies before. `stopped`
    /// is asked now and then, so that endless holes cannot keep the work from ending.
    pub(super) fn claim(
        &mut self,
        window: &mut Window,
        stopped: &dyn Fn() -> bool,
    ) -> Result<bool, (u64, Decision)> {
        window.pieces.clear();
        let size = self.size();
        let mut limit = size;
        while self.position < limit {
            if stopped() {
                return Ok(false);
            }
            let offset = self.position;
            let decided = |decision: Decision| (offset, decision);
            let [first, second] = self.runs_here().map_err(|e| decided(Err(e)))?;
            if self.strict && first.kind != second.kind {
                return Err(decided(Ok(Comparison::StatusDiffers { offset })));
            }
            let end = first.end().min(second.end()).min(limit);
            let zero = (first.kind.reads_as_zero(), second.kind.reads_as_zero());
            let skipped = match zero {
                (true, true) => Some(end - offset),
                (false, false) => self.shared(first, second, end),
                _ => None,
            };
            if let Some(len) = skipped {
                self.position += len;
                continue;
            }
            let only = match zero {
                (_, true) => Some(Side::First),
                (true, _) => Some(Side::Second),
                _ => None,
            };
            if window.pieces.is_empty() {
                window.start = offset - offset % self.length;
                limit = window.start.saturating_add(self.length).min(size);
            }
            self.position = end.min(limit);
            let len = self.position - offset;
            window.push(Piece { only, offset, len });
        }
        window.end = self.position;
        Ok(!window.pieces.is_empty())
    }

    /// The number of bytes up to `end` that both disks have from the same place.
    fn shared(&self, first: Extent, second: Extent, end: u64) -> Option<u64> {
        if first.kind != ExtentKind::Data || second.kind != ExtentKind::Data {
            return None;
        }
        let [one, other] = self.sources;
        let one = one.place_of(self.position, end - self.position)?;
        let other = other.place_of(self.position, one.len)?;
        let same = one.file.is_some() && one.file == other.file && one.offset == other.offset;
        same.then(|| one.len.min(other.len))
    }

    fn runs_here(&mut self) -> Result<[Extent; 2], Failure> {
        let mut found = [Extent::new(self.position, u64::MAX - self.position, ExtentKind::Hole); 2];
        let sides = self.sources.iter().zip(self.sizes).zip(SIDES);
        let known = self.runs.iter_mut().zip(&mut found);
        for (((source, size), side), (known, found)) in sides.zip(known) {
            // Past the end of the shorter one everything reads as zero.
            if self.position >= size {
                continue;
            }
            let here = known.filter(|run| (run.start..run.end()).contains(&self.position));
            let run = match here {
                Some(run) => run,
                None => source
                    .extent_at(self.position, size - self.position)
                    .map_err(|source| Failure::Status {
                        side,
                        offset: self.position,
                        source,
                    })?,
            };
            *known = Some(run);
            *found = run;
        }
        Ok(found)
    }
}
