//! Filesystems of Linux.

use super::{Filesystem, FilesystemKind, found};
use crate::content::bytes::Bytes;
use crate::content::text;
use crate::format_id::FormatId;
use crate::ondisk::{Order, on_disk};

const EXT: FormatId = FormatId::new("ext");
const XFS: FormatId = FormatId::new("xfs");
const BTRFS: FormatId = FormatId::new("btrfs");
const F2FS: FormatId = FormatId::new("f2fs");
const SQUASHFS: FormatId = FormatId::new("squashfs");
const EROFS: FormatId = FormatId::new("erofs");
const CRAMFS: FormatId = FormatId::new("cramfs");
const SWAP: FormatId = FormatId::new("swap");

/// The structure at `offset`, if it is there.
macro_rules! structure {
    ($ty:ty, $bytes:expr, $offset:expr) => {
        <$ty>::parse(&$bytes.bytes($offset, <$ty>::LEN)?, $offset).ok()?
    };
}
pub(super) use structure;

on_disk! {
    /// Linux, "ext4 Data Structures and Algorithms", section "The Super Block".
    pub(in crate::content) struct ExtSuperblock in EXT, "superblock", Little, 344 bytes {
        s_blocks_count_lo: u32 = 4,
        s_first_data_block: u32 = 20,
        s_log_block_size: u32 = 24,
        s_inodes_per_group: u32 = 40,
        s_magic: u16 = 56,
        s_rev_level: u32 = 76,
        s_inode_size: u16 = 88,
        s_feature_compat: u32 = 92,
        s_feature_incompat: u32 = 96,
        s_feature_ro_compat: u32 = 100,
        s_uuid: [u8; 16] = 104,
        s_volume_name: [u8; 16] = 120,
        s_desc_size: u16 = 254,
        s_blocks_count_hi: u32 = 336,
    }
}

const EXT_AT: u64 = 1024;
const COMPAT_HAS_JOURNAL: u32 = 0x4;
const INCOMPAT_JOURNAL_DEV: u32 = 0x8;
const INCOMPAT_64BIT: u32 = 0x80;
/// Features of ext3: file types, recovery, meta block groups; sparse superblocks, large files, trees.
const EXT3_INCOMPAT: u32 = 0x2 | 0x4 | 0x10;
const EXT3_RO_COMPAT: u32 = 0x1 | 0x2 | 0x4;

/// The superblock of an ext filesystem.
pub(in crate::content) fn ext_superblock(bytes: &dyn Bytes) -> Option<ExtSuperblock> {
    let block = structure!(ExtSuperblock, bytes, EXT_AT);
    // Two bytes of magic are too few, so the rest has to make sense, too.
    (block.s_magic == 0xef53
        && block.s_log_block_size <= 6
        && block.s_rev_level <= 1
        && block.s_blocks_count_lo | block.s_blocks_count_hi > 0)
        .then_some(block)
}

pub(in crate::content) fn ext(bytes: &dyn Bytes) -> Option<Filesystem> {
    let block = ext_superblock(bytes)?;
    // Revision 0 has no features.
    let is_dynamic = block.s_rev_level > 0;
    let feature = |word: u32| if is_dynamic { word } else { 0 };
    let incompat = feature(block.s_feature_incompat);
    let is_newer =
        incompat & !EXT3_INCOMPAT != 0 || feature(block.s_feature_ro_compat) & !EXT3_RO_COMPAT != 0;
    let kind = if incompat & INCOMPAT_JOURNAL_DEV != 0 {
        FilesystemKind::ExtJournal
    } else if is_newer {
        FilesystemKind::Ext4
    } else if feature(block.s_feature_compat) & COMPAT_HAS_JOURNAL != 0 {
        FilesystemKind::Ext3
    } else {
        FilesystemKind::Ext2
    };
    let high = match incompat & INCOMPAT_64BIT {
        0 => 0,
        _ => u64::from(block.s_blocks_count_hi),
    };
    let blocks = high << 32 | u64::from(block.s_blocks_count_lo);
    Some(Filesystem {
        label: text::label(&block.s_volume_name),
        uuid: text::uuid(&block.s_uuid),
        size: blocks.checked_mul(1024 << block.s_log_block_size),
        ..found(kind, "superblock magic ef53", EXT_AT + 56)
    })
}

