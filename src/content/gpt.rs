//! The GUID partition table: two copies of a header and of an array of partitions.

use uuid::Uuid;

use crate::content::bytes::{Bytes, Part};
use crate::content::text;
use crate::format_id::FormatId;
use crate::name::ImageName;
use crate::ondisk::{Order, on_disk};

pub(super) const GPT: FormatId = FormatId::new("gpt");
/// Sizes of sectors that a table may count in: those of disks first, then that of CDs.
pub(super) const SECTORS: [u32; 3] = [512, 4096, 2048];
/// Bytes of an array of partitions that are read and checked at most: 1,024 of the usual length.
const MOST_ARRAY: u64 = 128 << 10;

on_disk! {
    /// UEFI 2.10, table 5.5, "GPT Header".
    struct Header in GPT, "GPT header", Little, 92 bytes {
        signature: [u8; 8] = 0,
        revision: u32 = 8,
        header_size: u32 = 12,
        header_crc32: u32 = 16,
        my_lba: u64 = 24,
        alternate_lba: u64 = 32,
        first_usable_lba: u64 = 40,
        last_usable_lba: u64 = 48,
        disk_guid: Uuid = 56,
        partition_entry_lba: u64 = 72,
        number_of_partition_entries: u32 = 80,
        size_of_partition_entry: u32 = 84,
        partition_entry_array_crc32: u32 = 88,
    }
}

on_disk! {
    /// UEFI 2.10, table 5.6, "GPT Partition Entry".
    struct Entry in GPT, "GPT partition entry", Little, 128 bytes {
        partition_type_guid: Uuid = 0,
        unique_partition_guid: Uuid = 16,
        starting_lba: u64 = 32,
        ending_lba: u64 = 40,
        attributes: u64 = 48,
        partition_name: [u8; 72] = 56,
    }
}

/// A GUID partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gpt {
    /// Size of the sectors that it counts in, in bytes.
    pub sector_size: u32,
    /// The disk's GUID.
    pub disk_guid: String,
    /// The copy at the start of the disk.
    pub primary: GptCopy,
    /// The copy at the end of the disk.
    pub backup: GptCopy,
    /// Offset of the array of partitions, in bytes.
    pub array_offset: u64,
    /// For how many partitions it has room.
    pub array_entries: u32,
    /// The length of an entry in bytes.
    pub entry_size: u32,
    /// The partitions, those that are used.
    pub entries: Vec<GptEntry>,
}

/// State of one copy of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum GptCopy {
    /// It is whole and where it belongs.
    Valid,
    /// It is whole, and does not stand where the disk ends: the disk has grown since.
    Misplaced {
        /// Offset of its header, in bytes.
        offset: u64,
    },
    /// It is there and not whole.
    Damaged {
        /// The fault.
        problem: String,
    },
    /// There is none.
    Missing,
}

impl GptCopy {
    /// Its state in one word.
    pub fn as_str(&self) -> &'static str {
        match self {
            GptCopy::Valid => "valid",
            GptCopy::Misplaced { .. } => "misplaced",
            GptCopy::Damaged { .. } => "damaged",
            GptCopy::Missing => "missing",
        }
    }
}

/// A partition in a GUID partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GptEntry {
    /// Its number, which is its place in the array, from 1 on.
    pub number: u32,
    /// Type, as a GUID; see [`gpt_type_name`](crate::content::gpt_type_name).
    pub type_guid: String,
    /// The GUID of the partition itself.
    pub guid: String,
    /// First sector.
    pub first_sector: u64,
    /// Last sector, which is a part of it.
    pub last_sector: u64,
    /// Attributes: bit 0 needed by the platform, bit 2 to be started by a BIOS.
    pub attributes: u64,
    /// Its name.
    pub name: Option<ImageName>,
}

/// Finds the header of a table at either end of the disk, and returns its offset.
///
/// The copy at the end counts only if the boot record protects a table. The copy for sectors of 4096 bytes
/// counts only behind a boot record: in a disk image those bytes may belong to anything.
pub(crate) fn recognise(disk: &dyn Bytes) -> Option<u64> {
    let at = |offset| disk.has(offset, b"EFI PART");
    let boot_record = || disk.has(510, b"\x55\xaa");
    match () {
        () if at(512) => Some(512),
        () if at(4096) && boot_record() => Some(4096),
        () if is_protective(disk) => {
            let mut ends = SECTORS
                .iter()
                .filter_map(|sector| disk.size().checked_sub((*sector).into()));
            ends.find(|offset| at(*offset))
        }
        () => None,
    }
}

