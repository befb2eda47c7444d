//! Space-efficient sparse extents of ESXi hosts (`seSparse`), as QEMU and dissect found them to be:
//! VMware published nothing. No file of a real host was seen.

use std::sync::Arc;

use crate::error::Result;
use crate::image::Request;
use crate::limits::Limits;
use crate::ondisk::TableEntry;
use crate::source::{BlockSource, BlockSourceExt};

use super::alias::metadata;
use super::entry::{Grain, SeDirectoryEntry, SeGrainEntry};
use super::header::{
    SE_SPARSE_MAGIC, SE_SPARSE_VOLATILE_MAGIC, SECTOR, SECTOR_LEN, SeSparseConstHeader,
    SeSparseVolatileHeader, unsupported,
};
use super::layout::Layout;
use super::malformed;
use super::map::{GrainMap, Tables};

const ENTRY_LEN: u64 = 8;

/// Tables of 64-bit entries, in an area of their own.
#[derive(Debug)]
pub(super) struct SeSparseTables {
    /// The grain directory as it stands in the file.
    directory: Vec<u8>,
    tables_start: u64,
    tables_end: u64,
    table_len: u64,
    grains_start: u64,
    grain: u64,
}

impl Tables for SeSparseTables {
    fn entry_len(&self) -> usize {
        8
    }

    fn table(&self, index: u64) -> Result<Option<u64>> {
        self.table_of(SeDirectoryEntry::decode(&self.directory, index).unwrap_or_default())
    }

    fn entry(&self, raw: &[u8]) -> Result<Grain> {
        let entry = SeGrainEntry::decode(raw, 0).unwrap_or_default();
        entry.grain(self.grains_start, self.grain).ok_or_else(|| {
            let problem = format!("has the entry {entry:#x}, which is not known");
            malformed("grain table", 0, problem)
        })
    }
}

impl SeSparseTables {
    fn table_of(&self, entry: SeDirectoryEntry) -> Result<Option<u64>> {
        if entry.is_empty() {
            return Ok(None);
        }
        let start = entry
            .table()
            .map(|number| self.tables_start + number * self.table_len);
        let start = start.filter(|start| start + self.table_len <= self.tables_end);
        start.map(Some).ok_or_else(|| {
            let problem = format!("has the entry {entry:#x}, which means no grain table");
            malformed("grain directory", 0, problem)
        })
    }
}

/// Such an extent before its tables are read.
pub(super) struct Loaded {
    pub(super) tables: SeSparseTables,
    pub(super) layout: Layout,
}

/// Reads the headers and the grain directory.
pub(super) fn load(file: &dyn BlockSource, limits: &Limits) -> Result<Loaded> {
    let header = SeSparseConstHeader::parse(&sector_at(file, 0)?, 0)?;
    if header.magic != u64::from_le_bytes(SE_SPARSE_MAGIC) {
        return Err(SeSparseConstHeader::malformed(0, "magic", "is another"));
    }
    header.check()?;
    check_volatile(file, header.volatile_header_offset)?;

    let span = |field: &'static str, offset: u64, sectors: u64| {
        let start = offset.checked_mul(SECTOR);
        let end = offset
            .checked_add(sectors)
            .and_then(|end| end.checked_mul(SECTOR));
        match (start, end) {
            (Some(start), Some(end)) if end <= file.size() => Ok((start, end)),
            _ => {
                let problem = format!("and its size lie past the end at {}", file.size());
                Err(SeSparseConstHeader::malformed(0, field, problem))
            }
        }
    };
    let directory = span(
        "grain_dir_offset",
        header.grain_dir_offset,
        header.grain_dir_size,
    )?;
    let tables = span(
        "grain_tables_offset",
        header.grain_tables_offset,
        header.grain_tables_size,
    )?;
    let grains = span("grains_offset", header.grains_offset, 0)?;

    let capacity = header.capacity * SECTOR;
    let grain = header.grain_size * SECTOR;
    let table_len = header.grain_table_size * SECTOR;
    let entries = table_len / ENTRY_LEN;
    let len = capacity.div_ceil(entries * grain) * ENTRY_LEN;
    limits.check_metadata("the grain directory", len)?;
    if len > directory.1 - directory.0 {
        let problem = "is too small for the capacity";
        return Err(SeSparseConstHeader::malformed(0, "grain_dir_size", problem));
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut bytes, directory.0)?;
    Ok(Loaded {
        tables: SeSparseTables {
            directory: bytes,
            tables_start: tables.0,
            tables_end: tables.1,
            table_len,
            grains_start: grains.0,
            grain,
        },
        layout: Layout {
            entries,
            grain,
            capacity,
            reserved: vec![(0, SECTOR), directory, tables],
        },
    })
}

/// Opens such an extent. `size` is how much of it the guest sees, in bytes.
pub(super) fn open(
    file: Arc<dyn BlockSource>,
    size: Option<u64>,
    request: &Request<'_>,
) -> Result<GrainMap<SeSparseTables>> {
    let Loaded { tables, layout } = load(&file, request.limits)?;
    let (regions, overlap) = metadata(layout.reserved.clone());
    if let Some(at) = overlap {
        let problem = format!("overlap at byte {at}");
        return Err(malformed("seSparse directory and tables", 0, problem));
    }
    refuse_shared_tables(&tables)?;
    Ok(GrainMap::new(file, tables, &layout, regions, size, request))
}

/// The size in bytes that the header of such an extent gives.
pub(super) fn capacity(file: &dyn BlockSource) -> Result<u64> {
    let header = SeSparseConstHeader::parse(&sector_at(file, 0)?, 0)?;
    header.check()?;
    Ok(header.capacity * SECTOR)
}

pub(super) fn refuse_shared_tables(tables: &SeSparseTables) -> Result<()> {
    let mut starts = Vec::new();
    for entry in SeDirectoryEntry::all(&tables.directory) {
        starts.extend(tables.table_of(entry)?);
    }
    starts.sort_unstable();
    match starts
        .iter()
        .zip(starts.iter().skip(1))
        .find(|(a, b)| a == b)
    {
        None => Ok(()),
        Some((at, _)) => {
            let problem = format!("has two entries for the grain table at byte {at}");
            Err(malformed("grain directory", 0, problem))
        }
    }
}

/// Fails if the last writes may only be in the journal: the tables are then behind.
fn check_volatile(file: &dyn BlockSource, offset: u64) -> Result<()> {
    let at = offset.saturating_mul(SECTOR);
    let header = SeSparseVolatileHeader::parse(&sector_at(file, at)?, at)?;
    if header.magic != SE_SPARSE_VOLATILE_MAGIC {
        return Err(SeSparseVolatileHeader::malformed(at, "magic", "is another"));
    }
    if header.replay_journal != 0 {
        return Err(unsupported("a seSparse journal to be replayed".into()));
    }
    Ok(())
}

fn sector_at(file: &dyn BlockSource, at: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; SECTOR_LEN];
    let n = file.read_at(&mut bytes, at)?;
    bytes.truncate(n);
    Ok(bytes)
}
