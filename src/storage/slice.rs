//! A part of another source.

use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::source::{
    BlockSource, BlockSourceExt, FileIdentity, Place, Salvageable, Stored, check_extent, readable,
};

/// A part of another source, as a source of its own: a member of an archive, a partition of a disk.
#[derive(Debug, Clone)]
pub struct Slice<S> {
    inner: S,
    start: u64,
    len: u64,
}

impl<S: BlockSource> Slice<S> {
    /// The `len` bytes of `inner` from `start` on.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if they are not all inside.
    pub fn new(inner: S, start: u64, len: u64) -> Result<Self> {
        let size = inner.size();
        match start.checked_add(len) {
            Some(end) if end <= size => Ok(Slice { inner, start, len }),
            _ => Err(Error::out_of_range(start, len, size)),
        }
    }
}

impl<S: BlockSource> BlockSource for Slice<S> {
    fn size(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let n = readable(buf.len(), offset, self.len);
        match buf.get_mut(..n) {
            Some(buf) if n > 0 => self.inner.read_at(buf, self.start + offset),
            _ => Ok(0),
        }
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let limit = check_extent(offset, limit, self.len)?;
        let run = self.inner.extent_at(self.start + offset, limit)?;
        Ok(Extent {
            start: offset,
            ..run
        })
    }

    fn block_size(&self) -> u64 {
        self.inner.block_size()
    }

    fn stored(&self) -> Option<&dyn Stored> {
        Some(self)
    }

    fn salvage(&self) -> Option<&dyn Salvageable> {
        Some(self)
    }
}

impl<S: BlockSource> Stored for Slice<S> {
    fn uses_file(&self, file: FileIdentity) -> bool {
        self.inner.uses_file(file)
    }

    fn place_of(&self, offset: u64, limit: u64) -> Option<Place<'_>> {
        let left = self.len.checked_sub(offset)?;
        self.inner.place_of(self.start + offset, left.min(limit))
    }
}

impl<S: BlockSource> Salvageable for Slice<S> {
    fn lost_with(&self, offset: u64) -> u64 {
        let left = self.len.saturating_sub(offset).max(1);
        self.inner
            .lost_with(self.start.saturating_add(offset))
            .min(left)
    }
}
