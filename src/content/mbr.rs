//! The master boot record: four partitions, chains of logical ones, and the code that starts.

use crate::content::bytes::{Bytes, Part};
use crate::content::fat::Bpb;
use crate::format_id::FormatId;
use crate::ondisk::on_disk;

pub(super) const MBR: FormatId = FormatId::new("mbr");
const SECTOR: u64 = 512;
/// Logical partitions that are followed at most. Linux numbers no more than a few dozen.
const MOST_LOGICAL: usize = 128;

on_disk! {
    /// UEFI 2.10, table 5.1, "Legacy MBR".
    pub(crate) struct Record in MBR, "master boot record", Little, 512 bytes {
        boot_code: [u8; 440] = 0,
        unique_mbr_disk_signature: u32 = 440,
        partition_record: [u8; 64] = 446,
        signature: u16 = 510,
    }
}

on_disk! {
    /// UEFI 2.10, table 5.2, "Legacy MBR Partition Record".
    pub(crate) struct PartitionRecord in MBR, "partition record", Little, 16 bytes {
        boot_indicator: u8 = 0,
        starting_chs: [u8; 3] = 1,
        os_type: u8 = 4,
        starting_lba: u32 = 8,
        size_in_lba: u32 = 12,
    }
}

impl Record {
    /// The record that a disk begins with, if it has the signature of one.
    pub(crate) fn at_start(head: &[u8]) -> Option<Self> {
        let record = Record::parse(head, 0).ok()?;
        (record.signature == 0xaa55).then_some(record)
    }

    /// The four records of its table.
    pub(crate) fn partition_records(&self) -> impl Iterator<Item = PartitionRecord> {
        let records = self.partition_record.chunks_exact(PartitionRecord::LEN);
        records.filter_map(|raw| PartitionRecord::parse(raw, 0).ok())
    }
}

/// A master boot record.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mbr {
    /// The number by which Windows knows the disk, and Linux its partitions; 0 if there is none.
    pub disk_signature: u32,
    /// Whose program stands in the first sector, if it is one that is known.
    pub boot_code: Option<BootCode>,
    /// The four entries of the table, empty ones too.
    pub entries: [MbrEntry; 4],
    /// The logical partitions, in the order of their chain.
    pub logical: Vec<MbrEntry>,
}

/// An entry of a table of partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct MbrEntry {
    /// 80 (hexadecimal) for the one that starts, else 0; other values exist.
    pub flag: u8,
    /// Type, see [`mbr_type_name`](crate::content::mbr_type_name); 0 if it is not used.
    pub kind: u8,
    /// First sector of the disk, in sectors of the disk.
    pub first_sector: u32,
    /// Length in sectors.
    pub sectors: u32,
}

impl MbrEntry {
    /// Returns whether it describes a partition: CDs that are disks, too, have an active one of type 0.
    pub fn is_used(&self) -> bool {
        self.sectors != 0 && (self.kind != 0 || self.flag == 0x80)
    }

    /// Returns whether it starts a chain of logical partitions.
    pub fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    fn end(&self) -> u64 {
        u64::from(self.first_sector) + u64::from(self.sectors)
    }
}

/// A program that stands in a boot sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BootCode {
    /// GRUB 2.
    Grub,
    /// GRUB 0.9x.
    GrubLegacy,
    /// SYSLINUX's record for disks.
    Syslinux,
    /// ISOLINUX, in the first sector of a CD that is a disk, too.
    Isolinux,
    /// LILO.
    Lilo,
    /// Windows, from 2000 on.
    Windows,
    /// FreeBSD.
    FreeBsd,
    /// Parted's, which starts the active partition as the one of DOS does.
    Parted,
    /// An unknown program.
    Unknown,
}

impl BootCode {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            BootCode::Grub => "GRUB",
            BootCode::GrubLegacy => "GRUB Legacy",
            BootCode::Syslinux => "SYSLINUX",
            BootCode::Isolinux => "ISOLINUX",
            BootCode::Lilo => "LILO",
            BootCode::Windows => "Windows",
            BootCode::FreeBsd => "FreeBSD",
            BootCode::Parted => "Parted",
            BootCode::Unknown => "unknown",
        }
    }

    /// The program among these bytes, which are those before the table; `None` if there is none.
    fn of(code: &[u8]) -> Option<Self> {
        if code.iter().all(|byte| *byte == 0) {
            return None;
        }
        let has = |text: &[u8]| code.windows(text.len()).any(|part| part == text);
        let starts = |bytes: &[u8]| code.starts_with(bytes);
        Some(if has(b"GRUB ") && has(b"Geom\0") {
            match code.get(..2) {
                Some(b"\xeb\x48") => BootCode::GrubLegacy,
                _ => BootCode::Grub,
            }
        } else if has(b"isolinux.bin missing") {
            BootCode::Isolinux
        } else if has(b"Missing operating system.\r\n")
            || has(b"Missing OS\r\n")
            || has(b"Multiple active partitions.")
        {
            BootCode::Syslinux
        } else if code.get(2..6) == Some(b"LILO") || code.get(6..10) == Some(b"LILO") {
            BootCode::Lilo
        } else if has(b"TCPA") || has(b"Error loading operating system\0") {
            BootCode::Windows
        } else if has(b"Missing boot loader") || has(b"FreeBSD") {
            BootCode::FreeBsd
        } else if starts(b"\xfa\xb8\x00\x10\x8e\xd0\xbc\x00\xb0") {
            BootCode::Parted
        } else {
            BootCode::Unknown
        })
    }
}

