//! The region tables, and the ranges of a file that hold metadata (MS-VHDX 2.2.3).

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::map;
use crate::ondisk::on_disk;
use crate::source::BlockSource;

use super::VHDX;
use super::header::{Header, MIB, checksum, read};

/// Host offsets of the two region tables.
pub(super) const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
/// Bytes of a region table, all of which its checksum covers.
pub(super) const REGION_TABLE_LEN: usize = 64 << 10;
/// `regi`.
pub(super) const REGION_SIGNATURE: [u8; 4] = *b"regi";
/// The most entries that a region table can have.
const MAX_ENTRIES: u32 = 2047;

/// The block allocation table.
pub(super) const BAT: Uuid = Uuid::from_u128(0x2dc2_7766_f623_4200_9d64_115e_9bfd_4a08);
/// The metadata region.
pub(super) const METADATA: Uuid = Uuid::from_u128(0x8b7c_a206_4790_4b9a_b8fe_575f_050f_886e);

on_disk! {
    /// The head of a region table.
    pub(super) struct RegionTableHeader in VHDX, "region table", Little, 16 bytes {
        signature: [u8; 4] = 0,
        checksum: u32 = 4,
        entry_count: u32 = 8,
    }
}

on_disk! {
    /// An entry of a region table.
    pub(super) struct RegionTableEntry in VHDX, "region table entry", Little, 32 bytes {
        guid: Uuid = 0,
        file_offset: u64 = 16,
        length: u32 = 24,
        required: u32 = 28,
    }
}

/// A region: whole mebibytes of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// The regions that have to be there.
#[derive(Debug)]
pub(super) struct Regions {
    pub(super) bat: Region,
    pub(super) metadata: Region,
    /// Host offset of the copy of the table that was read.
    pub(super) offset: u64,
    /// Damage of the other copy.
    pub(super) warning: Option<String>,
    /// Everything that is not a block, in order.
    pub(super) taken: map::Regions,
}

/// Reads the region table, from whichever copy is valid.
pub(super) fn read_regions(
    source: &dyn BlockSource,
    header: &Header,
    header_at: u64,
) -> Result<Regions> {
    let [first, second] = REGION_TABLES.map(|offset| read_copy(source, offset));
    let (entries, offset, warning) = match (first, second) {
        (Ok(first), Ok(second)) if first == second => (first, REGION_TABLES[0], None),
        (Ok(_), Ok(_)) => {
            return Err(RegionTableHeader::malformed(
                REGION_TABLES[1],
                "checksum",
                "is right, but the table is not the same as the first one",
            ));
        }
        (Ok(entries), Err(problem)) => (entries, REGION_TABLES[0], damaged_copy(problem)?),
        (Err(problem), Ok(entries)) => (entries, REGION_TABLES[1], damaged_copy(problem)?),
        (Err(problem), Err(_)) => return Err(problem),
    };
    let mut taken = map::Regions::default();
    // Nothing is in the way of the first range.
    let _ = taken.add(0, MIB, "header section");
    take_log(&mut taken, header, header_at)?;
    let (mut bat, mut metadata) = (None, None);
    for (i, entry) in entries.iter().enumerate() {
        let at = offset + 16 + 32 * i as u64;
        let (place, name) = match entry.guid {
            BAT => (Some(&mut bat), "BAT region"),
            METADATA => (Some(&mut metadata), "metadata region"),
            _ => (None, "another region"),
        };
        let region = check(entry, at, name, &mut taken, source.size())?;
        match place {
            Some(place) if place.is_none() => *place = Some(region),
            Some(_) => {
                return Err(RegionTableEntry::malformed(
                    at,
                    "guid",
                    format!("is that of the {name}, which was there before"),
                ));
            }
            None if entry.required & 1 != 0 => {
                return Err(Error::unsupported(
                    VHDX,
                    format!("the required region {}", entry.guid),
                    None,
                ));
            }
            None => {}
        }
    }
    let missing = |what| {
        let problem = format!("has no {what}");
        Error::malformed(VHDX, "region table", offset, problem)
    };
    Ok(Regions {
        bat: bat.ok_or_else(|| missing("BAT region"))?,
        metadata: metadata.ok_or_else(|| missing("metadata region"))?,
        offset,
        warning,
        taken,
    })
}

