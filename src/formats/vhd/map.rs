//! Where a guest range lives: the block allocation table and the bitmaps of the blocks.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::ExtentKind;
use crate::map::{BlockMap, Run, Span, TableCache, Unread};
use crate::source::{BlockSource, BlockSourceExt};

use super::header::{Tables, UNUSED, bitmap_len};
use super::{SECTOR, VHD};

/// The blocks of a dynamic or differencing disk.
#[derive(Debug)]
pub(super) struct VhdMap {
    file: Arc<dyn BlockSource>,
    bat: Vec<u32>,
    block_size: u64,
    /// Virtual size in bytes.
    size: u64,
    /// Where the data of the file ends.
    data_end: u64,
    sectors: Option<SectorBitmaps>,
    /// Blocks that are not told apart from others, or from metadata, in order.
    shared: Vec<u64>,
    /// Whether what there is of a block that is cut short is told.
    pub(super) salvages: bool,
    /// Where the table is, and what of it could not be read.
    table_offset: u64,
    unread: Unread,
}

/// The bitmaps of a differencing disk: which sectors of a block are its own.
///
/// Those of a dynamic disk are not looked at. What stands in a block of it is the disk's, whatever
/// the bitmap says: writers differ over clear bits, and none is known to leave other data under them. Where
/// there is some, a check tells.
#[derive(Debug)]
pub(super) struct SectorBitmaps {
    pub(super) cache: TableCache,
    /// Whether the first sector's bit is the least significant one of its byte.
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
            salvages: false,
            table_offset: tables.header.table_offset,
            unread: tables.unread,
        }
    }

    /// Where the block with the guest's bytes at `guest` starts in the file, if it is there at all.
    fn block(&self, guest: u64) -> Result<Option<u64>> {
        let index = guest / self.block_size;
        let place = self.table_offset + index * 4;
        let name = "block allocation table";
        self.unread.check(VHD, name, place, 4)?;
        let entry = usize::try_from(index)
            .ok()
            .and_then(|index| self.bat.get(index));
        let Some(sector) = entry.copied().filter(|sector| *sector != UNUSED) else {
            return Ok(None);
        };
        let host = u64::from(sector) * SECTOR;
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
        let needed = match self.salvages {
            // What is read of it, and the bitmap before.
            true => guest - start + 1,
            false => self.size.saturating_sub(start).min(self.block_size),
        };
        let end = host + bitmap_len(self.block_size) + needed;
        if end > self.data_end {
            return Err(self.past_end(start, host, self.data_end));
        }
        Ok(Some(host))
    }

    /// How far blocks from `guest` on are not in the file, up to `limit` bytes.
    fn absent_span(&self, guest: u64, limit: u64) -> u64 {
        let first = guest / self.block_size;
        let from = usize::try_from(first).unwrap_or(usize::MAX);
        let entries = self.bat.get(from..).unwrap_or_default().iter();
        let absent = entries.take_while(|sector| **sector == UNUSED).count() as u64;
        ((first + absent.max(1)) * self.block_size - guest).min(limit)
    }

    fn run(&self, guest: u64, limit: u64) -> Result<(Run, u64)> {
        let Some(host) = self.block(guest)? else {
            return Ok((Run::Unallocated, self.absent_span(guest, limit)));
        };
        let into = guest % self.block_size;
        let there = self
            .data_end
            .saturating_sub(host + bitmap_len(self.block_size) + into);
        let limit = limit.min(self.block_size - into).min(there);
        let stored = Run::Stored {
            host: host + bitmap_len(self.block_size) + into,
        };
        match &self.sectors {
            Some(sectors) if !sectors.is_full(guest / self.block_size) => {
                let bitmap = sectors.cache.table(host, || self.read_bitmap(host))?;
                let (own, len) = sectors.run(&bitmap, into, limit);
                Ok((if own { stored } else { Run::Unallocated }, len))
            }
            _ => Ok((stored, limit)),
        }
    }

    fn read_bitmap(&self, host: u64) -> Result<Arc<Vec<u8>>> {
        let mut bitmap = vec![0; usize::try_from(bitmap_len(self.block_size)).unwrap_or(0)];
        self.file.read_exact_at(&mut bitmap, host)?;
        Ok(Arc::new(bitmap))
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

    /// Whether the sector `into` bytes into a block is the image's own, and for how many bytes, up to
    /// `limit`, that goes on.
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

    fn lookup(&self, guest: u64, limit: u64) -> Result<(Run, u64)> {
        self.run(guest, limit)
    }

    fn span(&self, guest: u64, limit: u64) -> Result<(Span, u64)> {
        let (run, len) = self.run(guest, limit)?;
        let span = match run {
            Run::Stored { host } => Span::Recorded(ExtentKind::Data, Some(host)),
            _ => Span::Unallocated,
        };
        Ok((span, len))
    }

    fn unpack(&self, _: &[u8], host: u64, _: &mut [u8]) -> Result<()> {
        Err(Error::malformed(VHD, "block", host, "is not packed"))
    }

    fn past_end(&self, guest: u64, host: u64, file_size: u64) -> Error {
        let problem = format!(
            "the block of guest offset {guest} at byte {host} reaches past the end of the data at \
             {file_size}: the file was cut short"
        );
        Error::malformed(VHD, "block", host, problem)
    }
}
