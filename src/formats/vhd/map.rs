//! Lookup of guest ranges in the block allocation table and the bitmaps of the blocks.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::map::{BlockMap, Held, Run, Table, TableReader};
use crate::source::{BlockSource, BlockSourceExt};

use super::header::{BatEntry, Tables, bitmap_len};
use super::{SECTOR, VHD};

/// The blocks of a dynamic or differencing disk.
#[derive(Debug)]
pub(super) struct VhdMap {
    file: Arc<dyn BlockSource>,
    bat: Vec<BatEntry>,
    block_size: u64,
    /// Virtual size in bytes.
    size: u64,
    /// End of the data in the file.
    data_end: u64,
    sectors: Option<SectorBitmaps>,
    /// Blocks that are not told apart from others, or from metadata, in order.
    shared: Vec<u64>,
    /// Host offset of the table.
    table_offset: u64,
    reader: TableReader,
}

/// The bitmaps of a differencing disk: which sectors of a block are its own.
///
/// Those of a dynamic disk are not looked at. What stands in a block of it is the disk's, whatever
/// the bitmap says: writers differ over clear bits, and none is known to leave other data under them. Where
/// there is some, a check tells.
#[derive(Debug)]
pub(super) struct SectorBitmaps {
    /// True if the first sector's bit is the least significant one of its byte.
    pub(super) lsb_first: bool,
    /// The bitmap of blocks that are the image's own as a whole, the first block's bit being the most
    /// significant one, if there is one.
    pub(super) full_blocks: Option<Vec<u8>>,
}

impl VhdMap {
    pub(super) fn new(
        file: Arc<dyn BlockSource>,
        tables: Tables,
        size: u64,
        data_end: u64,
        sectors: Option<SectorBitmaps>,
    ) -> Self {
        VhdMap {
            file,
            bat: tables.bat,
            block_size: tables.block_size,
            size,
            data_end,
            sectors,
            shared: tables.shared,
            table_offset: tables.header.table_offset,
            reader: tables.reader,
        }
    }

    /// Returns the host offset of the block for `guest`, if it is in the file.
    fn block(&self, guest: u64) -> Result<Option<u64>> {
        let index = guest / self.block_size;
        let place = self.table_offset + index * 4;
        self.reader.check("block allocation table", place, 4)?;
        let entry = usize::try_from(index)
            .ok()
            .and_then(|index| self.bat.get(index));
        let Some(host) = entry.and_then(|entry| entry.start()) else {
            return Ok(None);
        };
        let start = index * self.block_size;
        if self.shared.binary_search(&index).is_ok() {
            let problem = format!("entry {index} points into metadata or another block");
            return Err(Error::malformed(
                VHD,
                "block allocation table",
                None,
                problem,
            ));
        }
        let needed = match self.reader.salvages() {
            // The part that is read, and the bitmap before it.
            true => guest - start + 1,
            false => self.size.saturating_sub(start).min(self.block_size),
        };
        let end = host + bitmap_len(self.block_size) + needed;
        if end > self.data_end {
            return Err(self.past_end(start, host, self.data_end));
        }
        Ok(Some(host))
    }

    /// The bitmap of the block at `host`.
    fn bitmap(&self, guest: u64, host: u64) -> Result<Option<Table>> {
        let entries = self.reader.table(host, || {
            let mut bitmap = vec![0; usize::try_from(bitmap_len(self.block_size)).unwrap_or(0)];
            self.file.read_exact_at(&mut bitmap, host)?;
            Ok(bitmap)
        })?;
        let start = guest - guest % self.block_size;
        Ok(Some(Table {
            guest: start..start + self.block_size,
            host,
            entries,
        }))
    }
}

impl SectorBitmaps {
    pub(super) fn is_full(&self, block: u64) -> bool {
        let byte = |map: &Vec<u8>| {
            usize::try_from(block / 8)
                .ok()
                .and_then(|at| map.get(at).copied())
        };
        let byte = self.full_blocks.as_ref().and_then(byte).unwrap_or(0);
        byte & (0x80 >> (block % 8)) != 0
    }

    /// Returns whether the sector `into` bytes into a block is the image's own, and for how many bytes, up
    /// to `limit`, that goes on.
    pub(super) fn run(&self, bitmap: &[u8], into: u64, limit: u64) -> (bool, u64) {
        let first = into / SECTOR;
        let end = (into + limit).div_ceil(SECTOR);
        let own = self.bit(bitmap, first);
        let uniform = if own { 0xff } else { 0 };
        let mut sector = first + 1;
        while sector < end {
            let byte = usize::try_from(sector / 8)
                .ok()
                .and_then(|at| bitmap.get(at));
            if sector % 8 == 0 && byte == Some(&uniform) {
                sector += 8;
            } else if self.bit(bitmap, sector) == own {
                sector += 1;
            } else {
                break;
            }
        }
        (own, (sector * SECTOR - into).min(limit))
    }

    fn bit(&self, bitmap: &[u8], sector: u64) -> bool {
        let byte = usize::try_from(sector / 8)
            .ok()
            .and_then(|at| bitmap.get(at));
        let byte = byte.copied().unwrap_or(0);
        let byte = if self.lsb_first {
            byte.reverse_bits()
        } else {
            byte
        };
        byte & (0x80 >> (sector % 8)) != 0
    }
}

impl BlockMap for VhdMap {
    fn unit(&self) -> u64 {
        self.block_size
    }

    fn step(&self, guest: u64, held: &mut Held) -> Result<(Run, u64)> {
        let into = guest % self.block_size;
        let left = self.block_size - into;
        let Some(block) = self.block(guest)? else {
            return Ok((Run::Unallocated, left));
        };
        let host = block + bitmap_len(self.block_size) + into;
        // The file may end in the last block, and anywhere if the image is salvaged.
        let left = left.min(self.data_end.saturating_sub(host));
        let run = Run::Stored { host };
        match &self.sectors {
            Some(sectors) if !sectors.is_full(guest / self.block_size) => {
                let bitmap = held.table(guest, || self.bitmap(guest, block))?;
                let bitmap = bitmap.map_or(&[][..], |bitmap| &bitmap.entries);
                let (own, len) = sectors.run(bitmap, into, left);
                Ok((if own { run } else { Run::Unallocated }, len))
            }
            _ => Ok((run, left)),
        }
    }

    fn past_end(&self, guest: u64, host: u64, file_size: u64) -> Error {
        let problem = format!(
            "the block of guest offset {guest} at byte {host} reaches past the end of the data at \
             {file_size}: the file was cut short"
        );
        Error::malformed(VHD, "block", host, problem)
    }
}
