//! All that the storage asks of the system beyond `std`.
//!
//! Linux is tested, other systems are not. The code for Windows is not compiled here.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::path::Path;

use crate::error::{Error, Result};
use crate::extent::ExtentKind;
use crate::source::FileIdentity;
use crate::target::Zeroes;

#[cfg(unix)]
pub(super) use std::os::unix::fs::FileExt;

#[cfg(windows)]
pub(super) trait FileExt {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;
    fn write_at(&self, data: &[u8], at: u64) -> io::Result<usize>;
}

#[cfg(windows)]
impl FileExt for File {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(self, buf, at)
    }

    fn write_at(&self, data: &[u8], at: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_write(self, data, at)
    }
}

/// Makes opening a FIFO return at once; reading regular files and block devices is as without it.
pub(crate) fn without_blocking(options: &mut OpenOptions) -> &mut OpenOptions {
    with_flags(options, false)
}

/// Makes opening a symbolic link fail as well.
pub(crate) fn without_following(options: &mut OpenOptions) -> &mut OpenOptions {
    with_flags(options, true)
}

#[cfg(unix)]
fn with_flags(options: &mut OpenOptions, no_follow: bool) -> &mut OpenOptions {
    use rustix::fs::OFlags;
    use std::os::unix::fs::OpenOptionsExt;
    let mut flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    flags.set(OFlags::NOFOLLOW, no_follow);
    options.custom_flags(i32::try_from(flags.bits()).unwrap_or(0))
}

#[cfg(not(unix))]
fn with_flags(options: &mut OpenOptions, _: bool) -> &mut OpenOptions {
    options
}

#[cfg(unix)]
pub(crate) fn is_block_device(metadata: &Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_block_device(&metadata.file_type())
}

#[cfg(not(unix))]
pub(crate) fn is_block_device(_: &Metadata) -> bool {
    false
}

#[cfg(unix)]
pub(crate) fn identity_of(metadata: &Metadata) -> Option<FileIdentity> {
    use std::os::unix::fs::MetadataExt;
    Some(FileIdentity {
        device: metadata.dev(),
        file: metadata.ino(),
    })
}

#[cfg(not(unix))]
pub(crate) fn identity_of(_: &Metadata) -> Option<FileIdentity> {
    None
}

#[cfg(unix)]
pub(super) fn allocated_size(metadata: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(metadata).saturating_mul(512)
}

#[cfg(not(unix))]
pub(super) fn allocated_size(metadata: &Metadata) -> u64 {
    metadata.len()
}

/// Brings the names in the folder of a file to stable storage.
#[cfg(unix)]
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|e| Error::io_path("sync the folder", folder, e))
}

#[cfg(not(unix))]
pub(crate) fn sync_folder(_: &Path) -> Result<()> {
    Ok(())
}

/// Locks a file for this process alone. Returns false if another one holds the lock.
#[cfg(unix)]
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    use rustix::fs::{FlockOperation, flock};
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(not(unix))]
pub(crate) fn try_lock(_: &File) -> io::Result<bool> {
    Ok(true)
}

/// The status of the run at `offset`, of which `rest` bytes are left, and its length; `None` where the
/// file system cannot tell.
#[cfg(any(
    target_os = "linux",
    target_os = "android",
    target_os = "macos",
    target_os = "freebsd"
))]
pub(super) fn run_at(file: &File, offset: u64, rest: u64) -> Option<(ExtentKind, u64)> {
    use rustix::fs::{SeekFrom, seek};
    match seek(file, SeekFrom::Data(offset)) {
        Ok(data) if data > offset => Some((ExtentKind::Zero, (data - offset).min(rest))),
        Ok(_) => {
            let hole = seek(file, SeekFrom::Hole(offset)).ok()?;
            // A hole where data was just now: the file changes under us. Read it.
            let len = hole.checked_sub(offset).filter(|len| *len > 0)?;
            Some((ExtentKind::Data, len.min(rest)))
        }
        Err(rustix::io::Errno::NXIO) => Some((ExtentKind::Zero, rest)),
        Err(_) => None,
    }
}

