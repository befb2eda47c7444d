//! Regular files, with their holes, and block devices.

use std::any::Any;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::error::{Error, Result};
use crate::extent::{Extent, ExtentKind};
use crate::name::quoted_path;
use crate::source::{
    BlockSource, FileIdentity, Place, Stored, check_extent, ended_early, readable,
};
use crate::storage::system::{self, FileExt};
use crate::storage::write_zeroes_by;
use crate::target::{BlockTarget, Zeroes};

/// A regular file or a block device.
///
/// Reading and writing are positioned, so that one open file serves any number of threads. The holes
/// of a regular file are found with `SEEK_HOLE` and `SEEK_DATA` where the system has them, and are
/// runs of [`ExtentKind::Zero`]: the file system records them.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    kind: Kind,
    /// Size in bytes, as it was when the file was opened or as we grew it.
    size: AtomicU64,
    identity: Option<FileIdentity>,
    reads_as_zero: bool,
    /// The run found last, where nothing is written through this: a question about its rest needs no
    /// system call, and on a file system that walks its pages to answer, no second walk.
    last: Option<Mutex<Option<Extent>>>,
    /// True on a file system where files share blocks; set by the first question.
    shares: OnceLock<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Regular,
    BlockDevice,
}

impl FileStorage {
    /// Opens a file for reading.
    ///
    /// Only regular files and block devices are opened; a FIFO without a writer does not block.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened, [`Error::InvalidInput`] if it is a directory, a FIFO, a
    /// socket or a character device.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut options = OpenOptions::new();
        options.read(true);
        let mut storage = Self::from_open(system::without_blocking(&mut options).open(path), path)?;
        storage.last = Some(Mutex::new(None));
        Ok(storage)
    }

    /// Opens a file that exists for reading and writing. Its content stays as it is, and it is not
    /// taken to read as zero unless [`assume_zero`](Self::assume_zero) says so.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_writable(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        Self::from_open(system::without_blocking(&mut options).open(path), path)
    }

    /// Opens an unfinished file that an earlier run left, which is no symbolic link. What was not
    /// written there reads as zero.
    pub(super) fn open_unfinished(path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let file = Self::from_open(system::without_following(&mut options).open(path), path)?;
        Ok(file.assume_zero())
    }

    /// Creates a file that must not exist yet. It reads as zero.
    ///
    /// # Errors
    /// [`Error::Io`], also if the file exists.
    pub fn create_new(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path);
        let file = opened.map_err(|e| Error::io_path("create", path, e))?;
        match Self::from_file(file) {
            Ok(mut storage) => {
                storage.reads_as_zero = true;
                Ok(storage)
            }
            Err(error) => {
                // It was not there before.
                let _ = std::fs::remove_file(path);
                Err(error)
            }
        }
    }

    /// Wraps a file that is open already.
    ///
    /// # Errors
    /// As [`open`](Self::open), for what is not a regular file or a block device.
    pub fn from_file(file: File) -> Result<Self> {
        let describe = |e| Error::io("examine an open file", e);
        let metadata = file.metadata().map_err(describe)?;
        let kind = match metadata.is_file() {
            true => Kind::Regular,
            false if system::is_block_device(&metadata) => Kind::BlockDevice,
            false => {
                return Err(Error::invalid(
                    "the open file is neither a regular file nor a block device",
                ));
            }
        };
        let size = match kind {
            Kind::Regular => metadata.len(),
            Kind::BlockDevice => {
                io::Seek::seek(&mut &file, io::SeekFrom::End(0)).map_err(describe)?
            }
        };
        Ok(FileStorage {
            file,
            kind,
            size: AtomicU64::new(size),
            identity: system::identity_of(&metadata),
            reads_as_zero: false,
            last: None,
            shares: OnceLock::new(),
        })
    }

    /// [`from_file`](Self::from_file) for a file that is only read.
    pub(crate) fn from_file_to_read(file: File) -> Result<Self> {
        let mut storage = Self::from_file(file)?;
        storage.last = Some(Mutex::new(None));
        Ok(storage)
    }

    fn from_open(opened: io::Result<File>, path: &Path) -> Result<Self> {
        let file = opened.map_err(|e| Error::io_path("open", path, e))?;
        Self::from_file(file).map_err(|error| match error {
            Error::InvalidInput(_) => Error::invalid(format!(
                "{} is neither a regular file nor a block device",
                quoted_path(path)
            )),
            error => error,
        })
    }

    /// Takes the word of the caller that the file reads as zero everywhere.
    #[must_use]
    pub fn assume_zero(mut self) -> Self {
        self.reads_as_zero = true;
        self
    }

    /// Returns true for a block device.
    pub fn is_block_device(&self) -> bool {
        self.kind == Kind::BlockDevice
    }

    fn grow_to(&self, end: u64) {
        if self.kind == Kind::Regular {
            self.size.fetch_max(end, Ordering::Relaxed);
        }
    }

    /// Extends a regular file so that `end` is inside.
    fn extend_to(&self, end: u64) -> Result<()> {
        if self.kind == Kind::Regular && end > self.size() {
            self.set_size(end)
        } else {
            Ok(())
        }
    }

    fn write_zeroes_plainly(&self, offset: u64, len: u64) -> Result<()> {
        write_zeroes_by(offset, len, |zeroes, at| self.write_all_at(zeroes, at))
    }
}

