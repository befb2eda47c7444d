//! Hosted sparse extents (`KDMV`) and those of ESXi hosts (`COWD`).

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::Request;
use crate::ondisk::TableEntry;
use crate::source::{BlockSource, BlockSourceExt};

use super::alias::Seen;
use super::entry::{Grain, GrainDirectoryEntry, GrainEntry};
use super::header::{CowdHeader, Flags, GD_AT_END, SECTOR, SparseExtentHeader, header_at};
use super::layout::{Layout, second_directory};
use super::map::{GrainMap, GrainPacking, Tables};
use super::{VMDK, scan, stream};

/// Tables of 32-bit entries that count in sectors.
#[derive(Debug)]
pub(super) struct SectorTables {
    pub(super) file: Arc<dyn BlockSource>,
    /// The grain directory as it stands in the file.
    pub(super) directory: Vec<u8>,
    /// Host offset of the other directory, if there is one to fall back on.
    pub(super) second: Option<u64>,
    /// Set if the directory may be shorter than the disk needs.
    pub(super) cut: bool,
    /// Ranges of the directory that could not be read, from its start on.
    pub(super) unread: Vec<Range<u64>>,
    pub(super) zeroed_grains: bool,
}

impl SectorTables {
    /// The tables of a directory that is whole.
    pub(super) fn new(
        file: &Arc<dyn BlockSource>,
        directory: Vec<u8>,
        zeroed_grains: bool,
    ) -> Self {
        SectorTables {
            file: Arc::clone(file),
            directory,
            second: None,
            cut: false,
            unread: Vec::new(),
            zeroed_grains,
        }
    }
}

impl Tables for SectorTables {
    fn entry_len(&self) -> usize {
        4
    }

    fn table(&self, index: u64) -> Result<Option<u64>> {
        let entry = GrainDirectoryEntry::decode(&self.directory, index);
        if entry.is_none() && self.cut {
            let problem = format!("lacks entry {index}: it was cut short");
            return Err(Error::malformed(VMDK, "grain directory", None, problem));
        }
        let at = index.saturating_mul(4);
        if self
            .unread
            .iter()
            .any(|bad| bad.start < at + 4 && at < bad.end)
        {
            let problem = format!("has an entry {index} that cannot be read");
            return Err(Error::malformed(VMDK, "grain directory", None, problem));
        }
        Ok(entry.and_then(GrainDirectoryEntry::table))
    }

    fn all(&self) -> Vec<u64> {
        let entries = GrainDirectoryEntry::all(&self.directory);
        entries.filter_map(GrainDirectoryEntry::table).collect()
    }

    fn second_table(&self, index: u64) -> Option<u64> {
        let mut raw = [0; GrainDirectoryEntry::LEN];
        let at = self.second?.checked_add(index.checked_mul(4)?)?;
        self.file.read_exact_at(&mut raw, at).ok()?;
        GrainDirectoryEntry::decode(&raw, 0)?.table()
    }

    fn entry(&self, raw: &[u8]) -> Result<Grain> {
        let entry = GrainEntry::decode(raw, 0).unwrap_or_default();
        Ok(entry.grain(self.zeroed_grains))
    }
}

/// A hosted sparse extent: its header, and where its grains are.
#[derive(Debug)]
pub(super) struct SparseExtent {
    pub(super) map: GrainMap<SectorTables>,
    /// Oddities that do not keep it from being read.
    pub(super) warnings: Vec<String>,
}

/// Reads the header at the start of a hosted sparse extent.
pub(super) fn read_header(file: &dyn BlockSource) -> Result<SparseExtentHeader> {
    let header = header_at(file, 0)?;
    header.check(0)?;
    Ok(header)
}

/// The header of a hosted sparse extent that counts: that at its start, or the footer.
pub(super) struct InForce {
    file: Arc<dyn BlockSource>,
    first: SparseExtentHeader,
    header: SparseExtentHeader,
    warnings: Vec<String>,
}

impl InForce {
    /// Finds it for an extent that begins with `first`.
    pub(super) fn of(
        file: Arc<dyn BlockSource>,
        first: &SparseExtentHeader,
        request: &Request<'_>,
    ) -> Result<Self> {
        let mut found = InForce {
            first: *first,
            header: *first,
            warnings: Vec::new(),
            file,
        };
        match stream::in_force(&found.file, first) {
            Err(error) if request.salvages => {
                let warning = format!("the grains say where they belong: {error}");
                found.warnings.push(warning);
                let scanned = scan::scan(&found.file, first, request.limits)?;
                (found.file, found.header) = (scanned.file, scanned.header);
            }
            header => found.header = header?,
        }
        Ok(found)
    }

