//! Lookup of guest ranges in the block map.

use crate::error::{Error, Result};
use crate::image::Request;
use crate::map::{BlockMap, Held, Run, TableReader};
use crate::ondisk::TableEntry;
use crate::source::BlockSource;

use super::VDI;
use super::header::{BlockEntry, Header};

/// Reads the first `count` entries of the map, all of which has to be in the file; if what can be is to be
/// salvaged, as far as they can be read.
pub(super) fn read_entries(
    source: &dyn BlockSource,
    header: &Header,
    count: u64,
    request: &Request<'_>,
) -> Result<(Vec<BlockEntry>, TableReader)> {
    let len = header.map_len();
    request.limits.check_metadata("the block map", len)?;
    let (start, file_size) = (header.offset_blocks, source.size());
    if start.checked_add(len).is_none_or(|end| end > file_size) {
        let problem = format!("{len} bytes long, reaches past the end of the file at {file_size}");
        return Err(Error::malformed(VDI, "block map", start, problem));
    }
    let mut table = vec![0; usize::try_from(count * 4).unwrap_or(0)];
    let reader = TableReader::of(VDI, request);
    reader.read(source, &mut table, start)?;
    Ok((BlockEntry::all(&table).collect(), reader))
}

/// The blocks of an image.
#[derive(Debug)]
pub(super) struct VdiMap {
    entries: Vec<BlockEntry>,
    offset_data: u64,
    block_size: u64,
    block_extra: u64,
    /// Virtual size in bytes.
    size: u64,
    file_size: u64,
    /// Blocks that several entries have, or that lie in the map, in order, if what can be is to be salvaged:
    /// else there are none.
    shared: Vec<BlockEntry>,
    /// Host offset of the map.
    start: u64,
    reader: TableReader,
}

impl VdiMap {
    /// Reads the map and checks that no block lies in it, or in another one.
    pub(super) fn read(
        source: &dyn BlockSource,
        header: &Header,
        request: &Request<'_>,
    ) -> Result<Self> {
        // Blocks past the end of the disk belong to nothing.
        let used = header.disk_size.div_ceil(header.block_size);
        let (entries, reader) = read_entries(source, header, used, request)?;
        let mut map = VdiMap {
            entries,
            offset_data: header.offset_data,
            block_size: header.block_size,
            block_extra: header.block_extra,
            size: header.disk_size,
            file_size: source.size(),
            shared: Vec::new(),
            start: header.offset_blocks,
            reader,
        };
        let start = header.offset_blocks;
        map.check(start, start + header.map_len())?;
        Ok(map)
    }

    /// Number of stored blocks, and the highest of their numbers plus 1; `None` if one is past the end of the
    /// file.
    pub(super) fn in_use(&self) -> Option<(u64, u64)> {
        let (mut count, mut next) = (0, 0);
        for (entry, index) in self.entries.iter().zip(0_u64..) {
            let Some(number) = entry.number() else {
                continue;
            };
            self.block(index * self.block_size).ok()?;
            count += 1;
            next = next.max(number + 1);
        }
        Some((count, next))
    }

    /// Host offset of the data of a block.
    fn host(&self, entry: BlockEntry) -> u64 {
        let number = entry.number().unwrap_or(0);
        self.offset_data + number * (self.block_size + self.block_extra) + self.block_extra
    }

    fn check(&mut self, map_start: u64, map_end: u64) -> Result<()> {
        let stored = self
            .entries
            .iter()
            .zip(0_u64..)
            .filter(|(entry, _)| entry.number().is_some())
            .filter(|(_, index)| !self.reader.is_unread(self.start + index * 4, 4));
        let mut stored: Vec<(BlockEntry, u32)> = stored
            .map(|(entry, index)| (*entry, u32::try_from(index).unwrap_or(u32::MAX)))
            .collect();
        let bad = |index: u32, problem: String| {
            Err(Error::malformed(
                VDI,
                "block map",
                map_start + u64::from(index) * 4,
                problem,
            ))
        };
        stored.sort_unstable();
        let (mut before, mut shared) = (None, Vec::new());
        for (entry, index) in stored {
            let start = self.host(entry) - self.block_extra;
            let end = start + self.block_extra + self.block_size;
            let problem = if start < map_end && map_start < end {
                format!(
                    "entry {index} is {}, which is a block in the map itself",
                    entry.raw()
                )
            } else if before == Some(entry) {
                format!(
                    "entry {index} is {}, which is another entry's block",
                    entry.raw()
                )
            } else {
                before = Some(entry);
                continue;
            };
            if !self.reader.salvages() {
                return bad(index, problem);
            }
            shared.push(entry);
        }
        self.shared = shared;
        Ok(())
    }

    /// The status of the block with the guest's bytes at `guest`.
    fn block(&self, guest: u64) -> Result<Run> {
        let index = guest / self.block_size;
        let place = self.start + index * 4;
        self.reader.check("block map", place, 4)?;
        let entry = usize::try_from(index)
            .ok()
            .and_then(|index| self.entries.get(index));
        let host = match entry.copied().unwrap_or(BlockEntry::FREE) {
            BlockEntry::FREE => return Ok(Run::Unallocated),
            BlockEntry::ZERO => return Ok(Run::Zero),
            entry if self.shared.binary_search(&entry).is_ok() => {
                let problem = format!(
                    "entry {index} is {}, a block that is not its own",
                    entry.raw()
                );
                return Err(Error::malformed(VDI, "block map", None, problem));
            }
            entry => self.host(entry),
        };
        let start = index * self.block_size;
        // The last block may end with the disk; what is salvaged may end anywhere.
        let needed = match self.reader.salvages() {
            true => guest - start + 1,
            false => self.size.saturating_sub(start).min(self.block_size),
        };
        if host + needed > self.file_size {
            return Err(self.past_end(start, host, self.file_size));
        }
        Ok(Run::Stored {
            host: host + guest % self.block_size,
        })
    }
}

impl BlockMap for VdiMap {
    fn unit(&self) -> u64 {
        self.block_size
    }

    fn step(&self, guest: u64, _: &mut Held) -> Result<(Run, u64)> {
        let run = self.block(guest)?;
        let left = self.block_size - guest % self.block_size;
        let there = match run {
            Run::Stored { host } => self.file_size.saturating_sub(host),
            _ => u64::MAX,
        };
        Ok((run, left.min(there)))
    }

    fn past_end(&self, guest: u64, host: u64, file_size: u64) -> Error {
        let problem = format!(
            "the block of guest offset {guest} at byte {host} reaches past the end of the file at \
             {file_size}: it was cut short"
        );
        Error::malformed(VDI, "block", host, problem)
    }
}
