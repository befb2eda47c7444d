//! Filesystems, and layers that are stacked beneath them. One function recognises each.

pub(super) mod apple;
pub(super) mod linux;
pub(super) mod stacked;
pub(super) mod windows;

use crate::format_id::FormatId;
use crate::image::Evidence;
use crate::name::ImageName;

/// A filesystem, or a layer that holds some: swap, a physical volume, encrypted data.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Filesystem {
    /// Kind.
    pub kind: FilesystemKind,
    /// By what it was recognised, and where, in bytes from the start of the disk or the partition.
    pub evidence: Evidence,
    /// Its label, where the superblock has one.
    pub label: Option<ImageName>,
    /// Its UUID or serial number, as its own tools write it.
    pub uuid: Option<String>,
    /// Size in bytes by its superblock.
    pub size: Option<u64>,
}

macro_rules! kinds {
    ($( $(#[$meta:meta])* $kind:ident = $name:literal in $family:literal, )*) => {
        /// Kind of a filesystem.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum FilesystemKind {
            $( $(#[$meta])* $kind, )*
        }

        impl FilesystemKind {
            /// Its name, such as `ext4`.
            pub fn as_str(self) -> &'static str {
                match self {
                    $( FilesystemKind::$kind => $name, )*
                }
            }

            /// The name under which detection knows it and its kin.
            pub(crate) fn family(self) -> FormatId {
                match self {
                    $( FilesystemKind::$kind => FormatId::new($family), )*
                }
            }
        }
    };
}

kinds! {
    /// ext2: without a journal and without anything that is younger.
    Ext2 = "ext2" in "ext",
    /// ext3: ext2 with a journal.
    Ext3 = "ext3" in "ext",
    /// ext4, with or without a journal.
    Ext4 = "ext4" in "ext",
    /// The journal of another ext3 or ext4.
    ExtJournal = "ext journal" in "ext",
    /// XFS.
    Xfs = "xfs" in "xfs",
    /// Btrfs.
    Btrfs = "btrfs" in "btrfs",
    /// F2FS.
    F2fs = "f2fs" in "f2fs",
    /// NTFS.
    Ntfs = "ntfs" in "ntfs",
    /// ReFS.
    Refs = "refs" in "refs",
    /// FAT with entries of 12 bits.
    Fat12 = "fat12" in "fat",
    /// FAT with entries of 16 bits.
    Fat16 = "fat16" in "fat",
    /// FAT with entries of 32 bits.
    Fat32 = "fat32" in "fat",
    /// exFAT.
    ExFat = "exfat" in "exfat",
    /// HFS.
    Hfs = "hfs" in "hfs",
    /// HFS+, and HFSX.
    HfsPlus = "hfsplus" in "hfsplus",
    /// APFS, a container with its volumes.
    Apfs = "apfs" in "apfs",
    /// SquashFS.
    Squashfs = "squashfs" in "squashfs",
    /// EROFS.
    Erofs = "erofs" in "erofs",
    /// Cramfs.
    Cramfs = "cramfs" in "cramfs",
    /// ISO 9660.
    Iso9660 = "iso9660" in "iso",
    /// UDF.
    Udf = "udf" in "udf",
    /// Swap space of Linux.
    Swap = "swap" in "swap",
    /// A physical volume of LVM.
    Lvm2 = "lvm2" in "lvm2",
    /// A member of a RAID of Linux.
    MdRaid = "mdraid" in "mdraid",
    /// A member of a ZFS pool.
    Zfs = "zfs" in "zfs",
    /// Data encrypted by LUKS, version 1.
    Luks1 = "luks1" in "luks",
    /// Data encrypted by LUKS, version 2.
    Luks2 = "luks2" in "luks",
    /// Data encrypted by BitLocker.
    BitLocker = "bitlocker" in "bitlocker",
}

impl FilesystemKind {
    /// Returns whether it is one of ext2, ext3 and ext4.
    pub fn is_ext(self) -> bool {
        use FilesystemKind::{Ext2, Ext3, Ext4};
        matches!(self, Ext2 | Ext3 | Ext4)
    }

    /// Returns whether it is FAT of any width.
    pub fn is_fat(self) -> bool {
        use FilesystemKind::{Fat12, Fat16, Fat32};
        matches!(self, Fat12 | Fat16 | Fat32)
    }
}

/// A filesystem of which only the kind is known.
fn found(kind: FilesystemKind, what: &'static str, offset: u64) -> Filesystem {
    Filesystem::new(kind, what, offset)
}

impl Filesystem {
    /// Warning that it takes more than the `available` bytes. The readers of ISO 9660 and UDF give a more
    /// precise one.
    pub(in crate::content) fn cut_short(&self, available: u64) -> Option<String> {
        use FilesystemKind::{Iso9660, Udf};
        let size = self.size.filter(|size| *size > available)?;
        (!matches!(self.kind, Iso9660 | Udf)).then(|| {
            format!(
                "{} of {size} bytes and only {available} of them: it is cut short",
                self.kind.as_str()
            )
        })
    }

    pub(in crate::content) fn new(kind: FilesystemKind, what: &'static str, offset: u64) -> Self {
        Filesystem {
            kind,
            evidence: Evidence { what, offset },
            label: None,
            uuid: None,
            size: None,
        }
    }
}
