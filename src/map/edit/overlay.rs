//! A file read through changes that are not in it.

use std::sync::Arc;

use crate::error::Result;
use crate::extent::{Extent, ExtentKind};
use crate::source::{
    BlockSource, BlockSourceExt, FileIdentity, Stored, check_extent, read_padded, readable,
};

use super::changes::Changes;

/// A file with changes over it, which are never written.
#[derive(Debug)]
pub(crate) struct Overlay {
    file: Arc<dyn BlockSource>,
    changes: Changes,
}

impl Overlay {
    /// `file` with `changes` over it.
    pub(crate) fn new(file: Arc<dyn BlockSource>, changes: Changes) -> Self {
        Overlay { file, changes }
    }

    /// The changes alone.
    pub(crate) fn into_changes(self) -> Changes {
        self.changes
    }
}

impl Changes {
    /// [`BlockSource::read_at`] of `file` with these changes.
    pub(super) fn read_at(
        &self,
        file: &dyn BlockSource,
        buf: &mut [u8],
        offset: u64,
    ) -> Result<usize> {
        let want = readable(buf.len(), offset, self.size_over(file.size()));
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
                Err(_) => {
                    read_padded(file, piece, at)?;
                }
                Ok((start, patch)) => match &patch.bytes {
                    None => piece.fill(0),
                    Some(bytes) => {
                        let skip = usize::try_from(at - start).unwrap_or(usize::MAX);
                        let bytes = bytes.iter().skip(skip);
                        piece
                            .iter_mut()
                            .zip(bytes)
                            .for_each(|(to, from)| *to = *from);
                    }
                },
            }
            done += len;
        }
        Ok(done)
    }

    /// [`BlockSource::extent_at`] of `file` with these changes.
    pub(super) fn extent_at(
        &self,
        file: &dyn BlockSource,
        offset: u64,
        limit: u64,
    ) -> Result<Extent> {
        let limit = check_extent(offset, limit, self.size_over(file.size()))?;
        let (kind, end) = match self.at(offset) {
            Ok((_, patch)) if patch.bytes.is_some() => (ExtentKind::Data, patch.end),
            Ok((_, patch)) => (ExtentKind::Zero, patch.end),
            Err(next) => {
                let end = next.unwrap_or(u64::MAX);
                if offset < file.size() {
                    let limit = limit.min(end - offset);
                    return Ok(file.extent_at(offset, limit)?.limited(limit));
                }
                (ExtentKind::Zero, end)
            }
        };
        Ok(Extent::new(offset, limit.min(end - offset), kind))
    }
}

impl BlockSource for Overlay {
    fn size(&self) -> u64 {
        self.changes.size_over(self.file.size())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.changes.read_at(&self.file, buf, offset)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.changes.extent_at(&self.file, offset, limit)
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
    use super::super::changes::Rank;
    use super::*;
    use crate::storage::Memory;
    use proptest::prelude::*;

    const MOST: u64 = 64;

    proptest! {
        /// Changes in any order give what the same writes to a file would give.
        #[test]
        fn changes_are_writes(
            writes in prop::collection::vec((0..MOST, 0..16_u64, any::<bool>()), 0..40),
            file_len in 0..MOST,
            size in 0..MOST,
        ) {
            let file: Vec<u8> = (0..file_len).map(|i| i as u8 | 0x80).collect();
            let mut oracle = file.clone();
            let mut changes = Changes::default();
            changes.grow(size);
            oracle.resize(file_len.max(size) as usize, 0);
            for (n, (start, len, zero)) in writes.into_iter().enumerate() {
                let end = start + len;
                let rank = Rank::ALL[n % Rank::ALL.len()];
                let byte = if zero { 0 } else { n as u8 + 1 };
                match zero {
                    true => changes.zero(rank, start, end),
                    false => changes.write(rank, start, vec![byte; len as usize]),
                }
                if len > 0 {
                    oracle.resize(oracle.len().max(end as usize), 0);
                    oracle[start as usize..end as usize].fill(byte);
                }
            }
            let overlay = Overlay::new(Arc::new(Memory::new(file)), changes);
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
