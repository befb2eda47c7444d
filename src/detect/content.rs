//! What is a disk rather than wraps one: partition tables, filesystems, encryption.
//!
//! A file that shows one of these is a raw disk, with that content. The bytes that a guest wrote
//! decide nothing by it: they are read as they are either way.

use crate::detect::signature::{Place::Start, Signature, matches as signatures, signature};
use crate::format_id::FormatId;
use crate::image::{Evidence, Probe};

const CONTENT: &[Signature] = &[
    signature("gpt", Start(512), b"EFI PART", "EFI PART"),
    signature("gpt", Start(4096), b"EFI PART", "EFI PART"),
    signature("luks", Start(0), b"LUKS\xba\xbe", "LUKS"),
    signature("iso", Start(0x8001), b"CD001", "CD001"),
    signature("udf", Start(0x8001), b"BEA01", "BEA01"),
    signature("xfs", Start(0), b"XFSB", "XFSB"),
    signature("ntfs", Start(3), b"NTFS    ", "NTFS"),
    signature("exfat", Start(3), b"EXFAT   ", "EXFAT"),
    signature("fat", Start(54), b"FAT12   ", "FAT12"),
    signature("fat", Start(54), b"FAT16   ", "FAT16"),
    signature("fat", Start(82), b"FAT32   ", "FAT32"),
    signature("bitlocker", Start(3), b"-FVE-FS-", "-FVE-FS-"),
    signature("hfsplus", Start(1024), b"H+\0\x04", "H+"),
    signature("hfsplus", Start(1024), b"HX\0\x05", "HX"),
    signature("squashfs", Start(0), b"hsqs", "hsqs"),
    signature(
        "erofs",
        Start(1024),
        b"\xe2\xe1\xf5\xe0",
        "superblock magic e0f5e1e2",
    ),
    signature("swap", Start(4086), b"SWAPSPACE2", "SWAPSPACE2"),
    signature("lvm2", Start(512), b"LABELONE", "LABELONE"),
    signature("lvm2", Start(0), b"LABELONE", "LABELONE"),
];

/// What the disk is, as far as the file shows it.
pub(super) fn matches(window: &Probe<'_>) -> Vec<(FormatId, Evidence)> {
    let mut found = signatures(CONTENT, window);
    if has_mbr(window) {
        let what = "a partition table";
        found.push((FormatId::new("mbr"), Evidence { what, offset: 446 }));
    }
    if has_ext(window) {
        let what = "superblock magic ef53";
        found.push((FormatId::new("ext"), Evidence { what, offset: 1080 }));
    }
    found
}

/// Whether there is a superblock of ext2, ext3 or ext4: two bytes of magic are too few, so the block
/// size and the revision have to make sense, too.
fn has_ext(window: &Probe<'_>) -> bool {
    let number = |at| {
        window
            .at(at, 4)
            .and_then(|b| b.first_chunk())
            .map(|b| u32::from_le_bytes(*b))
    };
    window.has(1080, b"\x53\xef")
        && number(1024 + 24).is_some_and(|log_block_size| log_block_size <= 6)
        && number(1024 + 76).is_some_and(|revision| revision <= 1)
        && number(1024 + 4).is_some_and(|blocks| blocks > 0)
}

/// Whether the first sector is a master boot record with a partition: the boot signature alone is on
/// many a file that is none.
fn has_mbr(window: &Probe<'_>) -> bool {
    let table = window.at(446, 64).filter(|_| window.has(510, b"\x55\xaa"));
    let mut entries = table.unwrap_or_default().chunks_exact(16);
    let flags_are_known = entries
        .clone()
        .all(|entry| matches!(entry.first(), Some(0 | 0x80)));
    let used = |entry: &[u8]| {
        let sectors = entry.get(12..16).unwrap_or_default();
        entry.get(4).is_some_and(|kind| *kind != 0) && sectors.iter().any(|byte| *byte != 0)
    };
    flags_are_known && entries.any(used)
}
