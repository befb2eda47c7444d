//! The filesystem of a disk or a partition, recognised from bytes that are asked for by their place.
//! Detection runs the same functions over its window, and finds as much as the window shows.

use crate::content::bytes::Bytes;
use crate::content::filesystem::{Filesystem, apple, linux, stacked, windows};
use crate::content::{iso, udf};

type Recogniser = fn(&dyn Bytes) -> Option<Filesystem>;

/// Recognised by the first 4 KiB.
const AT_THE_START: [Recogniser; 18] = [
    linux::ext,
    linux::xfs,
    linux::f2fs,
    windows::ntfs,
    windows::refs,
    windows::exfat,
    windows::bitlocker,
    windows::fat,
    apple::hfs,
    apple::hfs_plus,
    apple::apfs,
    linux::squashfs,
    linux::erofs,
    linux::cramfs,
    linux::swap,
    stacked::luks,
    stacked::lvm2,
    stacked::raid_at_the_start,
];

/// Recognised further in, or at the end.
const FURTHER_IN: [Recogniser; 6] = [
    stacked::raid_behind_the_start,
    linux::swap_of_large_pages,
    stacked::zfs,
    iso::recognise,
    udf::recognise,
    linux::btrfs,
];

/// Every filesystem that the bytes show.
pub(crate) fn recognise(bytes: &dyn Bytes) -> Vec<Filesystem> {
    let all = AT_THE_START.iter().chain(&FURTHER_IN);
    let mut found: Vec<Filesystem> = all.filter_map(|recognise| recognise(bytes)).collect();
    found.extend(stacked::raid_at_the_end(bytes));
    found
}

/// The filesystem of a partition. A RAID at the end of its members comes before the filesystem that shows
/// at their start, and a signature at the start makes it needless to look further in.
pub(super) fn of_partition(bytes: &dyn Bytes) -> Option<Filesystem> {
    let first = |list: &[Recogniser]| list.iter().find_map(|recognise| recognise(bytes));
    stacked::raid_at_the_end(bytes)
        .or_else(|| first(&AT_THE_START))
        .or_else(|| first(&FURTHER_IN))
}
