//! The header of dynamic and differencing disks: specification, "Dynamic Disk Header Format".

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::image::Request;
use crate::map::{Regions, TableReader};
use crate::ondisk::{TableEntry, on_disk, table_entry};
use crate::source::{BlockSource, BlockSourceExt};

use super::footer::{Footers, checksum};
use super::{SECTOR, VHD};

pub(super) const COOKIE: [u8; 8] = *b"cxsparse";
/// `Header Version` of the specification.
pub(super) const VERSION: u32 = 0x0001_0000;
/// The largest block that is read, in bytes. The specification has none, and tools write 2 MiB or
/// 512 KiB: what is far from these is no block size.
pub(super) const MAX_BLOCK: u64 = 256 << 20;

/// Bytes of all parent locators.
pub(super) const LOCATORS_LEN: usize = 8 * Locator::LEN;

table_entry! {
    /// An entry of the block allocation table: the sector where a block begins.
    pub(super) struct BatEntry(u32), Big;
}

impl BatEntry {
    /// The entry of a block that is not in the file.
    pub(super) const UNUSED: Self = BatEntry(u32::MAX);

    /// Host offset of the block, if it is in the file.
    pub(super) fn start(self) -> Option<u64> {
        (self != Self::UNUSED).then(|| u64::from(self.0) * SECTOR)
    }
}

on_disk! {
    /// "Dynamic Disk Header Format".
    pub(super) struct Header in VHD, "dynamic disk header", Big, 1024 bytes {
        cookie: [u8; 8] = 0,
        data_offset: u64 = 8,
        table_offset: u64 = 16,
        header_version: u32 = 24,
        max_table_entries: u32 = 28,
        block_size: u32 = 32,
        checksum: u32 = 36,
        parent_unique_id: Uuid = 40,
        parent_time_stamp: u32 = 56,
        parent_unicode_name: [u8; 512] = 64,
        parent_locators: [u8; LOCATORS_LEN] = 576,
    }
}

on_disk! {
    /// "Parent Locator Entry".
    pub(super) struct Locator in VHD, "parent locator", Big, 24 bytes {
        platform_code: [u8; 4] = 0,
        platform_data_space: u32 = 4,
        data_length: u32 = 8,
        data_offset: u64 = 16,
    }
}

impl Header {
    /// The header as bytes, with its checksum.
    pub(super) fn sealed(&self) -> [u8; Header::LEN] {
        let mut header = *self;
        header.checksum = checksum(&header.encode(), Header::checksum);
        header.encode()
    }

    /// The parent locators that are in use, each with its place.
    pub(super) fn locators(&self, at: u64) -> Result<Vec<Locator>> {
        let mut locators = Vec::new();
        for (bytes, place) in self
            .parent_locators
            .chunks_exact(Locator::LEN)
            .zip((Header::parent_locators.at(at)..).step_by(Locator::LEN))
        {
            let locator = Locator::parse(bytes, place)?;
            if locator.platform_code != [0; 4] {
                locators.push(locator);
            }
        }
        Ok(locators)
    }
}

/// Bytes of the bitmap that stands before a block's data: a bit for each sector, in whole sectors.
pub(super) fn bitmap_len(block_size: u64) -> u64 {
    (block_size / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
}

/// The header and the block allocation table, checked.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) header: Header,
    /// Host offset of the header.
    pub(super) at: u64,
    pub(super) block_size: u64,
    /// The sector of each block of the disk.
    pub(super) bat: Vec<BatEntry>,
    /// True if the header's checksum is wrong.
    pub(super) damaged: bool,
    /// Blocks that lie in metadata or in each other, in order, if what can be is to be salvaged: else
    /// there are none.
    pub(super) shared: Vec<u64>,
    /// Reader of the block allocation table.
    pub(super) reader: TableReader,
}

impl Tables {
    /// Reads the tables of a disk of `size` bytes.
    pub(super) fn read(
        source: &dyn BlockSource,
        footers: &Footers,
        size: u64,
        request: &Request<'_>,
    ) -> Result<Self> {
        let (mut tables, regions) = Self::load(source, footers, size, request)?;
        tables.check_blocks(&regions, size, request.salvages)?;
        Ok(tables)
    }

    /// Reads the tables without a look at what the BAT says, and where the metadata is.
    pub(super) fn load(
        source: &dyn BlockSource,
        footers: &Footers,
        size: u64,
        request: &Request<'_>,
    ) -> Result<(Self, Regions)> {
        let at = footers.footer.data_offset;
        // It has to be in the file, and apart from the footer.
        Metadata::of_headers(source.size(), at)?;
        let mut bytes = [0; Header::LEN];
        source.read_exact_at(&mut bytes, at)?;
        let header = Header::parse(&bytes, at)?;
        if header.cookie != COOKIE {
            return Err(Header::malformed(at, "cookie", "is not \"cxsparse\""));
        }
        if header.header_version >> 16 != VERSION >> 16 {
            return Err(Error::unsupported(
                VHD,
                format!("header version {:#010x}", header.header_version),
                None,
            ));
        }
        let damaged = checksum(&bytes, Header::checksum) != header.checksum;
        let (mut tables, regions) = Self::of_header(source, footers, size, header, request)?;
        tables.damaged = damaged;
        Ok((tables, regions))
    }

