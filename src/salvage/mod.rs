//! Salvage: a damaged disk as far as it can be read, and a map of what was lost.
//!
//! [`Salvage`] is an image over another one that never fails for what is damaged: what cannot be read is
//! zeros, never a guess, and is recorded. Whatever works on an image works on it: a conversion above all.
//!
//! ```no_run
//! use blockform::OpenOptions;
//! use blockform::convert::ConvertOptions;
//! use blockform::salvage::Salvage;
//!
//! let image = OpenOptions::new().salvage(true).open_path("damaged.qcow2")?;
//! let salvage = Salvage::of(image);
//! ConvertOptions::to("raw").convert_to_path(&salvage, "rest.raw")?;
//! let losses = salvage.losses();
//! for loss in &losses.list {
//!     println!("{} bytes from {} on: {}", loss.length, loss.start, loss.error);
//! }
//! println!("{} bytes are lost", losses.bytes);
//! # Ok::<(), blockform::Error>(())
//! ```

mod lost;
mod map;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::extent::{Extent, ExtentKind};
use crate::format_id::FormatId;
use crate::image::{Image, ImageInfo};
use crate::limits::Limits;
use crate::name::ImageName;
use crate::reference::Reference;
use crate::source::{BlockSource, BlockSourceExt, FileIdentity, Stored, check_extent, readable};

use lost::Lost;
pub use lost::{Loss, Losses};
pub use map::SalvagedEntries;

/// The smallest piece that is lost alone, in bytes: a sector.
const SECTOR: u64 = 512;
/// The same.
const SECTOR_LEN: usize = 512;
/// Into how large pieces a read that fails is cut, in bytes, the unit of the image being the first. Disks
/// of today fail by 4096 bytes, older ones by 512.
const PIECES: [u64; 3] = [64 << 10, 4096, SECTOR];

/// An image of which all can be read: zeros where another image, or the disk that it lies on, is damaged.
///
/// A read that fails is done again in smaller pieces, units of the image first and then sectors, so that
/// one bad sector costs one sector, and one bad compressed unit one unit. In tables, too, a bad sector costs only
/// the ranges of its entries.
///
/// The bytes do not depend on the number of threads. What was found to be lost once stays lost, whatever
/// a later read would bring.
#[derive(Debug)]
pub struct Salvage {
    image: Arc<dyn Image>,
    lost: Mutex<Lost>,
    /// True after the first loss; saves the lock before.
    any: AtomicBool,
    failures: AtomicU64,
    limits: Limits,
}

impl Salvage {
    /// The image, with what is lost of it as zeros.
    pub fn of(image: impl Into<Arc<dyn Image>>) -> Self {
        Salvage {
            image: image.into(),
            lost: Mutex::default(),
            any: AtomicBool::new(false),
            failures: AtomicU64::new(0),
            limits: Limits::default(),
        }
    }

    /// Sets the limits of failures and of the memory for their record: [`Limits::failures`] and
    /// [`Limits::metadata_bytes`].
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Losses of the reads until now, in order.
    pub fn losses(&self) -> Losses {
        self.lost().told()
    }

