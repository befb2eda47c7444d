//! Bytes that are to be written, by their places and ranks.

use std::collections::BTreeMap;

/// Memory of a patch besides its bytes.
const PATCH_BYTES: u64 = 96;

/// The place of a structure in the order of writing: each rank refers only to those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// Data, and all that may be written in any order: nothing relies on it yet.
    Data,
    /// Reference counts.
    Count,
    /// Tables that refer to data.
    Leaf,
    /// Tables that refer to tables.
    Root,
    /// Fields that put everything else in force.
    Header,
}

impl Rank {
    /// All ranks in the order of writing.
    pub(super) const ALL: [Rank; 5] = [
        Rank::Data,
        Rank::Count,
        Rank::Leaf,
        Rank::Root,
        Rank::Header,
    ];
}

/// Changes to a file. No two overlap: of a byte that is written twice, the last write counts, with its rank.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// By the offset at which they start.
    patches: BTreeMap<u64, Patch>,
    /// The size that the file has at least.
    size: u64,
    /// Memory of the patches in bytes.
    kept: u64,
}

/// A change of one run of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Patch {
    pub(super) end: u64,
    pub(super) rank: Rank,
    /// `None` for zeros.
    pub(super) bytes: Option<Vec<u8>>,
}

impl Patch {
    /// This patch, at `start`, cut off before `at`; returns the rest.
    fn split(&mut self, start: u64, at: u64) -> Patch {
        let len = usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX);
        let bytes = self.bytes.as_mut();
        let rest = Patch {
            end: self.end,
            rank: self.rank,
            bytes: bytes.map(|bytes| bytes.split_off(len.min(bytes.len()))),
        };
        self.end = at;
        rest
    }

    fn kept(&self) -> u64 {
        PATCH_BYTES + self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)
    }
}

impl Changes {
    /// The change of `bytes` at `start` alone.
    pub(crate) fn of(rank: Rank, start: u64, bytes: impl Into<Vec<u8>>) -> Self {
        let mut changes = Self::default();
        changes.write(rank, start, bytes);
        changes
    }

    /// Writes `bytes` at `start`.
    pub(crate) fn write(&mut self, rank: Rank, start: u64, bytes: impl Into<Vec<u8>>) {
        let bytes = bytes.into();
        let end = start.saturating_add(bytes.len() as u64);
        let bytes = Some(bytes);
        self.insert(start, Patch { end, rank, bytes });
    }

    /// Writes zeros from `start` to `end`.
    pub(crate) fn zero(&mut self, rank: Rank, start: u64, end: u64) {
        let bytes = None;
        self.insert(start, Patch { end, rank, bytes });
    }

    /// Makes the file at least `size` bytes long.
    pub(crate) fn grow(&mut self, size: u64) {
        self.size = self.size.max(size);
    }

    /// Adds later changes.
    pub(crate) fn merge(&mut self, later: Changes) {
        self.grow(later.size);
        for (start, patch) in later.patches {
            self.insert(start, patch);
        }
    }

    /// Returns true if nothing is to be written.
    pub(crate) fn is_empty(&self) -> bool {
        self.patches.is_empty()
    }

    /// Bytes of memory that the changes take up.
    pub(super) fn kept(&self) -> u64 {
        self.kept
    }

    /// The size that the file is given before anything is written.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The size of a file of `size` bytes with these changes.
    pub(super) fn size_over(&self, size: u64) -> u64 {
        let last = self.patches.last_key_value();
        size.max(self.size)
            .max(last.map_or(0, |(_, patch)| patch.end))
    }

    /// The patches of a rank in the order of their places.
    pub(super) fn with(&self, rank: Rank) -> impl Iterator<Item = (u64, &Patch)> {
        let patches = self.patches.iter().map(|(start, patch)| (*start, patch));
        patches.filter(move |(_, patch)| patch.rank == rank)
    }

    /// The patch with the byte at `offset`, or the start of the next one.
    pub(super) fn at(&self, offset: u64) -> Result<(u64, &Patch), Option<u64>> {
        let before = self.patches.range(..=offset).next_back();
        match before {
            Some((start, patch)) if patch.end > offset => Ok((*start, patch)),
            _ => {
                let next = self.patches.range(offset..).next();
                Err(next.map(|(start, _)| *start))
            }
        }
    }

    fn insert(&mut self, start: u64, patch: Patch) {
        if start >= patch.end {
            return;
        }
        self.split_at(start);
        self.split_at(patch.end);
        while let Some((&inside, _)) = self.patches.range(start..patch.end).next() {
            self.kept -= self.patches.remove(&inside).map_or(0, |old| old.kept());
        }
        self.kept += patch.kept();
        self.patches.insert(start, patch);
    }

    /// Makes two patches of the one that has bytes on both sides of `at`.
    fn split_at(&mut self, at: u64) {
        let before = self.patches.range_mut(..at).next_back();
        if let Some((start, patch)) = before.filter(|(_, patch)| patch.end > at) {
            let rest = patch.split(*start, at);
            self.kept += PATCH_BYTES;
            self.patches.insert(at, rest);
        }
    }
}