on_disk! {
    /// XFS Algorithms & Data Structures, section "Superblocks".
    struct XfsSuperblock in XFS, "superblock", Big, 120 bytes {
        sb_magicnum: [u8; 4] = 0,
        sb_blocksize: u32 = 4,
        sb_dblocks: u64 = 8,
        sb_uuid: [u8; 16] = 32,
        sb_fname: [u8; 12] = 108,
    }
}

pub(in crate::content) fn xfs(bytes: &dyn Bytes) -> Option<Filesystem> {
    let block = structure!(XfsSuperblock, bytes, 0);
    let is_sane = block.sb_blocksize.is_power_of_two() && block.sb_dblocks > 0;
    (&block.sb_magicnum == b"XFSB" && is_sane).then(|| Filesystem {
        label: text::label(&block.sb_fname),
        uuid: text::uuid(&block.sb_uuid),
        size: block.sb_dblocks.checked_mul(block.sb_blocksize.into()),
        ..found(FilesystemKind::Xfs, "XFSB", 0)
    })
}

on_disk! {
    /// Btrfs, "On-disk Format", section "Superblock".
    struct BtrfsSuperblock in BTRFS, "superblock", Little, 555 bytes {
        fsid: [u8; 16] = 32,
        magic: [u8; 8] = 64,
        total_bytes: u64 = 112,
        num_devices: u64 = 136,
        label: [u8; 256] = 299,
    }
}

pub(in crate::content) fn btrfs(bytes: &dyn Bytes) -> Option<Filesystem> {
    const AT: u64 = 64 << 10;
    let block = structure!(BtrfsSuperblock, bytes, AT);
    (&block.magic == b"_BHRfS_M").then(|| Filesystem {
        label: text::label(&block.label),
        uuid: text::uuid(&block.fsid),
        // Of all devices together.
        size: (block.num_devices == 1).then_some(block.total_bytes),
        ..found(FilesystemKind::Btrfs, "_BHRfS_M", AT + 64)
    })
}

on_disk! {
    /// Linux, `f2fs_super_block`.
    struct F2fsSuperblock in F2FS, "superblock", Little, 1148 bytes {
        magic: u32 = 0,
        log_sectorsize: u32 = 8,
        log_blocksize: u32 = 16,
        block_count: u64 = 36,
        uuid: [u8; 16] = 108,
        volume_name: [u8; 1024] = 124,
    }
}

pub(in crate::content) fn f2fs(bytes: &dyn Bytes) -> Option<Filesystem> {
    const AT: u64 = 1024;
    let block = structure!(F2fsSuperblock, bytes, AT);
    let is_sane = (9..=16).contains(&block.log_blocksize) && block.block_count > 0;
    (block.magic == 0xf2f5_2010 && is_sane).then(|| Filesystem {
        label: text::utf16(&block.volume_name, Order::Little),
        uuid: text::uuid(&block.uuid),
        size: block.block_count.checked_mul(1 << block.log_blocksize),
        ..found(FilesystemKind::F2fs, "superblock magic f2f52010", AT)
    })
}

on_disk! {
    /// Linux, `squashfs_super_block`, version 4.
    struct SquashfsSuperblock in SQUASHFS, "superblock", Little, 96 bytes {
        s_magic: [u8; 4] = 0,
        block_size: u32 = 12,
        s_major: u16 = 28,
        bytes_used: u64 = 40,
    }
}

pub(in crate::content) fn squashfs(bytes: &dyn Bytes) -> Option<Filesystem> {
    let block = structure!(SquashfsSuperblock, bytes, 0);
    (&block.s_magic == b"hsqs").then(|| Filesystem {
        size: (block.s_major == 4).then_some(block.bytes_used),
        ..found(FilesystemKind::Squashfs, "hsqs", 0)
    })
}

