//! El Torito: what a CD is started with ("El Torito" Bootable CD-ROM Format Specification 1.0).

use super::descriptor::BootRecord;
use super::{ISO, SECTOR};
use crate::content::bytes::Bytes;
use crate::content::text;
use crate::name::ImageName;
use crate::ondisk::{Order, on_disk, values};

/// Bytes of a catalogue that are read.
const MOST_CATALOGUE: u64 = 8 << 10;
const ENTRY: usize = 32;

on_disk! {
    /// Figure 2, "Validation Entry".
    struct Validation in ISO, "validation entry", Little, 32 bytes {
        header_id: u8 = 0,
        platform_id: u8 = 1,
        id_string: [u8; 24] = 4,
        key_bytes: [u8; 2] = 30,
    }
}

on_disk! {
    /// Figures 3 and 5, "Initial/Default Entry" and "Section Entry".
    struct Section in ISO, "section entry", Little, 32 bytes {
        boot_indicator: u8 = 0,
        boot_media_type: u8 = 1,
        load_segment: u16 = 2,
        system_type: u8 = 4,
        sector_count: u16 = 6,
        load_rba: u32 = 8,
    }
}

on_disk! {
    /// Figure 4, "Section Header Entry".
    struct SectionHeader in ISO, "section header", Little, 32 bytes {
        header_indicator: u8 = 0,
        platform_id: u8 = 1,
        section_entries: u16 = 2,
    }
}

const BOOTABLE: u8 = 0x88;
const MORE_HEADERS: u8 = 0x90;
const LAST_HEADER: u8 = 0x91;
const EXTENSION: u8 = 0x44;
/// In the media type of an entry and in an extension: another extension follows.
const GOES_ON: u8 = 0x20;

/// The catalogue of what a CD is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BootCatalogue {
    /// Offset in bytes.
    pub offset: u64,
    /// Manufacturer.
    pub id: Option<ImageName>,
    /// Validity of its checksum, without which firmware refuses it.
    pub checksum_is_right: bool,
    /// Boot entries in the order of the catalogue: the default first.
    pub entries: Vec<BootEntry>,
}

/// A program or an image of a disk that a CD is started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BootEntry {
    /// For what it is: 00 a BIOS, 01 PowerPC, 02 Mac, EF (hexadecimal) UEFI.
    pub platform: u8,
    /// Boot indicator: the entry may be started.
    pub bootable: bool,
    /// Media that the firmware emulates.
    pub media: BootMedia,
    /// Offset in bytes from the start of the disc.
    pub offset: u64,
    /// Bytes that the firmware loads at first; only a hint for UEFI.
    pub load_size: u32,
}

impl BootCatalogue {
    /// Faults of it on a disc of `size` bytes, as text.
    pub(super) fn problems(&self, size: u64) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.checksum_is_right {
            problems.push("the checksum of the boot catalogue is wrong".to_owned());
        }
        for entry in self.entries.iter().filter(|entry| entry.offset >= size) {
            problems.push(format!(
                "the boot image for {} at byte {} is not there: the disc is cut short",
                entry.platform_name(),
                entry.offset
            ));
        }
        problems
    }
}

impl BootEntry {
    /// Returns whether a BIOS starts it.
    pub fn is_bios(&self) -> bool {
        self.platform == 0
    }

    /// Returns whether UEFI starts it.
    pub fn is_efi(&self) -> bool {
        self.platform == 0xef
    }

    /// The name of its platform.
    pub fn platform_name(&self) -> &'static str {
        match self.platform {
            0 => "BIOS",
            1 => "PowerPC",
            2 => "Mac",
            0xef => "UEFI",
            _ => "unknown",
        }
    }
}

/// Media that the firmware emulates with a boot image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BootMedia {
    /// Nothing: it is a program.
    NoEmulation,
    /// A floppy of 1.2 MB.
    Floppy1200,
    /// A floppy of 1.44 MB.
    Floppy1440,
    /// A floppy of 2.88 MB.
    Floppy2880,
    /// A hard disk.
    HardDisk,
    /// Something that the specification does not have.
    Unknown(u8),
}

impl BootMedia {
    fn of(kind: u8) -> Self {
        match kind & 0x0f {
            0 => BootMedia::NoEmulation,
            1 => BootMedia::Floppy1200,
            2 => BootMedia::Floppy1440,
            3 => BootMedia::Floppy2880,
            4 => BootMedia::HardDisk,
            other => BootMedia::Unknown(other),
        }
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            BootMedia::NoEmulation => "no emulation",
            BootMedia::Floppy1200 => "floppy of 1.2 MB",
            BootMedia::Floppy1440 => "floppy of 1.44 MB",
            BootMedia::Floppy2880 => "floppy of 2.88 MB",
            BootMedia::HardDisk => "hard disk",
            BootMedia::Unknown(_) => "unknown",
        }
    }
}

/// The catalogue that a boot record leads to; `None` if there is none.
pub(super) fn read(disk: &dyn Bytes, record: &BootRecord) -> Option<BootCatalogue> {
    let offset = u64::from(record.boot_catalogue) * SECTOR;
    let len = disk.size().checked_sub(offset)?.min(MOST_CATALOGUE);
    let raw = disk.bytes(offset, usize::try_from(len).ok()?)?;
    let (first, mut rest) = raw.split_at_checked(ENTRY)?;
    let validation = Validation::parse(first, offset).ok()?;
    if validation.header_id != 1 || validation.key_bytes != [0x55, 0xaa] {
        return None;
    }
    let sum = values(first, Order::Little).fold(0, u16::wrapping_add);
    let mut entries = Vec::new();
    let take = |rest: &mut &[u8]| -> Option<[u8; ENTRY]> {
        let (entry, tail) = rest.split_first_chunk::<ENTRY>()?;
        *rest = tail;
        Some(*entry)
    };
    if let Some(initial) = take(&mut rest) {
        entries.extend(entry(&initial, validation.platform_id));
    }
    // Every turn takes an entry off what is left.
    while let Some(header) = take(&mut rest) {
        let Ok(header) = SectionHeader::parse(&header, offset) else {
            break;
        };
        if !matches!(header.header_indicator, MORE_HEADERS | LAST_HEADER) {
            break;
        }
        for _ in 0..header.section_entries {
            let Some(raw) = take(&mut rest) else {
                break;
            };
            entries.extend(entry(&raw, header.platform_id));
            let mut goes_on = raw[1] & GOES_ON != 0;
            while goes_on && rest.first() == Some(&EXTENSION) {
                let extension = take(&mut rest);
                goes_on = extension.is_some_and(|raw| raw[1] & GOES_ON != 0);
            }
        }
        if header.header_indicator == LAST_HEADER {
            break;
        }
    }
    Some(BootCatalogue {
        offset,
        id: text::label(&validation.id_string),
        checksum_is_right: sum == 0,
        entries,
    })
}

fn entry(raw: &[u8; ENTRY], platform: u8) -> Option<BootEntry> {
    let section = Section::parse(raw, 0).ok()?;
    if !matches!(section.boot_indicator, 0 | BOOTABLE) || raw.iter().all(|byte| *byte == 0) {
        return None;
    }
    Some(BootEntry {
        platform,
        bootable: section.boot_indicator == BOOTABLE,
        media: BootMedia::of(section.boot_media_type),
        offset: u64::from(section.load_rba) * SECTOR,
        load_size: u32::from(section.sector_count) * 512,
    })
}