impl BlockSource for FileStorage {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let want = readable(buf.len(), offset, self.size());
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..want).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset + done as u64) {
                Ok(0) => return Err(ended_early(offset + done as u64)),
                Ok(n) => done += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(format!("read at byte {offset}"), e)),
            }
        }
        Ok(done)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let limit = check_extent(offset, limit, self.size())?;
        if let Some(last) = &self.last {
            let last = *last.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(run) = last.filter(|run| (run.start..run.end()).contains(&offset)) {
                let len = (run.end() - offset).min(limit);
                return Ok(Extent {
                    start: offset,
                    len,
                    host_offset: Some(offset),
                    ..run
                });
            }
        }
        let rest = self.size() - offset;
        let (kind, len) = match self.kind {
            Kind::BlockDevice => (ExtentKind::Data, rest),
            Kind::Regular => {
                system::run_at(&self.file, offset, rest).unwrap_or((ExtentKind::Data, rest))
            }
        };
        let run = Extent {
            start: offset,
            len,
            kind,
            depth: 0,
            host_offset: Some(offset),
        };
        if let Some(last) = &self.last {
            *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(run);
        }
        Ok(run.limited(limit))
    }

    fn stored(&self) -> Option<&dyn Stored> {
        Some(self)
    }
}

impl Stored for FileStorage {
    fn allocated_size(&self) -> Option<u64> {
        let metadata = self.file.metadata().ok()?;
        Some(system::allocated_size(&metadata))
    }

    fn identity(&self) -> Option<FileIdentity> {
        self.identity
    }

    fn place_of(&self, offset: u64, limit: u64) -> Option<Place<'_>> {
        let len = self.size().checked_sub(offset)?.min(limit);
        let file = self.identity;
        let handle = (self.kind == Kind::Regular).then_some(&self.file as &(dyn Any + Send + Sync));
        (len > 0).then_some(Place {
            file,
            handle,
            offset,
            len,
        })
    }
}

impl BlockTarget for FileStorage {
    fn write_all_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            match self.file.write_at(rest, offset + done as u64) {
                Ok(0) => {
                    let full = io::Error::from(ErrorKind::WriteZero);
                    return Err(Error::io(format!("write at byte {offset}"), full));
                }
                Ok(n) => done += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(format!("write at byte {offset}"), e)),
            }
        }
        self.grow_to(offset + data.len() as u64);
        Ok(())
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, zeroes: Zeroes) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let Some(end) = offset.checked_add(len) else {
            return Err(Error::out_of_range(offset, len, self.size()));
        };
        match system::zero(&self.file, offset, len, zeroes) {
            Ok(()) => self.extend_to(end),
            Err(e) if system::is_unsupported(&e) => self.write_zeroes_plainly(offset, len),
            Err(e) => Err(Error::io(format!("zero {len} bytes at byte {offset}"), e)),
        }
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        if len == 0 || self.kind == Kind::BlockDevice {
            return Ok(());
        }
        match system::allocate(&self.file, offset, len) {
            Ok(()) => {
                self.grow_to(offset + len);
                Ok(())
            }
            Err(e) if system::is_unsupported(&e) => {
                // What reads as a hole takes up no space yet; to write it is to allocate it.
                let end = offset + len;
                self.extend_to(end)?;
                let mut at = offset;
                while at < end {
                    let run = self.extent_at(at, end - at)?;
                    if run.kind.reads_as_zero() {
                        self.write_zeroes_plainly(at, run.len)?;
                    }
                    at = run.end();
                }
                Ok(())
            }
            Err(e) => Err(Error::io(
                format!("allocate {len} bytes at byte {offset}"),
                e,
            )),
        }
    }

    fn set_size(&self, size: u64) -> Result<()> {
        if self.kind == Kind::BlockDevice {
            if size > self.size() {
                return Err(Error::out_of_range(0, size, self.size()));
            }
            return Ok(());
        }
        let resized = self.file.set_len(size);
        resized.map_err(|e| Error::io(format!("set the file's size to {size} bytes"), e))?;
        self.size.store(size, Ordering::Relaxed);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.file
            .sync_all()
            .map_err(|e| Error::io("write the file to stable storage", e))
    }

    fn write_behind(&self, offset: u64, len: u64) {
        system::write_behind(&self.file, offset, len);
    }

    fn reads_as_zero(&self) -> bool {
        self.reads_as_zero
    }

    fn concurrent_writes(&self) -> usize {
        match self.kind {
            Kind::Regular => 1,
            Kind::BlockDevice => 4,
        }
    }

    fn shares_blocks(&self) -> Option<u64> {
        let shares = || self.kind == Kind::Regular && system::shares_blocks(&self.file);
        let device = self.identity?.device;
        self.shares.get_or_init(shares).then_some(device)
    }

    fn share_from(&self, place: &Place<'_>, offset: u64) -> Result<u64> {
        let from = place.handle.and_then(|handle| handle.downcast_ref());
        let (Some(from), Some(_)) = (from, self.shares_blocks()) else {
            return Ok(0);
        };
        let mut done = 0;
        while done < place.len {
            let (start, at) = (place.offset + done, offset + done);
            match system::share(from, start, &self.file, at, place.len - done) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::StorageFull => {
                    return Err(Error::io(format!("write at byte {at}"), e));
                }
                // A plain write of the rest meets the same error, if it is one.
                Err(_) => break,
            }
        }
        self.grow_to(offset + done);
        Ok(done)
    }
}
