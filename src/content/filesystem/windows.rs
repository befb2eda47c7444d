//! Filesystems of Windows.

use super::linux::structure;
use super::{Filesystem, FilesystemKind, found};
use crate::content::bytes::Bytes;
use crate::content::fat::{Bpb, Fat, Width};
use crate::content::text;
use crate::format_id::FormatId;
use crate::name::ImageName;
use crate::ondisk::{Order, le, on_disk};

const NTFS: FormatId = FormatId::new("ntfs");
const EXFAT: FormatId = FormatId::new("exfat");

pub(in crate::content) fn fat(bytes: &dyn Bytes) -> Option<Filesystem> {
    let bpb = Bpb::of(bytes)?;
    let (kind, what) = match bpb.width {
        Width::Fat12 => (FilesystemKind::Fat12, "parameters of FAT12"),
        Width::Fat16 => (FilesystemKind::Fat16, "parameters of FAT16"),
        Width::Fat32 => (FilesystemKind::Fat32, "parameters of FAT32"),
    };
    let of_root = Fat::open(bytes).and_then(|fat| fat.label());
    Some(Filesystem {
        label: of_root.or(bpb.label),
        uuid: bpb.volume_id.map(text::serial),
        size: Some(bpb.size),
        ..found(kind, what, 11)
    })
}

on_disk! {
    /// The boot sector of NTFS; libfsntfs, "New Technologies File System (NTFS)", section 3.
    struct NtfsBootSector in NTFS, "boot sector", Little, 512 bytes {
        signature: [u8; 8] = 3,
        bytes_per_sector: u16 = 11,
        sectors_per_cluster: u8 = 13,
        total_sectors: u64 = 40,
        mft_cluster: u64 = 48,
        mft_entry_size: u8 = 64,
        serial_number: u64 = 72,
    }
}

pub(in crate::content) fn ntfs(bytes: &dyn Bytes) -> Option<Filesystem> {
    let boot = structure!(NtfsBootSector, bytes, 0);
    if &boot.signature != b"NTFS    " {
        return None;
    }
    // One sector more than it counts is at the end, for the copy of this one.
    let sectors = boot.total_sectors.checked_add(1);
    Some(Filesystem {
        label: ntfs_label(bytes, &boot),
        uuid: Some(format!("{:016X}", boot.serial_number)),
        size: sectors.and_then(|n| n.checked_mul(boot.bytes_per_sector.into())),
        ..found(FilesystemKind::Ntfs, "NTFS", 3)
    })
}

/// The length of something that is counted in units, or is a power of two if the count is negative.
fn power_or(count: u8, unit: u64) -> Option<u64> {
    match count {
        0..=0x7f => u64::from(count).checked_mul(unit),
        negative => 1_u64.checked_shl((256 - u32::from(negative)).min(64)),
    }
}

/// The name in the attribute `$VOLUME_NAME` of the fourth entry of the MFT, `$Volume`.
fn ntfs_label(bytes: &dyn Bytes, boot: &NtfsBootSector) -> Option<ImageName> {
    const VOLUME: u64 = 3;
    const VOLUME_NAME: u32 = 0x60;
    let cluster = power_or(boot.sectors_per_cluster, boot.bytes_per_sector.into())?;
    let len = power_or(boot.mft_entry_size, cluster)?;
    if !(512..=4096).contains(&len) {
        return None;
    }
    let mft = boot.mft_cluster.checked_mul(cluster)?;
    let at = mft.checked_add(VOLUME * len)?;
    let mut entry = bytes.bytes(at, usize::try_from(len).ok()?)?;
    if !entry.starts_with(b"FILE") {
        return None;
    }
    apply_fixups(&mut entry)?;
    let mut at = usize::from(le::<u16>(&entry, 20)?);
    loop {
        let attribute = entry.get(at..)?;
        let (kind, length) = (le::<u32>(attribute, 0)?, le::<u32>(attribute, 4)?);
        if kind == VOLUME_NAME {
            let size = usize::try_from(le::<u32>(attribute, 16)?).ok()?;
            let start = usize::from(le::<u16>(attribute, 20)?);
            return text::utf16(attribute.get(start..)?.get(..size)?, Order::Little);
        }
        if kind > VOLUME_NAME || length < 8 {
            return None;
        }
        at = at.checked_add(usize::try_from(length).ok()?)?;
    }
}

