//! The layout of hosted sparse and COWD extents: grain directories and the metadata around them.

use std::ops::Range;

use crate::error::Result;
use crate::limits::Limits;
use crate::map::{Regions, read_what_is_left};
use crate::ondisk::TableEntry;
use crate::source::{BlockSource, BlockSourceExt};
use crate::zero::is_zero;

use super::alias::metadata;
use super::entry::GrainDirectoryEntry;
use super::header::{COWD_TABLE_ENTRIES, CowdHeader, Flags, SECTOR, SparseExtentHeader};
use super::malformed;

/// The sizes that the place and size of a grain directory follow from.
pub(super) struct Layout {
    /// Entries of a grain table.
    pub(super) entries: u64,
    /// Bytes of a grain.
    pub(super) grain: u64,
    /// Bytes of the guest that the extent has room for.
    pub(super) capacity: u64,
    /// Ranges in which no table may lie, each a start and an end in bytes.
    pub(super) reserved: Vec<(u64, u64)>,
}

/// Host offset of the other grain directory, if there is one.
pub(super) fn second_directory(header: &SparseExtentHeader) -> Option<u64> {
    let redundant = header.flag_set().contains(Flags::REDUNDANT_DIRECTORY) && header.rgd_offset > 0;
    redundant.then(|| header.rgd_offset.saturating_mul(SECTOR))
}

/// A grain directory as far as it can be had.
pub(super) struct WhatIsLeft {
    pub(super) directory: Vec<u8>,
    /// Ranges of it that could not be read.
    pub(super) unread: Vec<Range<u64>>,
    pub(super) regions: Regions,
}

impl Layout {
    /// Of a hosted sparse extent with that header at its start, and the one that is in force.
    pub(super) fn hosted(first: &SparseExtentHeader, header: &SparseExtentHeader) -> Result<Self> {
        Ok(Layout {
            entries: header.num_gtes_per_gt.into(),
            grain: header.grain_size * SECTOR,
            capacity: header.capacity * SECTOR,
            reserved: vec![
                (0, SECTOR),
                range(first.descriptor_offset, first.descriptor_size)?,
            ],
        })
    }

    /// Of a COWD extent.
    pub(super) fn cowd(header: &CowdHeader) -> Result<Self> {
        let layout = Layout {
            entries: COWD_TABLE_ENTRIES,
            grain: u64::from(header.grain_size) * SECTOR,
            capacity: u64::from(header.num_sectors) * SECTOR,
            reserved: vec![(0, CowdHeader::LEN as u64)],
        };
        let (there, needed) = (header.num_gd_entries, layout.directory_entries());
        if u64::from(there) < needed {
            let problem = format!("is {there}, and the capacity needs {needed}");
            return Err(CowdHeader::malformed(0, "num_gd_entries", problem));
        }
        Ok(layout)
    }

    pub(super) fn directory_entries(&self) -> u64 {
        self.capacity.div_ceil(self.entries * self.grain)
    }

    /// Reads what there is of the grain directory at a sector, whatever is wrong with it.
    pub(super) fn what_is_left(
        &self,
        file: &dyn BlockSource,
        sector: u64,
        limits: &Limits,
    ) -> Result<WhatIsLeft> {
        let len = self.directory_entries().saturating_mul(4);
        limits.check_metadata("the grain directory", len)?;
        let start = sector.saturating_mul(SECTOR);
        let there = file.size().saturating_sub(start).min(len);
        let mut directory = vec![0; usize::try_from(there).unwrap_or(0)];
        // If it cannot be read, the other directory is asked for each table.
        let unread = match read_what_is_left(file, &mut directory, start) {
            Ok(bad) => bad
                .into_iter()
                .map(|bad| bad.start - start..bad.end - start)
                .collect(),
            Err(_) => {
                directory.clear();
                Vec::new()
            }
        };
        directory.truncate(directory.len() / 4 * 4);
        let mut ranges = self.reserved.clone();
        ranges.push((start, start.saturating_add(there)));
        for table in GrainDirectoryEntry::all(&directory).filter_map(GrainDirectoryEntry::table) {
            let end = table + self.entries * 4;
            if end <= file.size() {
                ranges.push((table, end));
            }
        }
        Ok(WhatIsLeft {
            directory,
            unread,
            regions: metadata(ranges).0,
        })
    }