    /// Bytes of the guest that the extent has room for.
    pub(super) fn capacity(&self) -> u64 {
        self.header.capacity * SECTOR
    }
}

/// Opens a hosted sparse extent whose header was read. `size` is how much of it the guest sees, in
/// bytes: no more than its capacity.
pub(super) fn open_hosted(
    found: InForce,
    size: u64,
    request: &Request<'_>,
) -> Result<SparseExtent> {
    let (limits, salvages) = (request.limits, request.salvages);
    let InForce {
        file,
        first,
        header,
        mut warnings,
    } = found;
    if header.is_compressed() {
        limits.check_metadata("a compressed grain", header.grain_size * SECTOR)?;
    }
    let capacity = header.capacity * SECTOR;
    if header.over_head.saturating_mul(SECTOR) > file.size() && capacity > 0 && !salvages {
        let problem = format!(
            "is {} sectors, and the file has {} bytes",
            header.over_head,
            file.size()
        );
        return Err(SparseExtentHeader::malformed(0, "over_head", problem));
    }
    let layout = Layout::hosted(&first, &header)?;
    let mut second = second_directory(&header);
    let mut unread = Vec::new();
    let mut found = layout.directory(&file, header.gd_offset, limits);
    if let (Err(error @ Error::Malformed { .. }), Some(_)) = (&found, second) {
        if let Ok(other) = layout.directory(&file, header.rgd_offset, limits) {
            warnings.push(format!("the redundant grain directory is used: {error}"));
            (found, second) = (Ok(other), None);
        }
    }
    if let (true, Err(error)) = (salvages, &found) {
        warnings.push(format!(
            "what there is of the grain directory is used: {error}"
        ));
        let left = layout.what_is_left(&file, header.gd_offset, limits)?;
        (found, unread) = (Ok((left.directory, left.regions)), left.unread);
    }
    let (directory, regions) = found?;
    if let Some(second) = second {
        match layout.compare(&file, &directory, second) {
            Err(error) if salvages => warnings.push(error.chain()),
            compared => compared?,
        }
    }
    if header.unclean_shutdown != 0 {
        warnings.push("the extent was not closed: its tables may be behind its data".to_owned());
    }
    let zeroed_grains = header.flag_set().contains(Flags::ZEROED_GRAINS);
    let tables = SectorTables {
        second,
        cut: salvages,
        unread,
        ..SectorTables::new(&file, directory, zeroed_grains)
    };
    let mut map = GrainMap::new(file, tables, &layout, regions, Some(size), request);
    map.marked_tables = first.gd_offset == GD_AT_END;
    // Of an extent that was not closed it is known that its tables are not what they should be.
    map.compares = header.unclean_shutdown == 0 && !salvages;
    map.first_grain = header.over_head.saturating_mul(SECTOR);
    if header.is_compressed() {
        // Compressed grains begin at any sector.
        map.seen = Seen::new(SECTOR, map.file.size(), limits);
        map.packing = Some(GrainPacking {
            markers: header.flag_set().contains(Flags::MARKERS),
            grain: layout.grain,
            size,
            unpacker: Default::default(),
        });
    }
    Ok(SparseExtent { map, warnings })
}

/// Reads the header of a COWD extent.
pub(super) fn read_cowd_header(file: &dyn BlockSource) -> Result<CowdHeader> {
    let mut bytes = [0; CowdHeader::LEN];
    let n = file.read_at(&mut bytes, 0)?;
    let header = CowdHeader::parse(bytes.get(..n).unwrap_or_default(), 0)?;
    header.check()?;
    Ok(header)
}

/// Opens a COWD extent whose header was read, likewise.
pub(super) fn open_cowd(
    file: Arc<dyn BlockSource>,
    header: &CowdHeader,
    size: Option<u64>,
    request: &Request<'_>,
) -> Result<GrainMap<SectorTables>> {
    let (limits, salvages) = (request.limits, request.salvages);
    let layout = Layout::cowd(header)?;
    let mut unread = Vec::new();
    let found = match layout.directory(&file, header.gd_offset.into(), limits) {
        Err(_) if salvages => {
            let left = layout.what_is_left(&file, header.gd_offset.into(), limits)?;
            unread = left.unread;
            (left.directory, left.regions)
        }
        found => found?,
    };
    let (directory, regions) = found;
    let tables = SectorTables {
        cut: salvages,
        unread,
        ..SectorTables::new(&file, directory, false)
    };
    Ok(GrainMap::new(file, tables, &layout, regions, size, request))
}