/// Returns whether the boot record has a partition that protects a table (section 5.2.3).
fn is_protective(disk: &dyn Bytes) -> bool {
    let entries = disk.bytes(446, 64).unwrap_or_default();
    disk.has(510, b"\x55\xaa")
        && entries
            .chunks_exact(16)
            .any(|entry| entry.get(4) == Some(&0xee))
}

/// One copy, as far as it could be read.
struct Copy {
    header: Header,
    offset: u64,
    array: Option<Vec<u8>>,
    problem: Option<String>,
}

/// The table of a disk, and its faults as text; `None` if there is no trace of one. On a CD one partition may
/// be the whole volume, with others inside.
pub(super) fn read(disk: &Part<'_>, is_disc: bool) -> Option<(Gpt, Vec<String>)> {
    let mut damaged = None;
    for sector in SECTORS {
        match read_in(disk, sector, is_disc) {
            Some(found) if found.0.is_readable() => return Some(found),
            found => damaged = damaged.or(found),
        }
    }
    damaged
}

impl Gpt {
    /// Returns whether one of the copies is intact.
    pub fn is_readable(&self) -> bool {
        let whole = |copy: &GptCopy| matches!(copy, GptCopy::Valid | GptCopy::Misplaced { .. });
        whole(&self.primary) || whole(&self.backup)
    }
}

fn read_in(disk: &Part<'_>, sector: u32, is_disc: bool) -> Option<(Gpt, Vec<String>)> {
    let bytes = u64::from(sector);
    let last = (disk.size() / bytes).checked_sub(1)?;
    let primary = copy_at(disk, sector, 1);
    let mut backup = copy_at(disk, sector, last);
    // On a disk that has grown, only the first copy knows the place of the second one.
    let alternate = primary.as_ref().map(|copy| copy.header.alternate_lba);
    if let Some(lba) = alternate.filter(|lba| backup.is_none() && *lba > 1 && *lba < last) {
        backup = copy_at(disk, sector, lba);
    }
    let state = |copy: Option<&Copy>, place: u64| match copy {
        None => GptCopy::Missing,
        Some(copy) => match &copy.problem {
            Some(problem) => GptCopy::Damaged {
                problem: problem.clone(),
            },
            None if copy.offset != place => GptCopy::Misplaced {
                offset: copy.offset,
            },
            None => GptCopy::Valid,
        },
    };
    let states = (
        state(primary.as_ref(), bytes),
        state(backup.as_ref(), last * bytes),
    );
    let whole = |copy: &&Copy| copy.problem.is_none();
    let copies = [primary.as_ref(), backup.as_ref()];
    let mut present = copies.iter().flatten();
    let copy = present
        .clone()
        .copied()
        .find(whole)
        .or(present.next().copied())?;
    let header = &copy.header;
    let mut gpt = Gpt {
        sector_size: sector,
        disk_guid: text::guid(&header.disk_guid),
        primary: states.0,
        backup: states.1,
        array_offset: header.partition_entry_lba.saturating_mul(bytes),
        array_entries: header.number_of_partition_entries,
        entry_size: header.size_of_partition_entry,
        entries: Vec::new(),
    };
    let mut warnings = told(&gpt);
    let differ = |a: &Copy, b: &Copy| {
        let of = |h: &Header| (h.partition_entry_array_crc32, h.disk_guid);
        a.problem.is_none() && b.problem.is_none() && of(&a.header) != of(&b.header)
    };
    if let (Some(a), Some(b)) = (&primary, &backup) {
        if differ(a, b) {
            warnings.push("the two copies of the GPT differ; the first one is shown".to_owned());
        }
    }
    if let Some(array) = &copy.array {
        let size = usize::try_from(header.size_of_partition_entry).unwrap_or(usize::MAX);
        gpt.entries = array
            .chunks_exact(size.max(Entry::LEN))
            .zip(1..)
            .filter_map(|(raw, number)| entry(raw, number))
            .collect();
    }
    check_entries(&gpt, disk.size(), is_disc, &mut warnings);
    Some((gpt, warnings))
}