/// The four entries of a table of partitions.
fn table(record: &Record) -> [MbrEntry; 4] {
    let mut entries = [MbrEntry::default(); 4];
    for (entry, raw) in entries.iter_mut().zip(record.partition_records()) {
        *entry = MbrEntry {
            flag: raw.boot_indicator,
            kind: raw.os_type,
            first_sector: raw.starting_lba,
            sectors: raw.size_in_lba,
        };
    }
    entries
}

/// The boot record in the first sector of a disk, without the chains that start in it.
///
/// The signature at its end is on every boot sector of a filesystem, too, so that the table has to make
/// sense: an entry that is used, and flags that are known or else partitions that lie on the disk and
/// apart from each other.
pub(crate) fn recognise(disk: &dyn Bytes) -> Option<Mbr> {
    let record = Record::parse(&disk.bytes(0, Record::LEN)?, 0).ok()?;
    if record.signature != 0xaa55 {
        return None;
    }
    let entries = table(&record);
    let used: Vec<&MbrEntry> = entries.iter().filter(|entry| entry.is_used()).collect();
    let flags_are_known = entries.iter().all(|entry| matches!(entry.flag, 0 | 0x80));
    // The boot sector of a filesystem may have a table, too, and mtools writes one with a partition
    // that is the filesystem itself.
    let is_volume = Bpb::of(disk).is_some();
    let is_sane = match (flags_are_known, is_volume) {
        (true, false) => true,
        (false, true) => false,
        _ => is_apart(&used, disk),
    };
    if used.is_empty() || !is_sane {
        return None;
    }
    // The program of a filesystem does not start a disk, whatever its messages say.
    let code = BootCode::of(&record.boot_code).filter(|_| !is_volume);
    Some(Mbr {
        disk_signature: record.unique_mbr_disk_signature,
        boot_code: code,
        entries,
        logical: Vec::new(),
    })
}

fn is_apart(used: &[&MbrEntry], disk: &dyn Bytes) -> bool {
    let inside = |e: &&MbrEntry| e.first_sector > 0 && e.end() * SECTOR <= disk.size();
    let mut rest = used;
    let mut apart = used.iter().all(inside);
    while let [first, others @ ..] = rest {
        let clear = |e: &&MbrEntry| {
            e.end() <= u64::from(first.first_sector) || first.end() <= u64::from(e.first_sector)
        };
        apart &= others.iter().all(clear);
        rest = others;
    }
    apart
}

impl Mbr {
    /// Returns whether the table only protects a GUID partition table.
    pub fn is_protective(&self) -> bool {
        self.entries
            .iter()
            .all(|entry| !entry.is_used() || entry.kind == 0xee)
    }

    /// Returns whether the table has partitions beside the one that protects a GUID partition table.
    pub fn is_hybrid(&self) -> bool {
        let mut used = self.entries.iter().filter(|entry| entry.is_used());
        used.clone().any(|entry| entry.kind == 0xee) && used.any(|entry| entry.kind != 0xee)
    }

    /// Follows the chains of logical partitions; what is wrong with them is returned as text.
    pub(super) fn follow(&mut self, disk: &Part<'_>, sector: u64) -> Vec<String> {
        let mut warnings = Vec::new();
        for extended in self.entries.into_iter().filter(MbrEntry::is_extended) {
            if extended.is_used() {
                self.follow_one(disk, sector, extended, &mut warnings);
            }
        }
        warnings
    }

    fn follow_one(
        &mut self,
        disk: &Part<'_>,
        sector: u64,
        extended: MbrEntry,
        warnings: &mut Vec<String>,
    ) {
        let first = u64::from(extended.first_sector);
        let mut seen = Vec::new();
        let mut at = first;
        loop {
            if seen.contains(&at) || self.logical.len() >= MOST_LOGICAL {
                warnings.push(format!(
                    "the chain of logical partitions does not end: it was left at sector {at}"
                ));
                return;
            }
            seen.push(at);
            let bytes = at
                .checked_mul(sector)
                .and_then(|at| disk.bytes(at, Record::LEN));
            let record = bytes.and_then(|bytes| Record::parse(&bytes, 0).ok());
            let Some(record) = record.filter(|record| record.signature == 0xaa55) else {
                warnings.push(format!(
                    "the chain of logical partitions leads to sector {at}, which has no boot record"
                ));
                return;
            };
            let entries = table(&record);
            let logical = entries.iter().find(|e| e.is_used() && !e.is_extended());
            if let Some(entry) = logical {
                match u32::try_from(at + u64::from(entry.first_sector)) {
                    Ok(first_sector) => self.logical.push(MbrEntry {
                        first_sector,
                        ..*entry
                    }),
                    Err(_) => warnings.push(format!(
                        "a logical partition in the boot record at sector {at} starts beyond 2 TiB"
                    )),
                }
            }
            let Some(next) = entries.iter().find(|e| e.is_used() && e.is_extended()) else {
                return;
            };
            at = first + u64::from(next.first_sector);
            if next.first_sector >= extended.sectors {
                warnings.push(format!(
                    "the chain of logical partitions leads to sector {at}, outside of its partition"
                ));
                return;
            }
        }
    }
}
