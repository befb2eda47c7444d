//! The partitions of a disk, whichever table they stand in.

use crate::content::bytes::{Bytes, Part};
use crate::content::filesystem::Filesystem;
use crate::content::recognise;
use crate::content::{Contents, Gpt, Mbr, MbrEntry, gpt_type_name, mbr_type_name};
use crate::name::ImageName;

/// Partitions that are looked into. More of them are listed.
const MOST_LOOKED_INTO: usize = 32;

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Partition {
    /// Its number, as Linux counts: logical ones start at 5.
    pub number: u32,
    /// Offset in bytes.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Type.
    pub kind: PartitionType,
    /// Active flag: a BIOS starts it.
    pub active: bool,
    /// Its name, in a GUID partition table.
    pub name: Option<ImageName>,
    /// Its GUID, likewise.
    pub guid: Option<String>,
    /// Filesystem in it, if that is known.
    pub filesystem: Option<Filesystem>,
}

/// Type of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PartitionType {
    /// A number in a master boot record.
    Mbr(u8),
    /// A GUID, in capitals.
    Gpt(String),
}

impl PartitionType {
    /// Its name, if it is known.
    pub fn name(&self) -> Option<&'static str> {
        match self {
            PartitionType::Mbr(kind) => mbr_type_name(*kind),
            PartitionType::Gpt(guid) => gpt_type_name(guid),
        }
    }

    /// It as the table has it: two hexadecimal digits, or a GUID.
    pub fn code(&self) -> String {
        match self {
            PartitionType::Mbr(kind) => format!("{kind:02x}"),
            PartitionType::Gpt(guid) => guid.clone(),
        }
    }

    /// Compares it with a GUID.
    pub(super) fn is_guid(&self, guid: &str) -> bool {
        matches!(self, PartitionType::Gpt(own) if own == guid)
    }
}

/// Lists the partitions and finds out what lies in them.
pub(super) fn list(contents: &mut Contents, disk: &Part<'_>, sector: u64) {
    let readable = contents.gpt.as_ref().filter(|gpt| !gpt.entries.is_empty());
    let mut partitions = match (readable, &contents.mbr) {
        (Some(gpt), _) => of_gpt(gpt),
        (None, Some(mbr)) => of_mbr(mbr, sector),
        (None, None) => return,
    };
    for (count, partition) in partitions.iter_mut().enumerate() {
        let end = partition.offset.saturating_add(partition.size);
        if matches!(partition.kind, PartitionType::Mbr(_)) && end > disk.size() {
            // A protective entry may be larger than a small disk.
            if partition.kind != PartitionType::Mbr(0xee) {
                contents.warnings.push(format!(
                    "partition {} ends at byte {end} of a disk of {}",
                    partition.number,
                    disk.size()
                ));
            }
        }
        let is_extended = matches!(
            partition.kind,
            PartitionType::Mbr(0x05 | 0x0f | 0x85 | 0xee)
        );
        if count < MOST_LOOKED_INTO && !is_extended && partition.offset > 0 {
            let part = disk.part(partition.offset, partition.size);
            partition.filesystem = recognise::of_partition(&part);
            let filesystem = partition.filesystem.as_ref();
            if let Some(problem) = filesystem.and_then(|f| f.cut_short(part.size())) {
                let number = partition.number;
                let warning = format!("partition {number} has {problem}");
                contents.warnings.push(warning);
            }
        }
    }
    contents.partitions = partitions;
}

fn of_gpt(gpt: &Gpt) -> Vec<Partition> {
    const LEGACY_BIOS_BOOTABLE: u64 = 1 << 2;
    let sector = u64::from(gpt.sector_size);
    let entries = gpt.entries.iter().map(|entry| {
        let sectors = (entry.last_sector.saturating_add(1)).saturating_sub(entry.first_sector);
        Partition {
            number: entry.number,
            offset: entry.first_sector.saturating_mul(sector),
            size: sectors.saturating_mul(sector),
            kind: PartitionType::Gpt(entry.type_guid.clone()),
            active: entry.attributes & LEGACY_BIOS_BOOTABLE != 0,
            name: entry.name.clone(),
            guid: Some(entry.guid.clone()),
            filesystem: None,
        }
    });
    entries.collect()
}

fn of_mbr(mbr: &Mbr, sector: u64) -> Vec<Partition> {
    let primary = mbr.entries.iter().zip(1..).filter(|(e, _)| e.is_used());
    let logical = mbr.logical.iter().zip(5..);
    let partition = |(entry, number): (&MbrEntry, u32)| Partition {
        number,
        offset: u64::from(entry.first_sector) * sector,
        size: u64::from(entry.sectors) * sector,
        kind: PartitionType::Mbr(entry.kind),
        active: entry.flag == 0x80,
        name: None,
        guid: None,
        filesystem: None,
    };
    primary.chain(logical).map(partition).collect()
}
