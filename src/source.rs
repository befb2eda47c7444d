//! Bytes to read: the trait of every layer.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::{Extent, ExtentKind};
use crate::format_id::FormatId;
use crate::packed::PackedSource;

/// Bytes addressable at any offset by any number of threads at once.
///
/// A file is one, a slice of a file, an image, and the image's backing file. Implementations
/// promise, and the conformance suite in `tests/` checks:
///
/// - `read_at` fills all of `buf` unless the source ends first, and never panics, whatever the
///   offset; past the end it returns 0.
/// - `extent_at` returns a run that starts at `offset`, is at least one byte long, at most `limit`,
///   and ends no later than [`size`](Self::size).
/// - Bytes in a run whose kind [reads as zero](crate::ExtentKind::reads_as_zero) are zero.
/// - Any number of threads may call at once and see the same bytes.
pub trait BlockSource: Debug + Send + Sync {
    /// Size in bytes: a file's length, or an image's virtual size.
    fn size(&self) -> u64;

    /// Reads into `buf` from `offset` on and returns how many bytes were read: fewer than
    /// `buf.len()` only where the source ends.
    ///
    /// # Errors
    /// Errors of the layers below. The content of `buf` is then unspecified.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize>;

    /// The run of one status that starts at `offset`, at most `limit` bytes long. Data up to the end by
    /// default.
    ///
    /// Two neighbouring runs may have the same status: a run ends where it is cheap to end it.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if `offset` is not below [`size`](Self::size) or `limit` is 0, and
    /// the errors of the layers below.
    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        stored_extent(offset, limit, self.size())
    }

    /// The natural unit of reading in bytes (cluster, grain, block), a hint; 1 where there is none.
    fn block_size(&self) -> u64 {
        1
    }

    /// The files that the bytes lie in, where they lie in files.
    fn stored(&self) -> Option<&dyn Stored> {
        None
    }

    /// The units that are stored compressed, if there can be any, to be handed out as they are.
    fn packed(&self) -> Option<&dyn PackedSource> {
        None
    }

    /// The reach of damage, where it is another than one [block](Self::block_size).
    fn salvage(&self) -> Option<&dyn Salvageable> {
        None
    }
}

/// A source whose bytes lie in files of this machine.
pub trait Stored {
    /// Identity of the file, where the source is one, or an image in one.
    fn identity(&self) -> Option<FileIdentity> {
        None
    }

    /// Returns true if reading this reads that file: it is the file, or one of those beneath it.
    fn uses_file(&self, file: FileIdentity) -> bool {
        self.identity() == Some(file)
    }

    /// Depth in the backing chain at which the image of that format in that file is, 0 being this
    /// source itself; `None` if it is not in the chain, or this is not an image.
    fn depth_of(&self, file: FileIdentity, format: FormatId) -> Option<u16> {
        let _ = (file, format);
        None
    }

    /// The place in a file where the bytes at `offset`, up to `limit` of them, lie as they are. Two
    /// sources with the same place in a known file have the same bytes, so a comparison need not read
    /// them. `None` where nothing is known; it never has to be.
    fn place_of(&self, offset: u64, limit: u64) -> Option<Place<'_>> {
        let _ = (offset, limit);
        None
    }

    /// Bytes of storage that the source takes up, where that is known: for a file less than its
    /// size if it has holes.
    fn allocated_size(&self) -> Option<u64> {
        None
    }
}

/// A source that knows how much of it is lost with a bad table.
pub trait Salvageable {
    /// Bytes from `offset` on that are lost if their status cannot be told or they cannot be read:
    /// those that the same entry answers for, or the same table if the table is damaged. Never 0; a hint
    /// for [going on](crate::salvage) behind the damage.
    fn lost_with(&self, offset: u64) -> u64;
}

/// Identity of a file of this machine under any name: its device and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileIdentity {
    /// The device that holds the file.
    pub device: u64,
    /// The number of the file on its device.
    pub file: u64,
}

/// Place of bytes in a file: in one piece, and all inside of the file.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Identity of the file, where the system has one.
    pub file: Option<FileIdentity>,
    /// Handle of the open file, which storage of the same kind understands: a target on the same file
    /// system may [share its blocks](crate::BlockTarget::share_from). [`FileStorage`] gives its
    /// [`std::fs::File`] for a regular file.
    ///
    /// [`FileStorage`]: crate::storage::FileStorage
    pub handle: Option<&'a (dyn Any + Send + Sync)>,
    /// Offset in the file in bytes.
    pub offset: u64,
    /// Length of the place in bytes; never 0.
    pub len: u64,
}

