//! ISO 9660 (ECMA-119): the volume descriptors of the last session, and what they lead to.

mod descriptor;
mod el_torito;

use crate::content::bytes::{Bytes, Part};
use crate::content::filesystem::{Filesystem, FilesystemKind};
use crate::content::text;
use crate::format_id::FormatId;
use crate::name::ImageName;
use crate::ondisk::Order;

use descriptor::{BootRecord, VolumeDescriptor, date};
pub use el_torito::{BootCatalogue, BootEntry, BootMedia};

pub(super) const ISO: FormatId = FormatId::new("iso");
/// Sectors of the standard, in bytes. Logical blocks may be shorter.
pub(super) const SECTOR: u64 = 2048;
/// The descriptors start behind the system area, which is for others.
const SYSTEM_AREA: u64 = 16;
/// Sector at which libisofs starts the first session on rewritable media.
const FIRST_SESSION: u64 = 32;
/// Descriptors that are read of one set.
const MOST_DESCRIPTORS: u64 = 32;
/// Sessions that are looked for.
const MOST_SESSIONS: u32 = 32;

/// An ISO 9660 volume.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Iso {
    /// Its name.
    pub volume_id: Option<ImageName>,
    /// The system that its system area is for.
    pub system_id: Option<ImageName>,
    /// The name of the set of volumes that it is a part of.
    pub volume_set_id: Option<ImageName>,
    /// Publisher.
    pub publisher_id: Option<ImageName>,
    /// Preparer of the data.
    pub data_preparer_id: Option<ImageName>,
    /// The program that wrote it.
    pub application_id: Option<ImageName>,
    /// When it was made, such as `2026-11-21T06:57:24.00+00:00`.
    pub created: Option<String>,
    /// When it was changed.
    pub modified: Option<String>,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// Size of the volume in bytes, as the descriptor has it.
    pub size: u64,
    /// Offset of the descriptors of the last session, which are the ones in force, in bytes.
    pub offset: u64,
    /// Number of sessions, as far as they can be found without the disc.
    pub sessions: u32,
    /// The level of Joliet (1 to 3), which gives long names to Windows.
    pub joliet: Option<u8>,
    /// The name of the volume in Joliet.
    pub joliet_volume_id: Option<ImageName>,
    /// Presence of Rock Ridge, which gives long names to Unix.
    pub rock_ridge: bool,
    /// Boot catalogue.
    pub boot: Option<BootCatalogue>,
}

/// The signature of a volume, with what its primary descriptor says.
pub(super) fn recognise(bytes: &dyn Bytes) -> Option<Filesystem> {
    let at = SYSTEM_AREA * SECTOR;
    if !bytes.has(at + 1, b"CD001") {
        return None;
    }
    let found = Filesystem::new(FilesystemKind::Iso9660, "CD001", at + 1);
    let Some(primary) = Set::read(bytes, at).primary else {
        return Some(found);
    };
    Some(Filesystem {
        label: text::label(&primary.volume_identifier),
        uuid: date_as_id(&primary.modification_date).or(date_as_id(&primary.creation_date)),
        size: Some(primary.size()),
        ..found
    })
}

/// A time as the tools of Linux take it for an identifier.
fn date_as_id(field: &[u8; 17]) -> Option<String> {
    let digits = std::str::from_utf8(field.get(..16)?).ok()?;
    date(field)?;
    let parts = [0..4, 4..6, 6..8, 8..10, 10..12, 12..14, 14..16];
    let parts: Option<Vec<&str>> = parts.into_iter().map(|range| digits.get(range)).collect();
    Some(parts?.join("-"))
}

/// The descriptors of one session.
#[derive(Default)]
struct Set {
    primary: Option<VolumeDescriptor>,
    joliet: Option<(u8, Option<ImageName>)>,
    boot_record: Option<BootRecord>,
    ends: bool,
}

impl Set {
    /// Reads the set that starts at byte `at`. The primary descriptor may stand anywhere in it.
    fn read(disk: &dyn Bytes, at: u64) -> Self {
        let mut set = Set::default();
        for sector in 0..MOST_DESCRIPTORS {
            let place = at + sector * SECTOR;
            let Some(raw) = disk.bytes(place, VolumeDescriptor::LEN) else {
                break;
            };
            if raw.get(1..6) != Some(b"CD001") {
                break;
            }
            match raw.first() {
                Some(0) if set.boot_record.is_none() => {
                    set.boot_record = BootRecord::parse(&raw, place)
                        .ok()
                        .filter(BootRecord::is_el_torito);
                }
                Some(1) if set.primary.is_none() => {
                    set.primary = VolumeDescriptor::parse(&raw, place).ok();
                }
                Some(2) if set.joliet.is_none() => {
                    let descriptor = VolumeDescriptor::parse(&raw, place);
                    set.joliet = descriptor.ok().and_then(|descriptor| {
                        let name = text::utf16(&descriptor.volume_identifier, Order::Big);
                        Some((descriptor.joliet_level()?, name))
                    });
                }
                Some(255) => {
                    set.ends = true;
                    break;
                }
                _ => {}
            }
        }
        set
    }
}