on_disk! {
    /// Linux, `erofs_super_block`.
    struct ErofsSuperblock in EROFS, "superblock", Little, 80 bytes {
        magic: u32 = 0,
        blkszbits: u8 = 12,
        blocks: u32 = 36,
        uuid: [u8; 16] = 48,
        volume_name: [u8; 16] = 64,
    }
}

pub(in crate::content) fn erofs(bytes: &dyn Bytes) -> Option<Filesystem> {
    const AT: u64 = 1024;
    let block = structure!(ErofsSuperblock, bytes, AT);
    let is_sane = (9..=16).contains(&block.blkszbits);
    (block.magic == 0xe0f5_e1e2 && is_sane).then(|| Filesystem {
        label: text::label(&block.volume_name),
        uuid: text::uuid(&block.uuid),
        size: Some(u64::from(block.blocks) << block.blkszbits),
        ..found(FilesystemKind::Erofs, "superblock magic e0f5e1e2", AT)
    })
}

on_disk! {
    /// Linux, `cramfs_super`.
    struct CramfsSuperblock in CRAMFS, "superblock", Little, 64 bytes {
        magic: u32 = 0,
        size: u32 = 4,
        signature: [u8; 16] = 16,
        name: [u8; 16] = 48,
    }
}

/// At the start, or after a sector for the boot loader. The magic alone is on compressed files, too.
pub(in crate::content) fn cramfs(bytes: &dyn Bytes) -> Option<Filesystem> {
    [0, 512].into_iter().find_map(|at| {
        let block = structure!(CramfsSuperblock, bytes, at);
        let is_big = block.magic == 0x453d_cd28;
        let is_one = is_big || block.magic == 0x28cd_3d45;
        (is_one && &block.signature == b"Compressed ROMFS").then(|| Filesystem {
            label: text::label(&block.name).filter(|name| name.as_bytes() != b"Compressed"),
            size: Some(match is_big {
                true => block.size.swap_bytes().into(),
                false => block.size.into(),
            }),
            ..found(FilesystemKind::Cramfs, "Compressed ROMFS", at + 16)
        })
    })
}

on_disk! {
    /// Linux, `swap_header`, version 1, behind the kilobyte for the boot loader.
    struct SwapHeader in SWAP, "header", Little, 44 bytes {
        version: u32 = 0,
        last_page: u32 = 4,
        uuid: [u8; 16] = 12,
        volume_name: [u8; 16] = 28,
    }
}

pub(in crate::content) fn swap(bytes: &dyn Bytes) -> Option<Filesystem> {
    swap_of_pages(bytes, 4096)
}

pub(in crate::content) fn swap_of_large_pages(bytes: &dyn Bytes) -> Option<Filesystem> {
    let sizes = [8192, 16_384, 32_768, 65_536];
    sizes
        .into_iter()
        .find_map(|size| swap_of_pages(bytes, size))
}

fn swap_of_pages(bytes: &dyn Bytes, page: u64) -> Option<Filesystem> {
    const AT: u64 = 1024;
    let at = page - 10;
    let is_new = bytes.has(at, b"SWAPSPACE2");
    if !is_new {
        return bytes
            .has(at, b"SWAP-SPACE")
            .then(|| found(FilesystemKind::Swap, "SWAP-SPACE", at));
    }
    let header = structure!(SwapHeader, bytes, AT);
    let is_big = header.version == 1_u32.swap_bytes();
    let last_page = match is_big {
        true => header.last_page.swap_bytes(),
        false => header.last_page,
    };
    Some(Filesystem {
        label: text::label(&header.volume_name),
        uuid: text::uuid(&header.uuid),
        size: (u64::from(last_page) + 1).checked_mul(page),
        ..found(FilesystemKind::Swap, "SWAPSPACE2", at)
    })
}