    /// The same with this header, whatever stands in the file.
    pub(super) fn of_header(
        source: &dyn BlockSource,
        footers: &Footers,
        size: u64,
        header: Header,
        request: &Request<'_>,
    ) -> Result<(Self, Regions)> {
        let at = footers.footer.data_offset;
        let mut metadata = Metadata::of_headers(source.size(), at)?;
        let block_size = u64::from(header.block_size);
        if !block_size.is_power_of_two() || !(SECTOR..=MAX_BLOCK).contains(&block_size) {
            let problem =
                format!("is {block_size}, and has to be a power of two from 512 to {MAX_BLOCK}");
            return Err(Header::malformed(at, "block_size", problem));
        }
        let entries = u64::from(header.max_table_entries);
        let needed = size.div_ceil(block_size);
        if entries < needed {
            let problem = format!("is {entries}, and a disk of {size} bytes needs {needed}");
            return Err(Header::malformed(at, "max_table_entries", problem));
        }
        let limits = request.limits;
        limits.check_metadata("the block allocation table", entries * 4)?;
        metadata.claim("block allocation table", header.table_offset, entries * 4)?;
        if header.table_offset % SECTOR != 0 {
            let problem = format!("is {}, not a multiple of a sector", header.table_offset);
            return Err(Header::malformed(at, "table_offset", problem));
        }
        for locator in header.locators(at)? {
            // A locator that leads nowhere keeps the parent from being found, not the blocks.
            let _ = metadata.claim(
                "parent locator",
                locator.data_offset,
                locator.data_length.into(),
            );
        }
        let mut table = vec![0; usize::try_from(needed * 4).unwrap_or(0)];
        let reader = TableReader::of(VHD, request);
        reader.read(source, &mut table, header.table_offset)?;
        let bat = BatEntry::all(&table).collect();
        let tables = Tables {
            shared: Vec::new(),
            reader,
            damaged: false,
            header,
            at,
            block_size,
            bat,
        };
        if footers.data_end < source.size() {
            metadata.claim("footer", footers.data_end, source.size() - footers.data_end)?;
        }
        Ok((tables, metadata.regions))
    }

    /// Bytes of a block in the file, as far as the disk needs them: the last one may end early.
    pub(super) fn stored_len(&self, index: u64, size: u64) -> u64 {
        let data = size
            .saturating_sub(index * self.block_size)
            .min(self.block_size);
        bitmap_len(self.block_size) + data
    }

    /// No block may lie in metadata or in another block; if what can be is to be salvaged, those that do
    /// are noted.
    pub(super) fn check_blocks(
        &mut self,
        regions: &Regions,
        size: u64,
        salvages: bool,
    ) -> Result<()> {
        let blocks = self
            .bat
            .iter()
            .zip(0_u64..)
            .filter(|(entry, _)| entry.start().is_some())
            .filter(|(_, index)| {
                !self
                    .reader
                    .is_unread(self.header.table_offset + index * 4, 4)
            });
        let mut blocks: Vec<(BatEntry, u32)> = blocks
            .map(|(entry, index)| (*entry, u32::try_from(index).unwrap_or(u32::MAX)))
            .collect();
        let bad = |index: u64, problem: String| {
            let at = self.header.table_offset + index * 4;
            Err(Error::malformed(VHD, "block allocation table", at, problem))
        };
        blocks.sort_unstable();
        let mut shared = Vec::new();
        let (mut end_before, mut index_before) = (0, 0);
        for (entry, index) in blocks {
            let (start, index) = (entry.start().unwrap_or(0), u64::from(index));
            let end = start + self.stored_len(index, size);
            let other = regions.overlapping(start, end - start);
            let overlaps = start < end_before;
            if salvages {
                shared.extend((other.is_some() || overlaps).then_some(index));
                shared.extend(overlaps.then_some(index_before));
            } else if let Some(other) = other {
                return bad(
                    index,
                    format!("entry {index} points into the {other}, to byte {start}"),
                );
            } else if overlaps {
                return bad(
                    index,
                    format!("entry {index} points into another block, to byte {start}"),
                );
            }
            // One that leads into metadata takes nothing from another one.
            if end > end_before && other.is_none() {
                (end_before, index_before) = (end, index);
            }
        }
        shared.sort_unstable();
        self.shared = shared;
        Ok(())
    }
}

/// The ranges of the file that are metadata: none lies in another one, or past the end.
#[derive(Debug)]
struct Metadata {
    file_size: u64,
    regions: Regions,
}

impl Metadata {
    /// The copy of the footer and the header, which is at `at`.
    fn of_headers(file_size: u64, at: u64) -> Result<Self> {
        let mut metadata = Metadata {
            file_size,
            regions: Regions::default(),
        };
        metadata.claim("copy of the footer", 0, SECTOR)?;
        metadata.claim("dynamic disk header", at, Header::LEN as u64)?;
        Ok(metadata)
    }

    fn claim(&mut self, name: &'static str, start: u64, len: u64) -> Result<()> {
        let end = start.checked_add(len);
        let problem = if end.is_none_or(|end| end > self.file_size) {
            format!(
                "{len} bytes long, reaches past the end of the file at {}",
                self.file_size
            )
        } else {
            match self.regions.add(start, len, name) {
                Ok(()) => return Ok(()),
                Err(other) => format!("lies in the {other}"),
            }
        };
        Err(Error::malformed(VHD, name, start, problem))
    }
}