/// The volume on a disk, and what is wrong with it as text.
pub(super) fn read(disk: &Part<'_>) -> Option<(Iso, Vec<String>)> {
    let mut offset = SYSTEM_AREA * SECTOR;
    if !disk.has(offset + 1, b"CD001") {
        return None;
    }
    let mut set = Set::read(disk, offset);
    let mut sessions = 1;
    let kept = (SYSTEM_AREA + FIRST_SESSION) * SECTOR;
    if disk.has(kept + 1, b"CD001") {
        // On rewritable media libisofs starts the first session later, and keeps the descriptors here up to
        // date with the last one.
        let (mut at, mut of) = (kept, Set::read(disk, kept));
        while let Some(next) = next_session(disk, at, &of).filter(|_| sessions < MOST_SESSIONS) {
            (at, of) = next;
            sessions += 1;
        }
    } else {
        while let Some(next) = next_session(disk, offset, &set).filter(|_| sessions < MOST_SESSIONS)
        {
            (offset, set) = next;
            sessions += 1;
        }
    }
    let mut warnings = Vec::new();
    let Some(primary) = set.primary else {
        warnings.push("the ISO 9660 volume has no primary descriptor".to_owned());
        return Some((Iso::unknown(offset), warnings));
    };
    if !set.ends {
        warnings.push("the volume descriptors of ISO 9660 have no end".to_owned());
    }
    warnings.extend(primary.disagreements());
    let size = primary.size();
    // Later sessions may count from their own start or from that of the disc.
    if size > disk.size() {
        warnings.push(format!(
            "the ISO 9660 volume has {size} bytes and only {} are there: it is cut short",
            disk.size()
        ));
    }
    let boot = set.boot_record.and_then(|record| {
        let found = el_torito::read(disk, &record);
        match &found {
            None => warnings.push(format!(
                "the boot catalogue at sector {} is not there or not valid",
                record.boot_catalogue
            )),
            Some(catalogue) => warnings.extend(catalogue.problems(disk.size())),
        }
        found
    });
    Some((
        Iso {
            volume_id: text::label(&primary.volume_identifier),
            system_id: text::label(&primary.system_identifier),
            volume_set_id: text::label(&primary.volume_set_identifier),
            publisher_id: text::label(&primary.publisher_identifier),
            data_preparer_id: text::label(&primary.data_preparer_identifier),
            application_id: text::label(&primary.application_identifier),
            created: date(&primary.creation_date),
            modified: date(&primary.modification_date),
            block_size: primary.block_size(),
            size,
            offset,
            sessions,
            joliet: set.joliet.as_ref().map(|(level, _)| *level),
            joliet_volume_id: set.joliet.and_then(|(_, name)| name),
            rock_ridge: descriptor::has_rock_ridge(disk, &primary),
            boot,
        },
        warnings,
    ))
}

/// The descriptors of the session behind the one whose set starts at `offset`. Writers start sessions
/// at multiples of 16 or 32 sectors.
fn next_session(disk: &Part<'_>, offset: u64, set: &Set) -> Option<(u64, Set)> {
    let primary = set.primary.as_ref()?;
    let end = primary.size().div_ceil(SECTOR);
    let start = (offset / SECTOR).checked_sub(SYSTEM_AREA)?;
    let mut tried = Vec::new();
    for end in [end, start.checked_add(end)?] {
        for unit in [1, 16, 32] {
            let sector = end.checked_next_multiple_of(unit)?;
            let place = sector.checked_add(SYSTEM_AREA)?.checked_mul(SECTOR)?;
            if place <= offset || tried.contains(&place) {
                continue;
            }
            tried.push(place);
            if disk.has(place, b"\x01CD001\x01") {
                let set = Set::read(disk, place);
                if set.primary.is_some() {
                    return Some((place, set));
                }
            }
        }
    }
    None
}

impl Iso {
    /// A volume of which nothing is known.
    fn unknown(offset: u64) -> Self {
        Iso {
            volume_id: None,
            system_id: None,
            volume_set_id: None,
            publisher_id: None,
            data_preparer_id: None,
            application_id: None,
            created: None,
            modified: None,
            block_size: 2048,
            size: 0,
            offset,
            sessions: 1,
            joliet: None,
            joliet_volume_id: None,
            rock_ridge: false,
            boot: None,
        }
    }
}