fn damaged_copy(problem: Error) -> Result<Option<String>> {
    match problem {
        error @ Error::Io { .. } => Err(error),
        problem => Ok(Some(format!(
            "one of the two region tables is damaged ({problem})"
        ))),
    }
}

fn read_copy(source: &dyn BlockSource, offset: u64) -> Result<Vec<RegionTableEntry>> {
    let bytes = read(source, offset, REGION_TABLE_LEN, "region table")?;
    let head = RegionTableHeader::parse(&bytes, offset)?;
    if head.signature != REGION_SIGNATURE {
        return Err(RegionTableHeader::malformed(
            offset,
            "signature",
            "is not regi",
        ));
    }
    let computed = checksum(&bytes);
    if head.checksum != computed {
        let problem = format!("is {:08x}, and has to be {computed:08x}", head.checksum);
        return Err(RegionTableHeader::malformed(offset, "checksum", problem));
    }
    if head.entry_count > MAX_ENTRIES {
        let problem = format!("is {}, over the most, {MAX_ENTRIES}", head.entry_count);
        return Err(RegionTableHeader::malformed(offset, "entry_count", problem));
    }
    let table = bytes.get(RegionTableHeader::LEN..).unwrap_or_default();
    let count = usize::try_from(head.entry_count).unwrap_or(0);
    let entries = table.chunks_exact(RegionTableEntry::LEN).take(count);
    entries
        .enumerate()
        .map(|(i, entry)| RegionTableEntry::parse(entry, offset + 16 + 32 * i as u64))
        .collect()
}

fn take_log(taken: &mut map::Regions, header: &Header, at: u64) -> Result<()> {
    let (start, len) = (header.log_offset, u64::from(header.log_length));
    if len == 0 {
        return Ok(());
    }
    if start < MIB || start % MIB != 0 {
        let problem = format!("is {start}, and has to be a multiple of 1 MiB");
        return Err(Header::malformed(at, "log_offset", problem));
    }
    if len % MIB != 0 {
        let problem = format!("is {len}, and has to be a multiple of 1 MiB");
        return Err(Header::malformed(at, "log_length", problem));
    }
    taken
        .add(start, len, "log")
        .map_err(|other| Header::malformed(at, "log_offset", format!("{start} is in the {other}")))
}

fn check(
    entry: &RegionTableEntry,
    at: u64,
    name: &'static str,
    taken: &mut map::Regions,
    file_size: u64,
) -> Result<Region> {
    let (offset, len) = (entry.file_offset, u64::from(entry.length));
    if offset < MIB || offset % MIB != 0 {
        let problem = format!("is {offset}, and has to be a multiple of 1 MiB");
        return Err(RegionTableEntry::malformed(at, "file_offset", problem));
    }
    if len == 0 || len % MIB != 0 {
        let problem = format!("is {len}, and has to be a multiple of 1 MiB");
        return Err(RegionTableEntry::malformed(at, "length", problem));
    }
    if offset.checked_add(len).is_none_or(|end| end > file_size) {
        let problem = format!(
            "the {name} at byte {offset}, {len} bytes long, reaches past the end of the file at \
             {file_size}"
        );
        return Err(RegionTableEntry::malformed(at, "file_offset", problem));
    }
    match taken.add(offset, len, name) {
        Ok(()) => Ok(Region { offset, len }),
        Err(other) => {
            let problem = format!("the {name} at byte {offset} is in the {other}");
            Err(RegionTableEntry::malformed(at, "file_offset", problem))
        }
    }
}