/// Forwards a source whole to what it [dereferences](std::ops::Deref) to.
macro_rules! forward_source {
    ($([$($generics:tt)*] $ty:ty),*) => {$(
        #[deny(clippy::missing_trait_methods)]
        impl<$($generics)*> $crate::source::BlockSource for $ty {
            fn size(&self) -> u64 { (**self).size() }
            fn read_at(&self, buf: &mut [u8], offset: u64) -> $crate::error::Result<usize> {
                (**self).read_at(buf, offset)
            }
            fn extent_at(&self, offset: u64, limit: u64) -> $crate::error::Result<$crate::extent::Extent> {
                (**self).extent_at(offset, limit)
            }
            fn block_size(&self) -> u64 { (**self).block_size() }
            fn stored(&self) -> Option<&dyn $crate::source::Stored> { (**self).stored() }
            fn packed(&self) -> Option<&dyn $crate::packed::PackedSource> { (**self).packed() }
            fn salvage(&self) -> Option<&dyn $crate::source::Salvageable> { (**self).salvage() }
        }
    )*};
}
pub(crate) use forward_source;
forward_source!([S: BlockSource + ?Sized] &S, [S: BlockSource + ?Sized] Box<S>, [S: BlockSource + ?Sized] Arc<S>);

/// Questions that every [`BlockSource`] answers by its own methods.
pub trait BlockSourceExt: BlockSource {
    /// As [`Stored::identity`].
    fn identity(&self) -> Option<FileIdentity> {
        self.stored()?.identity()
    }

    /// As [`Stored::uses_file`].
    fn uses_file(&self, file: FileIdentity) -> bool {
        self.stored().is_some_and(|stored| stored.uses_file(file))
    }

    /// As [`Stored::depth_of`].
    fn depth_of(&self, file: FileIdentity, format: FormatId) -> Option<u16> {
        self.stored()?.depth_of(file, format)
    }

    /// As [`Stored::place_of`].
    fn place_of(&self, offset: u64, limit: u64) -> Option<Place<'_>> {
        self.stored()?.place_of(offset, limit)
    }

    /// As [`Stored::allocated_size`].
    fn allocated_size(&self) -> Option<u64> {
        self.stored()?.allocated_size()
    }

    /// As [`Salvageable::lost_with`]: the rest of the block where the source does not say.
    fn lost_with(&self, offset: u64) -> u64 {
        match self.salvage() {
            Some(source) => source.lost_with(offset),
            None => {
                let unit = self.block_size().max(1);
                unit - offset % unit
            }
        }
    }

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if the source ends before `buf` is full, and those of
    /// [`read_at`](BlockSource::read_at).
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let n = self.read_at(buf, offset)?;
        if n < buf.len() {
            let len = buf.len() as u64;
            return Err(Error::out_of_range(offset, len, self.size()));
        }
        Ok(())
    }

    /// The runs of the whole source in order, each as long as the source reports it.
    fn extents(&self) -> Extents<'_, Self> {
        Extents {
            source: self,
            offset: 0,
        }
    }
}

impl<S: BlockSource + ?Sized> BlockSourceExt for S {}

/// The runs of a source in order; made by [`BlockSourceExt::extents`]. It ends after an error.
#[derive(Debug)]
pub struct Extents<'a, S: ?Sized> {
    source: &'a S,
    offset: u64,
}

impl<S: BlockSource + ?Sized> Iterator for Extents<'_, S> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        let size = self.source.size();
        if self.offset >= size {
            return None;
        }
        let next = self.source.extent_at(self.offset, size - self.offset);
        self.offset = next.as_ref().map_or(u64::MAX, Extent::end);
        Some(next)
    }
}

/// Checks the arguments of an `extent_at` and returns the longest length of a run: `limit` cut to
/// the end.
///
/// # Errors
/// [`Error::OutOfRange`] as [`BlockSource::extent_at`] promises.
pub fn check_extent(offset: u64, limit: u64, size: u64) -> Result<u64> {
    if offset >= size || limit == 0 {
        return Err(Error::out_of_range(offset, limit, size));
    }
    Ok(limit.min(size - offset))
}

/// The run of bytes that are stored where they are read: data up to the end.
///
/// # Errors
/// As [`check_extent`].
pub(crate) fn stored_extent(offset: u64, limit: u64, size: u64) -> Result<Extent> {
    Ok(Extent {
        start: offset,
        len: check_extent(offset, limit, size)?,
        kind: ExtentKind::Data,
        depth: 0,
        host_offset: Some(offset),
    })
}

/// Fills `buf` from `offset` on, with zeros past the end of `source`. Returns the count of bytes
/// from the source.
///
/// # Errors
/// [`Error::Io`] where the source returns less than its size promises, as a file that was cut short
/// since it was opened, and those of [`read_at`](BlockSource::read_at).
pub(crate) fn read_padded(source: &dyn BlockSource, buf: &mut [u8], offset: u64) -> Result<usize> {
    let n = source.read_at(buf, offset)?;
    if n < buf.len() {
        if n < readable(buf.len(), offset, source.size()) {
            return Err(ended_early(offset.saturating_add(n as u64)));
        }
        buf.get_mut(n..).unwrap_or_default().fill(0);
    }
    Ok(n)
}

/// Makes the error for bytes that were there when the source was opened.
pub(crate) fn ended_early(offset: u64) -> Error {
    Error::io(
        format!("read at byte {offset}, which was there before"),
        std::io::ErrorKind::UnexpectedEof.into(),
    )
}

/// Count of the `len` bytes at `offset` that lie before the end at `size`.
pub(crate) fn readable(len: usize, offset: u64, size: u64) -> usize {
    let left = size.saturating_sub(offset);
    usize::try_from(left).map_or(len, |left| len.min(left))
}
