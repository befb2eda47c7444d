//! Files that share blocks, on the file systems that have it.

use std::fs::File;
use std::io;

/// Whether files on the file system of this one can share blocks, so that to copy is not to write. A
/// file system that only might (XFS made without it) copies inside the kernel, which is as good as
/// copying by hand; on all others copying by hand is faster.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn is_known(file: &File) -> bool {
    // The magic numbers of statfs(2).
    const BTRFS: u64 = 0x9123_683e;
    const XFS: u64 = 0x5846_5342;
    const BCACHEFS: u64 = 0xca45_1a4e;
    const OCFS2: u64 = 0x7461_636f;
    let kind = rustix::fs::fstatfs(file).map_or(0, |found| found.f_type);
    // The type of the number is another on every processor.
    let kind = u64::try_from(kind).unwrap_or(0) & 0xffff_ffff;
    [BTRFS, XFS, BCACHEFS, OCFS2].contains(&kind)
}

/// Copies bytes from file to file by sharing their blocks where they are whole. Returns how many, which
/// may be fewer than `len`.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn share(from: &File, start: u64, to: &File, at: u64, len: u64) -> io::Result<u64> {
    // More than this in one call the kernel does not take.
    let len = usize::try_from(len.min(1 << 30)).unwrap_or(1 << 30);
    let (mut start, mut at) = (start, at);
    let done = rustix::fs::copy_file_range(from, Some(&mut start), to, Some(&mut at), len)?;
    Ok(done as u64)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn is_known(_: &File) -> bool {
    false
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn share(_: &File, _: u64, _: &File, _: u64, _: u64) -> io::Result<u64> {
    Err(io::ErrorKind::Unsupported.into())
}