/// Puts the last two bytes of each sector back, which the array of fix-ups keeps.
fn apply_fixups(entry: &mut [u8]) -> Option<()> {
    let start = usize::from(le::<u16>(entry, 4)?);
    let count = usize::from(le::<u16>(entry, 6)?).checked_sub(1)?;
    let saved = entry.get(start + 2..)?.get(..count * 2)?.to_vec();
    for (sector, kept) in entry.chunks_exact_mut(512).zip(saved.chunks_exact(2)) {
        sector.get_mut(510..)?.copy_from_slice(kept);
    }
    Some(())
}

pub(in crate::content) fn refs(bytes: &dyn Bytes) -> Option<Filesystem> {
    (bytes.has(3, b"ReFS\0\0\0\0") && bytes.has(16, b"FSRS"))
        .then(|| found(FilesystemKind::Refs, "ReFS", 3))
}

on_disk! {
    /// Microsoft exFAT Specification, section 3.1, "Main and Backup Boot Sector".
    struct ExFatBootSector in EXFAT, "boot sector", Little, 512 bytes {
        file_system_name: [u8; 8] = 3,
        volume_length: u64 = 72,
        cluster_heap_offset: u32 = 88,
        cluster_count: u32 = 92,
        first_cluster_of_root_directory: u32 = 96,
        volume_serial_number: u32 = 100,
        bytes_per_sector_shift: u8 = 108,
        sectors_per_cluster_shift: u8 = 109,
    }
}

pub(in crate::content) fn exfat(bytes: &dyn Bytes) -> Option<Filesystem> {
    let boot = structure!(ExFatBootSector, bytes, 0);
    let shift = boot.bytes_per_sector_shift;
    if &boot.file_system_name != b"EXFAT   " || !(9..=12).contains(&shift) {
        return None;
    }
    Some(Filesystem {
        label: exfat_label(bytes, &boot),
        uuid: Some(text::serial(boot.volume_serial_number)),
        size: boot.volume_length.checked_mul(1 << shift),
        ..found(FilesystemKind::ExFat, "EXFAT", 3)
    })
}

/// The volume label in the first entries of the root directory (section 7.3).
fn exfat_label(bytes: &dyn Bytes, boot: &ExFatBootSector) -> Option<ImageName> {
    const VOLUME_LABEL: u8 = 0x83;
    let index = u64::from(boot.first_cluster_of_root_directory).checked_sub(2)?;
    if index >= boot.cluster_count.into() {
        return None;
    }
    let into = index.checked_shl(boot.sectors_per_cluster_shift.into())?;
    let sector = u64::from(boot.cluster_heap_offset).checked_add(into)?;
    let at = sector.checked_mul(1 << boot.bytes_per_sector_shift)?;
    let directory = bytes.bytes(at, 512)?;
    let mut entries = directory.chunks_exact(32);
    let entry = entries.find(|entry| entry.first() == Some(&VOLUME_LABEL))?;
    let characters = usize::from(*entry.get(1)?).min(11);
    text::utf16(entry.get(2..)?.get(..characters * 2)?, Order::Little)
}

/// BitLocker of Windows 7 and later stands where NTFS would; on removable disks it looks like FAT, and
/// has a GUID in place of a program.
pub(in crate::content) fn bitlocker(bytes: &dyn Bytes) -> Option<Filesystem> {
    const TO_GO: [u8; 16] = [
        0x3b, 0xd6, 0x67, 0x49, 0x29, 0x2e, 0xd8, 0x4a, 0x83, 0x99, 0xf6, 0xa3, 0x39, 0xe3, 0xd0,
        0x01,
    ];
    let (what, at) = match () {
        () if bytes.has(3, b"-FVE-FS-") => ("-FVE-FS-", 3),
        () if bytes.has(424, &TO_GO) => ("the GUID of BitLocker To Go", 424),
        () => return None,
    };
    Some(found(FilesystemKind::BitLocker, what, at))
}
