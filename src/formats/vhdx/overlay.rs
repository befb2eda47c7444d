//! A file as it will be once its log is written to it, without writing to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::Result;
use crate::extent::{Extent, ExtentKind};
use crate::source::{
    BlockSource, BlockSourceExt, FileIdentity, Stored, check_extent, read_padded, readable,
};
use crate::target::{BlockTarget, Zeroes};

/// The unit of everything that a log writes, in bytes.
pub(super) const SECTOR: u64 = 4096;

/// A file with patches over it. All patches begin and end at multiples of [`SECTOR`].
#[derive(Debug)]
pub(super) struct Overlay {
    file: Arc<dyn BlockSource>,
    /// What the patches' bytes are taken from.
    bytes: Vec<u8>,
    /// By where they start; none overlaps another.
    patches: BTreeMap<u64, Patch>,
    size: u64,
}

#[derive(Debug, Clone, Copy)]
struct Patch {
    end: u64,
    /// Where one sector's bytes begin in `bytes`; zeros if there is none.
    from: Option<usize>,
}

impl Overlay {
    /// The file as it is, as far as it goes, with zeros after it up to `size`.
    pub(super) fn new(file: Arc<dyn BlockSource>, bytes: Vec<u8>, size: u64) -> Self {
        let size = size.max(file.size());
        Overlay {
            file,
            bytes,
            patches: BTreeMap::new(),
            size,
        }
    }

    /// Puts one sector at `start`, whose bytes begin at `from` of what was given to [`Self::new`].
    pub(super) fn put(&mut self, start: u64, from: usize) {
        let end = start.saturating_add(SECTOR);
        let from = Some(from);
        self.cover(start, end);
        self.patches.insert(start, Patch { end, from });
    }

    /// Puts zeros.
    pub(super) fn put_zeroes(&mut self, start: u64, end: u64) {
        if start < end {
            self.cover(start, end);
            self.patches.insert(start, Patch { end, from: None });
        }
    }

    /// Writes the patches to `target`, which is the file.
    ///
    /// # Errors
    /// What writing fails with.
    pub(super) fn write_to(&self, target: &dyn BlockTarget) -> Result<()> {
        if target.size() < self.size {
            target.set_size(self.size)?;
        }
        for (start, patch) in &self.patches {
            let len = usize::try_from(patch.end - start).unwrap_or(usize::MAX);
            match patch.from {
                None => target.write_zeroes_at(*start, patch.end - start, Zeroes::Discard)?,
                Some(from) => {
                    let bytes = self.bytes.get(from..).and_then(|rest| rest.get(..len));
                    target.write_all_at(bytes.unwrap_or_default(), *start)?;
                }
            }
        }
        Ok(())
    }

    /// Makes room for a patch: what other patches have there goes, and the rest of them stays.
    fn cover(&mut self, start: u64, end: u64) {
        self.size = self.size.max(end);
        if let Some((&before, &patch)) = self.patches.range(..start).next_back() {
            if patch.end > start {
                self.patches.insert(
                    before,
                    Patch {
                        end: start,
                        ..patch
                    },
                );
                self.keep_after(patch, end);
            }
        }
        while let Some((&inside, &patch)) = self.patches.range(start..end).next() {
            self.patches.remove(&inside);
            self.keep_after(patch, end);
        }
    }

    /// Keeps what a patch has after `end`. Only zeros are so long: the rest is one sector each.
    fn keep_after(&mut self, patch: Patch, end: u64) {
        if patch.end > end {
            self.patches.insert(end, patch);
        }
    }

    /// The patch at `offset`, or where the next one begins.
    fn at(&self, offset: u64) -> Result<(u64, Patch), Option<u64>> {
        let before = self.patches.range(..=offset).next_back();
        if let Some((&start, &patch)) = before.filter(|(_, patch)| patch.end > offset) {
            return Ok((start, patch));
        }
        let next = self.patches.range(offset..).next();
        Err(next.map(|(start, _)| *start))
    }
}

