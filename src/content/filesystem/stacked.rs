//! Layers below filesystems: encryption, volumes, arrays and pools.

use super::linux::structure;
use super::{Filesystem, FilesystemKind, found};
use crate::content::bytes::Bytes;
use crate::content::text;
use crate::format_id::FormatId;
use crate::name::ImageName;
use crate::ondisk::{be, luks, on_disk};

const LVM2: FormatId = FormatId::new("lvm2");
const MD: FormatId = FormatId::new("mdraid");

pub(in crate::content) fn luks(bytes: &dyn Bytes) -> Option<Filesystem> {
    let volume = luks::Volume::of(&bytes.bytes(0, luks::HEADER_LEN)?)?;
    let kind = match volume.version {
        1 => FilesystemKind::Luks1,
        _ => FilesystemKind::Luks2,
    };
    let uuid = volume.uuid.as_str();
    let is_uuid = |text: &&str| {
        let mut bytes = text.bytes();
        !text.is_empty() && bytes.all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
    };
    Some(Filesystem {
        label: volume.label,
        uuid: uuid.filter(is_uuid).map(str::to_owned),
        ..found(kind, "LUKS", 0)
    })
}

on_disk! {
    /// LVM2, `label_header` with the `pv_header` behind it.
    struct Label in LVM2, "label", Little, 72 bytes {
        id: [u8; 8] = 0,
        sector_xl: u64 = 8,
        offset_xl: u32 = 20,
        kind: [u8; 8] = 24,
        pv_uuid: [u8; 32] = 32,
        device_size_xl: u64 = 64,
    }
}

/// A label in one of the first four sectors.
pub(in crate::content) fn lvm2(bytes: &dyn Bytes) -> Option<Filesystem> {
    (0..4).find_map(|sector| {
        let at = sector * 512;
        let label = structure!(Label, bytes, at);
        if &label.id != b"LABELONE" || label.sector_xl != sector {
            return None;
        }
        let has_header = label.offset_xl == 32 && label.pv_uuid.is_ascii();
        let uuid = std::str::from_utf8(&label.pv_uuid).ok();
        Some(Filesystem {
            uuid: uuid.filter(|_| has_header).and_then(grouped),
            size: has_header.then_some(label.device_size_xl),
            ..found(FilesystemKind::Lvm2, "LABELONE", at)
        })
    })
}

/// An identifier of LVM with its dashes.
fn grouped(text: &str) -> Option<String> {
    if !text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if matches!(i, 6 | 10 | 14 | 18 | 22 | 26) {
            out.push('-');
        }
        out.push(c);
    }
    Some(out)
}

on_disk! {
    /// Linux, `mdp_superblock_1`.
    struct Superblock1 in MD, "superblock 1", Little, 256 bytes {
        magic: u32 = 0,
        major_version: u32 = 4,
        set_uuid: [u8; 16] = 16,
        set_name: [u8; 32] = 32,
        data_size: u64 = 136,
        super_offset: u64 = 144,
    }
}

on_disk! {
    /// Linux, `mdp_superblock_s`, version 0.90.
    struct Superblock0 in MD, "superblock 0.90", Little, 64 bytes {
        md_magic: u32 = 0,
        major_version: u32 = 4,
        minor_version: u32 = 8,
        set_uuid0: u32 = 20,
        set_uuid1: u32 = 52,
        set_uuid2: u32 = 56,
        set_uuid3: u32 = 60,
    }
}

const MD_MAGIC: u32 = 0xa92b_4efc;

fn raid(bytes: &dyn Bytes, at: u64) -> Option<Filesystem> {
    let block = structure!(Superblock1, bytes, at);
    let is_here = block.super_offset.checked_mul(512) == Some(at);
    (block.magic == MD_MAGIC && block.major_version == 1 && is_here).then(|| Filesystem {
        label: text::label(&block.set_name),
        uuid: text::uuid(&block.set_uuid),
        size: block.data_size.checked_mul(512),
        ..found(FilesystemKind::MdRaid, "superblock magic a92b4efc", at)
    })
}

/// Version 1.1.
pub(in crate::content) fn raid_at_the_start(bytes: &dyn Bytes) -> Option<Filesystem> {
    raid(bytes, 0)
}

/// Version 1.2.
pub(in crate::content) fn raid_behind_the_start(bytes: &dyn Bytes) -> Option<Filesystem> {
    raid(bytes, 4096)
}

/// Versions 1.0, between 8 and 12 KiB before the end, and 0.90, between 64 and 128 KiB before it.
pub(in crate::content) fn raid_at_the_end(bytes: &dyn Bytes) -> Option<Filesystem> {
    let near = (bytes.size() & !511).checked_sub(8 << 10)? & !4095;
    if let Some(found) = raid(bytes, near) {
        return Some(found);
    }
    let at = (bytes.size() & !0xffff).checked_sub(64 << 10)?;
    let block = structure!(Superblock0, bytes, at);
    (block.md_magic == MD_MAGIC && block.major_version == 0 && block.minor_version >= 90).then(
        || {
            let parts = [
                block.set_uuid0,
                block.set_uuid1,
                block.set_uuid2,
                block.set_uuid3,
            ];
            let mut id = [0; 16];
            for (to, part) in id.chunks_exact_mut(4).zip(parts) {
                to.copy_from_slice(&part.to_be_bytes());
            }
            Filesystem {
                uuid: text::uuid(&id),
                ..found(FilesystemKind::MdRaid, "superblock magic a92b4efc", at)
            }
        },
    )
}

/// The list of names and values in the first label of a member, packed as XDR (RFC 4506).
pub(in crate::content) fn zfs(bytes: &dyn Bytes) -> Option<Filesystem> {
    const AT: u64 = 16 << 10;
    let raw = bytes.bytes(AT, 4096)?;
    // An nvlist in XDR whose first pair is called "version".
    let is_list = raw.first() == Some(&1) && raw.get(4..8) == Some(&[0; 4]);
    if !is_list || raw.get(20..31) != Some(b"\0\0\0\x07version") {
        return None;
    }
    let mut filesystem = found(FilesystemKind::Zfs, "label of a ZFS pool", AT);
    let mut rest = raw.get(12..)?;
    // Each pair has at least its own lengths and that of its name.
    while let (Some(len), Some(name_len)) = (be::<u32>(rest, 0), be::<u32>(rest, 8)) {
        let (len, name_len) = (usize::try_from(len).ok()?, usize::try_from(name_len).ok()?);
        let Some(pair) = rest.get(..len).filter(|_| len >= 12 && name_len < len) else {
            break;
        };
        let name = pair.get(12..).and_then(|rest| rest.get(..name_len));
        // Behind the name: its type, how many values, and the values.
        let value = pair.get(12 + name_len.next_multiple_of(4) + 8..);
        match (name, value) {
            (Some(b"name"), Some(value)) => {
                let len = be::<u32>(value, 0).and_then(|len| usize::try_from(len).ok());
                let text = len.and_then(|len| value.get(4..)?.get(..len));
                filesystem.label = text.map(ImageName::from);
            }
            (Some(b"pool_guid"), Some(value)) => {
                let id = be::<u64>(value, 0);
                filesystem.uuid = id.map(|id| id.to_string());
            }
            _ => {}
        }
        rest = rest.get(len..)?;
    }
    Some(filesystem)
}
