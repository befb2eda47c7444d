//! Bytes to write.

use std::sync::Arc;

use crate::error::Result;
use crate::source::{BlockSource, Place};

/// Storage that can be written at any offset by any number of threads at once.
///
/// Threads that write different ranges see no order between them until [`sync`](Self::sync).
pub trait BlockTarget: BlockSource {
    /// Writes all of `data` at `offset`, growing the target where it can grow.
    ///
    /// # Errors
    /// Errors of the storage; some of `data` may then have been written.
    fn write_all_at(&self, data: &[u8], offset: u64) -> Result<()>;

    /// Makes `len` bytes at `offset` read as zero, by the cheapest means that `zeroes` allows.
    ///
    /// # Errors
    /// Errors of the storage.
    fn write_zeroes_at(&self, offset: u64, len: u64, zeroes: Zeroes) -> Result<()>;

    /// Reserves space for `len` bytes at `offset` without changing what they read as, growing the
    /// target where that is needed.
    ///
    /// # Errors
    /// Errors of the storage, such as a full disk.
    fn allocate(&self, offset: u64, len: u64) -> Result<()>;

    /// Sets the size in bytes. What is added reads as zero. A target of fixed size (a block device,
    /// a slice) accepts any size that fits into it and keeps its own.
    ///
    /// # Errors
    /// Errors of the storage.
    fn set_size(&self, size: u64) -> Result<()>;

    /// Returns once everything written before is on stable storage.
    ///
    /// # Errors
    /// Errors of the storage. Bytes that were written may then be lost.
    fn sync(&self) -> Result<()>;

    /// Lets the system begin to bring these bytes to stable storage, and does not wait. A hint.
    fn write_behind(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }

    /// Returns true if every byte that was never written is known to read as zero.
    fn reads_as_zero(&self) -> bool;

    /// Count of threads that may usefully write at once: 1 for a regular file, where the kernel
    /// lets one writer in at a time and the others would spin.
    fn concurrent_writes(&self) -> usize {
        1
    }

    /// The [device](crate::FileIdentity::device) whose files this can share blocks with; `None`
    /// where bytes have to be written.
    fn shares_blocks(&self) -> Option<u64> {
        None
    }

    /// Makes the bytes of `place` stand at `offset` by sharing their blocks, growing the target
    /// where that is needed. Returns the count of bytes that are shared, which may be 0; the rest
    /// has to be written.
    ///
    /// # Errors
    /// Errors of the storage, such as a full disk.
    fn share_from(&self, place: &Place<'_>, offset: u64) -> Result<u64> {
        let _ = (place, offset);
        Ok(0)
    }
}

/// Treatment of the space of a range that is made to read as zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zeroes {
    /// The space may be given back.
    Discard,
    /// The space stays, or becomes, allocated.
    Keep,
}

macro_rules! forward_target {
    ($($ty:ty),*) => {$(
        impl<T: BlockTarget + ?Sized> BlockTarget for $ty {
            fn write_all_at(&self, data: &[u8], offset: u64) -> Result<()> {
                (**self).write_all_at(data, offset)
            }
            fn write_zeroes_at(&self, offset: u64, len: u64, zeroes: Zeroes) -> Result<()> {
                (**self).write_zeroes_at(offset, len, zeroes)
            }
            fn allocate(&self, offset: u64, len: u64) -> Result<()> {
                (**self).allocate(offset, len)
            }
            fn set_size(&self, size: u64) -> Result<()> { (**self).set_size(size) }
            fn sync(&self) -> Result<()> { (**self).sync() }
            fn write_behind(&self, offset: u64, len: u64) { (**self).write_behind(offset, len); }
            fn reads_as_zero(&self) -> bool { (**self).reads_as_zero() }
            fn concurrent_writes(&self) -> usize { (**self).concurrent_writes() }
            fn shares_blocks(&self) -> Option<u64> { (**self).shares_blocks() }
            fn share_from(&self, place: &Place<'_>, offset: u64) -> Result<u64> {
                (**self).share_from(place, offset)
            }
        }
    )*};
}
forward_target!(&T, Box<T>, Arc<T>);