impl BlockSource for Overlay {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let want = readable(buf.len(), offset, self.size);
        let mut done = 0;
        while done < want {
            let at = offset + done as u64;
            let found = self.at(at);
            let end = match found {
                Ok((_, patch)) => patch.end,
                Err(next) => next.unwrap_or(u64::MAX),
            };
            let len = readable(want - done, at, end);
            let piece = buf.get_mut(done..done + len).unwrap_or_default();
            match found {
                Ok((
                    start,
                    Patch {
                        from: Some(from), ..
                    },
                )) => {
                    let from = from + usize::try_from(at - start).unwrap_or(usize::MAX);
                    let bytes = from
                        .checked_add(len)
                        .and_then(|end| self.bytes.get(from..end));
                    piece.copy_from_slice(bytes.unwrap_or(&[]).get(..len).unwrap_or(&[0; 0]));
                }
                Ok(_) => piece.fill(0),
                Err(_) => {
                    read_padded(&self.file, piece, at)?;
                }
            }
            done += len;
        }
        Ok(done)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let limit = check_extent(offset, limit, self.size)?;
        let here = |kind, len| {
            Ok(Extent {
                start: offset,
                len,
                kind,
                depth: 0,
                host_offset: None,
            })
        };
        match self.at(offset) {
            Ok((_, patch)) => {
                let kind = match patch.from {
                    Some(_) => ExtentKind::Data,
                    None => ExtentKind::Zero,
                };
                here(kind, limit.min(patch.end - offset))
            }
            Err(next) => {
                let limit = limit.min(next.unwrap_or(u64::MAX) - offset);
                if offset >= self.file.size() {
                    return here(ExtentKind::Zero, limit);
                }
                Ok(self.file.extent_at(offset, limit)?.limited(limit))
            }
        }
    }

    fn stored(&self) -> Option<&dyn Stored> {
        Some(self)
    }
}

impl Stored for Overlay {
    fn allocated_size(&self) -> Option<u64> {
        self.file.allocated_size()
    }

    fn identity(&self) -> Option<FileIdentity> {
        self.file.identity()
    }

    fn uses_file(&self, file: FileIdentity) -> bool {
        self.file.uses_file(file)
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "the numbers are small")]
mod tests {
    use super::*;
    use crate::storage::Memory;
    use proptest::prelude::*;

    const SECTORS: u64 = 24;

    proptest! {
        /// Patches in any order give what the same writes to a file would give.
        #[test]
        fn patches_are_writes(
            writes in prop::collection::vec((0..SECTORS, 0..6_u64), 0..40),
            file_sectors in 0..SECTORS,
        ) {
            let file: Vec<u8> = (0..file_sectors * SECTOR).map(|i| (i / SECTOR) as u8 | 0x80).collect();
            let bytes: Vec<u8> = (0..8 * SECTOR).map(|i| (i / SECTOR) as u8 + 1).collect();
            let mut oracle = file.clone();
            let mut overlay = Overlay::new(Arc::new(Memory::new(file)), bytes, 0);
            for (n, (at, len)) in writes.into_iter().enumerate() {
                let start = at * SECTOR;
                let end = start + len.max(1) * SECTOR;
                oracle.resize(oracle.len().max(end as usize), 0);
                let range = start as usize..end as usize;
                if len == 0 {
                    overlay.put(start, n % 8 * SECTOR as usize);
                    oracle[range].fill((n % 8) as u8 + 1);
                } else {
                    overlay.put_zeroes(start, end);
                    oracle[range].fill(0);
                }
            }
            prop_assert_eq!(overlay.size(), oracle.len() as u64);
            let mut all = vec![0xee; oracle.len() + 1];
            prop_assert_eq!(overlay.read_at(&mut all, 0).unwrap(), oracle.len());
            all.pop();
            prop_assert!(all == oracle);
            let mut at = 0;
            while at < overlay.size() {
                let run = overlay.extent_at(at, u64::MAX).unwrap();
                prop_assert!(run.len > 0 && run.end() <= overlay.size());
                let bytes = &oracle[at as usize..run.end() as usize];
                prop_assert!(!run.kind.reads_as_zero() || bytes.iter().all(|b| *b == 0));
                at = run.end();
            }
        }
    }
}
