//! Filesystems of macOS.

use super::linux::structure;
use super::{Filesystem, FilesystemKind, found};
use crate::content::bytes::Bytes;
use crate::content::text;
use crate::format_id::FormatId;
use crate::ondisk::on_disk;

const HFS: FormatId = FormatId::new("hfs");
const HFS_PLUS: FormatId = FormatId::new("hfsplus");
const APFS: FormatId = FormatId::new("apfs");
const HEADER_AT: u64 = 1024;

on_disk! {
    /// Inside Macintosh: Files, "Master Directory Blocks".
    struct MasterDirectoryBlock in HFS, "master directory block", Big, 162 bytes {
        dr_sig_word: [u8; 2] = 0,
        dr_nm_al_blks: u16 = 18,
        dr_al_blk_siz: u32 = 20,
        dr_al_bl_st: u16 = 28,
        dr_vn: [u8; 28] = 36,
    }
}

pub(in crate::content) fn hfs(bytes: &dyn Bytes) -> Option<Filesystem> {
    let block = structure!(MasterDirectoryBlock, bytes, HEADER_AT);
    let is_sane = block.dr_al_blk_siz > 0
        && block.dr_al_blk_siz % 512 == 0
        && block.dr_nm_al_blks > 0
        && (1..=27).contains(&block.dr_vn[0]);
    let [length, name @ ..] = &block.dr_vn;
    (&block.dr_sig_word == b"BD" && is_sane).then(|| Filesystem {
        label: name.get(..usize::from(*length)).and_then(text::label),
        size: Some(u64::from(block.dr_nm_al_blks) * u64::from(block.dr_al_blk_siz)),
        ..found(FilesystemKind::Hfs, "BD", HEADER_AT)
    })
}

on_disk! {
    /// Apple Technical Note TN1150, "Volume Header".
    struct VolumeHeader in HFS_PLUS, "volume header", Big, 512 bytes {
        signature: [u8; 2] = 0,
        version: u16 = 2,
        block_size: u32 = 40,
        total_blocks: u32 = 44,
        finder_info_id: u64 = 104,
    }
}

pub(in crate::content) fn hfs_plus(bytes: &dyn Bytes) -> Option<Filesystem> {
    let header = structure!(VolumeHeader, bytes, HEADER_AT);
    let what = match (&header.signature, header.version) {
        (b"H+", 4) => "H+",
        (b"HX", 5) => "HX",
        _ => return None,
    };
    let id = header.finder_info_id;
    Some(Filesystem {
        uuid: (id != 0).then(|| format!("{id:016X}")),
        size: Some(u64::from(header.block_size) * u64::from(header.total_blocks)),
        ..found(FilesystemKind::HfsPlus, what, HEADER_AT)
    })
}

on_disk! {
    /// Apple File System Reference, `nx_superblock_t`.
    struct ContainerSuperblock in APFS, "container superblock", Little, 88 bytes {
        nx_magic: [u8; 4] = 32,
        nx_block_size: u32 = 36,
        nx_block_count: u64 = 40,
        nx_uuid: [u8; 16] = 72,
    }
}

pub(in crate::content) fn apfs(bytes: &dyn Bytes) -> Option<Filesystem> {
    let block = structure!(ContainerSuperblock, bytes, 0);
    let is_sane = block.nx_block_size.is_power_of_two() && block.nx_block_size >= 4096;
    (&block.nx_magic == b"NXSB" && is_sane).then(|| Filesystem {
        uuid: text::uuid(&block.nx_uuid),
        size: block.nx_block_count.checked_mul(block.nx_block_size.into()),
        ..found(FilesystemKind::Apfs, "NXSB", 32)
    })
}