fn entry(raw: &[u8], number: u32) -> Option<GptEntry> {
    let entry = Entry::parse(raw, 0).ok()?;
    (!entry.partition_type_guid.is_nil()).then(|| GptEntry {
        number,
        type_guid: text::guid(&entry.partition_type_guid),
        guid: text::guid(&entry.unique_partition_guid),
        first_sector: entry.starting_lba,
        last_sector: entry.ending_lba,
        attributes: entry.attributes,
        name: text::utf16(&entry.partition_name, Order::Little),
    })
}

fn copy_at(disk: &Part<'_>, sector: u32, lba: u64) -> Option<Copy> {
    let bytes = u64::from(sector);
    let offset = lba.checked_mul(bytes)?;
    let raw = disk.bytes(offset, usize::try_from(sector).ok()?)?;
    let header = Header::parse(&raw, offset).ok()?;
    if &header.signature != b"EFI PART" {
        return None;
    }
    let mut copy = Copy {
        header,
        offset,
        array: None,
        problem: None,
    };
    copy.problem = header_problem(&copy.header, &raw, lba);
    let size = u64::from(copy.header.size_of_partition_entry);
    let length = size * u64::from(copy.header.number_of_partition_entries);
    let read = length.min(MOST_ARRAY);
    let array = copy.header.partition_entry_lba.checked_mul(bytes);
    copy.array = array.and_then(|at| disk.bytes(at, usize::try_from(read).ok()?));
    let array_problem = || match &copy.array {
        None => Some(format!(
            "its array of {length} bytes at sector {} is not on the disk",
            copy.header.partition_entry_lba
        )),
        Some(_) if length > MOST_ARRAY => {
            Some(format!("its array has {length} bytes, too many to check"))
        }
        Some(array) => {
            let sum = crc32fast::hash(array);
            (sum != copy.header.partition_entry_array_crc32)
                .then(|| "the checksum of its array is wrong".to_owned())
        }
    };
    copy.problem = copy.problem.take().or_else(array_problem);
    Some(copy)
}

fn header_problem(header: &Header, raw: &[u8], lba: u64) -> Option<String> {
    let size = usize::try_from(header.header_size).unwrap_or(usize::MAX);
    let Some(summed) = raw.get(..size).filter(|_| size >= Header::LEN) else {
        return Some(format!("its header has {size} bytes"));
    };
    let mut summed = summed.to_vec();
    if let Some(field) = summed.get_mut(16..20) {
        field.fill(0);
    }
    if crc32fast::hash(&summed) != header.header_crc32 {
        return Some("the checksum of its header is wrong".to_owned());
    }
    if header.my_lba != lba {
        return Some(format!("it is meant for sector {}", header.my_lba));
    }
    let size = header.size_of_partition_entry;
    if size < 128 || size % 8 != 0 || size > 4096 {
        return Some(format!("its entries have {size} bytes"));
    }
    None
}

/// Warnings about the copies.
fn told(gpt: &Gpt) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, copy) in [("first", &gpt.primary), ("second", &gpt.backup)] {
        match copy {
            GptCopy::Valid => {}
            GptCopy::Damaged { problem } => {
                warnings.push(format!("the {name} copy of the GPT is damaged: {problem}"));
            }
            GptCopy::Misplaced { offset } => warnings.push(format!(
                "the {name} copy of the GPT is at byte {offset} and not at the end: the disk has \
                 grown since it was partitioned"
            )),
            GptCopy::Missing => warnings.push(format!(
                "the {name} copy of the GPT is missing: the disk may be cut short"
            )),
        }
    }
    warnings
}

/// Finds partitions that lie outside of the disk or in each other.
fn check_entries(gpt: &Gpt, size: u64, is_disc: bool, warnings: &mut Vec<String>) {
    let sectors = size / u64::from(gpt.sector_size);
    let mut sorted: Vec<&GptEntry> = Vec::new();
    for entry in &gpt.entries {
        if entry.last_sector < entry.first_sector || entry.last_sector >= sectors {
            warnings.push(format!(
                "partition {} takes sectors {} to {} of a disk of {sectors}",
                entry.number, entry.first_sector, entry.last_sector
            ));
        } else {
            sorted.push(entry);
        }
    }
    sorted.sort_by_key(|entry| entry.first_sector);
    for pair in sorted.windows(2) {
        if let [a, b] = pair {
            if b.first_sector <= a.last_sector && !is_disc {
                let (a, b) = (a.number, b.number);
                warnings.push(format!("partitions {a} and {b} overlap"));
            }
        }
    }
}