    /// Reads the grain directory at a sector.
    pub(super) fn read_directory(
        &self,
        file: &dyn BlockSource,
        sector: u64,
        limits: &Limits,
    ) -> Result<Vec<u8>> {
        let len = self.directory_entries().saturating_mul(4);
        limits.check_metadata("the grain directory", len)?;
        let start = sector.saturating_mul(SECTOR);
        let end = start.checked_add(len);
        if end.is_none_or(|end| end > file.size()) {
            let problem = format!(
                "{len} bytes long, lies past the end of the file at {}",
                file.size()
            );
            return Err(malformed("grain directory", start, problem));
        }
        let mut directory = vec![0; usize::try_from(len).unwrap_or(0)];
        file.read_exact_at(&mut directory, start)?;
        Ok(directory)
    }

    /// Reads the grain directory at a sector, and checks that its tables are in the file and apart.
    pub(super) fn directory(
        &self,
        file: &dyn BlockSource,
        sector: u64,
        limits: &Limits,
    ) -> Result<(Vec<u8>, Regions)> {
        let directory = self.read_directory(file, sector, limits)?;
        let (start, len) = (sector.saturating_mul(SECTOR), directory.len() as u64);
        let table_len = self.entries * 4;
        let mut ranges = self.reserved.clone();
        ranges.push((start, start + len));
        for table in GrainDirectoryEntry::all(&directory).filter_map(GrainDirectoryEntry::table) {
            if table + table_len > file.size() {
                let problem = format!(
                    "refers to a grain table at byte {table}, and the file ends at {}",
                    file.size()
                );
                return Err(malformed("grain directory", start, problem));
            }
            ranges.push((table, table + table_len));
        }
        match metadata(ranges) {
            (regions, None) => Ok((directory, regions)),
            (_, Some(at)) => {
                let problem = format!("or one of its tables overlaps other metadata at byte {at}");
                Err(malformed("grain directory", start, problem))
            }
        }
    }

    /// Fails where a directory has no table and its copy at byte `second` has one with grains: which of
    /// them lost or made up an entry, cannot be known. A copy that is not valid proves nothing.
    pub(super) fn compare(
        &self,
        file: &dyn BlockSource,
        directory: &[u8],
        second: u64,
    ) -> Result<()> {
        let mut copy = vec![0; directory.len()];
        let n = file.read_at(&mut copy, second)?;
        copy.truncate(n);
        let mut table = vec![0; usize::try_from(self.entries * 4).unwrap_or(0)];
        let tables =
            |directory| GrainDirectoryEntry::all(directory).map(GrainDirectoryEntry::table);
        let pairs = tables(directory).zip(tables(&copy));
        let unlike = pairs
            .zip(0_u64..)
            .filter_map(|((own, other), index)| match own {
                None => Some((index, other?)),
                Some(_) => None,
            });
        for (index, at) in unlike.take(MOST_COMPARED) {
            let end = at.saturating_add(table.len() as u64);
            if end > file.size() {
                continue;
            }
            file.read_exact_at(&mut table, at)?;
            if !is_zero(&table) {
                let problem = format!(
                    "has a table with grains for entry {index}, for which the grain directory has none"
                );
                return Err(malformed("redundant grain directory", second, problem));
            }
        }
        Ok(())
    }
}

/// The most entries that are compared of those that only the copy of a directory has.
const MOST_COMPARED: usize = 1024;

/// The bytes of so many sectors.
fn range(sector: u64, sectors: u64) -> Result<(u64, u64)> {
    let end = sector.checked_add(sectors);
    match (
        sector.checked_mul(SECTOR),
        end.and_then(|end| end.checked_mul(SECTOR)),
    ) {
        (Some(start), Some(end)) => Ok((start, end)),
        _ => {
            let problem = format!("is sector {sector}, which no file has");
            Err(SparseExtentHeader::malformed(
                0,
                "descriptor_offset",
                problem,
            ))
        }
    }
}