#[cfg(not(any(
    target_os = "linux",
    target_os = "android",
    target_os = "macos",
    target_os = "freebsd"
)))]
pub(super) fn run_at(_: &File, _: u64, _: u64) -> Option<(ExtentKind, u64)> {
    None
}

/// Returns true if the file system does not know the operation, so that a plain write may serve.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    #[cfg(unix)]
    {
        use rustix::io::Errno;
        let errno = Errno::from_io_error(error);
        let unknown = [Errno::OPNOTSUPP, Errno::NOSYS, Errno::NODEV, Errno::INVAL];
        if errno.is_some_and(|errno| unknown.contains(&errno)) {
            return true;
        }
    }
    error.kind() == io::ErrorKind::Unsupported
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod space {
    use super::{File, Zeroes, io};
    use rustix::fs::{Advice, FallocateFlags, copy_file_range, fadvise, fallocate, fstatfs};
    use rustix::io::retry_on_intr;

    /// Makes a range read as zero.
    pub(in super::super) fn zero(file: &File, at: u64, len: u64, how: Zeroes) -> io::Result<()> {
        let flags = match how {
            Zeroes::Discard => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Zeroes::Keep => FallocateFlags::ZERO_RANGE,
        };
        Ok(retry_on_intr(|| fallocate(file, flags, at, len))?)
    }

    /// Allocates space for a range.
    pub(in super::super) fn allocate(file: &File, at: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::empty();
        Ok(retry_on_intr(|| fallocate(file, flags, at, len))?)
    }

    /// Begins to bring a range to stable storage. What is not written yet stays in memory.
    pub(in super::super) fn write_behind(file: &File, at: u64, len: u64) {
        if let Some(len) = std::num::NonZeroU64::new(len) {
            let _ = fadvise(file, at, Some(len), Advice::DontNeed);
        }
    }

    /// Returns true if files on the file system of this one can share blocks, so that to copy is not to
    /// write. A file system that only might (XFS made without it) copies inside the kernel, which is as
    /// good as copying by hand; on all others copying by hand is faster.
    pub(in super::super) fn shares_blocks(file: &File) -> bool {
        // The magic numbers of statfs(2).
        const BTRFS: u64 = 0x9123_683e;
        const XFS: u64 = 0x5846_5342;
        const BCACHEFS: u64 = 0xca45_1a4e;
        const OCFS2: u64 = 0x7461_636f;
        let kind = fstatfs(file).map_or(0, |found| found.f_type);
        // The type of the number is another on every processor.
        let kind = u64::try_from(kind).unwrap_or(0) & 0xffff_ffff;
        [BTRFS, XFS, BCACHEFS, OCFS2].contains(&kind)
    }

    /// Copies bytes from file to file by sharing their blocks where they are whole. Returns the number,
    /// which may be less than `len`.
    pub(in super::super) fn share(
        from: &File,
        mut start: u64,
        to: &File,
        mut at: u64,
        len: u64,
    ) -> io::Result<u64> {
        // More than this in one call the kernel does not take.
        let len = usize::try_from(len.min(1 << 30)).unwrap_or(1 << 30);
        Ok(copy_file_range(from, Some(&mut start), to, Some(&mut at), len)? as u64)
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod space {
    use super::{File, Zeroes, io};

    pub(in super::super) fn zero(_: &File, _: u64, _: u64, _: Zeroes) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(in super::super) fn allocate(_: &File, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(in super::super) fn write_behind(_: &File, _: u64, _: u64) {}

    pub(in super::super) fn shares_blocks(_: &File) -> bool {
        false
    }

    pub(in super::super) fn share(_: &File, _: u64, _: &File, _: u64, _: u64) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

pub(super) use space::{allocate, share, shares_blocks, write_behind, zero};
