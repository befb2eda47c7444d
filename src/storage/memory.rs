//! Bytes in memory.

use std::fmt;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::source::{BlockSource, Place, Stored, check_extent, readable, stored_extent};
use crate::storage::write_zeroes_by;
use crate::target::{BlockTarget, Zeroes};

/// Bytes in memory, as a source and as a target that grows. All of it is data: it has no holes.
#[derive(Default)]
pub struct Memory {
    bytes: RwLock<Vec<u8>>,
}

impl Memory {
    /// A source of these bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Memory {
            bytes: RwLock::new(bytes.into()),
        }
    }

    /// The bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of the bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.lock().clone()
    }

    fn lock(&self) -> RwLockReadGuard<'_, Vec<u8>> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `change` on the bytes once they reach to `end`.
    fn write(&self, offset: u64, len: u64, change: impl FnOnce(&mut [u8])) -> Result<()> {
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        let range = || {
            let start = usize::try_from(offset).ok()?;
            Some(start..start.checked_add(usize::try_from(len).ok()?)?)
        };
        let out_of_range = Error::out_of_range(offset, len, bytes.len() as u64);
        let Some(range) = range() else {
            return Err(out_of_range);
        };
        if range.end > bytes.len() {
            grow(&mut bytes, range.end)?;
        }
        bytes.get_mut(range).map(change).ok_or(out_of_range)
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

fn grow(bytes: &mut Vec<u8>, size: usize) -> Result<()> {
    let more = size.saturating_sub(bytes.len());
    bytes
        .try_reserve(more)
        .map_err(|e| Error::io("grow memory", std::io::Error::other(e)))?;
    bytes.resize(size, 0);
    Ok(())
}

impl BlockSource for Memory {
    fn size(&self) -> u64 {
        self.lock().len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let bytes = self.lock();
        let n = readable(buf.len(), offset, bytes.len() as u64);
        let from = usize::try_from(offset)
            .ok()
            .and_then(|start| bytes.get(start..start + n));
        if let (Some(from), Some(to)) = (from, buf.get_mut(..n)) {
            to.copy_from_slice(from);
        }
        Ok(n)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        stored_extent(offset, limit, self.size())
    }

    fn stored(&self) -> Option<&dyn Stored> {
        Some(self)
    }
}

impl Stored for Memory {
    fn place_of(&self, offset: u64, limit: u64) -> Option<Place<'_>> {
        let len = check_extent(offset, limit, self.size()).ok()?;
        let file = None;
        Some(Place {
            file,
            handle: None,
            offset,
            len,
        })
    }
}

impl BlockTarget for Memory {
    fn write_all_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.write(offset, data.len() as u64, |bytes| {
            bytes.copy_from_slice(data)
        })
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, _: Zeroes) -> Result<()> {
        write_zeroes_by(offset, len, |zeroes, at| self.write_all_at(zeroes, at))
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.write(offset, len, |_| {})
    }

    fn set_size(&self, size: u64) -> Result<()> {
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        match usize::try_from(size) {
            Ok(size) if size <= bytes.len() => {
                bytes.truncate(size);
                Ok(())
            }
            Ok(size) => grow(&mut bytes, size),
            Err(_) => Err(Error::out_of_range(0, size, bytes.len() as u64)),
        }
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn reads_as_zero(&self) -> bool {
        self.lock().is_empty()
    }
}