    /// The runs of the disk, as [`Entries`](crate::extents::Entries) tells them, with what was lost until
    /// now. The file is what the caller calls `filename`.
    pub fn entries(&self, filename: ImageName) -> SalvagedEntries<'_> {
        SalvagedEntries::of(self, filename)
    }

    fn lost(&self) -> MutexGuard<'_, Lost> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a failure that can be lived with; all others are returned.
    fn count(&self, error: Error) -> Result<Error> {
        let damage = matches!(
            error,
            Error::Io { .. }
                | Error::Malformed { .. }
                | Error::Detached { .. }
                | Error::OutOfRange { .. }
        );
        if !damage {
            return Err(error);
        }
        let before = self.failures.fetch_add(1, Ordering::Relaxed);
        self.limits.check_failures(before.saturating_add(1))?;
        Ok(error)
    }

    fn lose(&self, start: u64, length: u64, error: &Error) -> Result<()> {
        self.lost().add(start, length, error, &self.limits)?;
        self.any.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Reads all of `buf`. Why it cannot be read is returned, if it is damaged.
    fn try_read(&self, buf: &mut [u8], offset: u64) -> Result<Option<Error>> {
        let error = match self.image.read_at(buf, offset) {
            Ok(n) if n == buf.len() => return Ok(None),
            Ok(_) => Error::out_of_range(offset, buf.len() as u64, self.image.size()),
            Err(error) => error,
        };
        self.count(error).map(Some)
    }

    /// Reads what can be read of a range that is not known to be lost; the rest of `buf` becomes zeros.
    fn read_what_is_left(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let Some(error) = self.try_read(buf, offset)? else {
            return Ok(());
        };
        let Some(piece) = self.next_piece(buf.len() as u64, offset, &error)? else {
            buf.fill(0);
            return self.lose(offset, buf.len() as u64, &error);
        };
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let left = usize::try_from(piece - at % piece).unwrap_or(usize::MAX);
            let len = left.min(buf.len() - done);
            self.read_what_is_left(buf.get_mut(done..done + len).unwrap_or_default(), at)?;
            done += len;
        }
        Ok(())
    }

    /// Size of the pieces in which a failed read is repeated; `None` if there are no smaller ones, or if they
    /// would fail, too.
    fn next_piece(&self, len: u64, offset: u64, error: &Error) -> Result<Option<u64>> {
        let cuts = |piece: &u64| offset / piece != (offset + len - 1) / piece;
        let unit = self.image.block_size();
        if unit >= SECTOR && cuts(&unit) {
            return Ok(Some(unit));
        }
        let Some(piece) = PIECES.into_iter().find(cuts) else {
            return Ok(None);
        };
        // What is wrong with a unit is wrong with all of it, unless its end is missing.
        let whole = unit >= SECTOR && self.image.lost_with(offset) >= len;
        if whole && !matches!(error, Error::Io { .. }) {
            let mut sector = [0; SECTOR_LEN];
            let start = readable(sector.len(), 0, SECTOR - offset % SECTOR);
            let start = sector.get_mut(..start).unwrap_or_default();
            if self.try_read(start, offset)?.is_some() {
                return Ok(None);
            }
        }
        Ok(Some(piece))
    }
}

impl BlockSource for Salvage {
    fn size(&self) -> u64 {
        self.image.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let want = readable(buf.len(), offset, self.size());
        let buf = buf.get_mut(..want).unwrap_or_default();
        if !self.any.load(Ordering::Relaxed) {
            self.read_what_is_left(buf, offset)?;
            return Ok(want);
        }
        buf.fill(0);
        let left = self.lost().left_of(offset, want as u64);
        for (start, end) in left {
            let at = |guest: u64| usize::try_from(guest - offset).unwrap_or(usize::MAX);
            let piece = buf.get_mut(at(start)..at(end)).unwrap_or_default();
            self.read_what_is_left(piece, start)?;
        }
        Ok(want)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let limit = check_extent(offset, limit, self.size())?;
        let zeros = |len| Extent::new(offset, len, ExtentKind::Zero);
        if let Some(end) = self.lost().end_at(offset) {
            return Ok(zeros(limit.min(end - offset)));
        }
        let error = match self.image.extent_at(offset, limit) {
            Ok(extent) => return Ok(extent),
            Err(error) => self.count(error)?,
        };
        let sector = SECTOR - offset % SECTOR;
        let len = self.image.lost_with(offset).max(sector);
        let len = len.min(self.size() - offset);
        self.lose(offset, len, &error)?;
        Ok(zeros(limit.min(len)))
    }

    fn block_size(&self) -> u64 {
        self.image.block_size()
    }

    fn stored(&self) -> Option<&dyn Stored> {
        Some(self)
    }
}

impl Stored for Salvage {
    fn allocated_size(&self) -> Option<u64> {
        self.image.allocated_size()
    }

    fn identity(&self) -> Option<FileIdentity> {
        self.image.identity()
    }

    fn uses_file(&self, file: FileIdentity) -> bool {
        self.image.uses_file(file)
    }

    fn depth_of(&self, file: FileIdentity, format: FormatId) -> Option<u16> {
        self.image.depth_of(file, format)
    }
}

impl Image for Salvage {
    fn format(&self) -> FormatId {
        self.image.format()
    }

    fn info(&self) -> &ImageInfo {
        self.image.info()
    }

    fn references(&self) -> &[Reference] {
        self.image.references()
    }

    fn file_of(&self, guest: u64) -> Option<&ImageName> {
        self.image.file_of(guest)
    }

    fn backing(&self) -> Option<&Arc<dyn Image>> {
        self.image.backing()
    }
}
