//! Repair of a sparse extent: the two copies of the grain directory and of the grain tables by each other.
//!
//! An entry of one copy that makes no sense is replaced by that of the other, if that does. Where both make
//! sense and differ, the first copy counts, as it does in salvage, and the redundant one takes from it only what
//! it has no entry for. The first copy takes such entries from the redundant one on request: that changes the
//! disk.
//!
//! One copy is repaired at a time, so that the other one is whole meanwhile.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::{Fixed, Request};
use crate::limits::Limits;
use crate::map::edit::{Changes, Ordered, Rank, TableStore};
use crate::map::{Claim, Claims, Regions};
use crate::ondisk::{Field, TableEntry};
use crate::source::{BlockSource, BlockSourceExt};
use crate::target::BlockTarget;

use super::alias::metadata;
use super::entry::{Grain, GrainDirectoryEntry, GrainEntry};
use super::header::{
    Flags, SE_SPARSE_MAGIC, SECTOR, SPARSE_MAGIC, SparseExtentHeader, unsupported,
};
use super::layout::{Layout, second_directory};
use super::sparse::read_header;

/// Bytes of an entry.
const ENTRY: u64 = 4;

/// Repairs the extent in `file` without a change of its disk.
///
/// Missing tables are written behind the end of the file, then put in force by one entry of a directory, or of
/// the header. Of entries, only damaged ones are replaced.
///
/// # Errors
/// [`Error::Unsupported`] for a file that is not such an extent, and errors of reading and writing.
pub(super) fn repair(file: &Arc<dyn BlockTarget>, request: &Request<'_>) -> Result<Fixed> {
    run(file, request, false)
}

/// The same, and takes the grains that only the redundant copy has.
///
/// # Errors
/// As [`repair`].
pub(super) fn repair_from_redundant(
    file: &Arc<dyn BlockTarget>,
    request: &Request<'_>,
) -> Result<Fixed> {
    run(file, request, true)
}

fn run(file: &Arc<dyn BlockTarget>, request: &Request<'_>, takes_more: bool) -> Result<Fixed> {
    let mut magic = [0; 8];
    file.read_at(&mut magic, 0)?;
    if !magic.starts_with(&SPARSE_MAGIC) {
        let is_extent = magic == SE_SPARSE_MAGIC || magic.starts_with(b"COWD");
        return Err(match is_extent {
            true => unsupported("repairing an extent that has one grain directory".to_owned()),
            false => Error::unsupported(
                super::VMDK,
                "repairing a disk through its descriptor",
                "repair each of its extent files",
            ),
        });
    }
    let header = read_header(file)?;
    let mut fixed = Fixed::default();
    if second_directory(&header).is_none() || header.is_compressed() {
        return Ok(fixed);
    }
    let (mut extent, mut sides) = Extent::of(file, &header, request.limits)?;
    extent.takes_more = takes_more;
    for _ in 0..sides.len() {
        let [own, other] = &mut sides;
        fixed.corruptions += extent.repair(own, other)?;
        sides.reverse();
    }
    if header.unclean_shutdown != 0 && extent.agree(&sides)? {
        let field = SparseExtentHeader::unclean_shutdown;
        let changes = Changes::of(Rank::Header, field.at(0), field.bytes(0));
        extent.store.put(changes)?;
        extent.store.commit()?;
    }
    Ok(fixed)
}

/// One of the two copies.
#[derive(Debug)]
struct Side {
    is_redundant: bool,
    /// The field of the header with the place of the directory.
    field: Field<u64>,
    /// The place of the directory, in bytes.
    at: u64,
    /// The directory as it is in the file; `None` if it is not all there.
    directory: Option<Vec<u8>>,
    /// Grains that entries refer to.
    grains: Claims,
}

impl Side {
    /// The place of a table by the directory, in bytes; 0 if there is none.
    fn place(&self, index: u64) -> u64 {
        let directory = self.directory.as_deref().unwrap_or_default();
        let entry = GrainDirectoryEntry::decode(directory, index);
        entry.and_then(GrainDirectoryEntry::table).unwrap_or(0)
    }

    /// Returns `true` if the directory says that there is no table.
    fn is_absent(&self, index: u64) -> bool {
        self.directory.is_some() && self.place(index) == 0
    }
}

struct Extent<'a> {
    store: TableStore<Ordered>,
    /// Bytes of the file before the repair.
    size: u64,
    limits: &'a Limits,
    layout: Layout,
    zeroed_grains: bool,
    /// Tables, directories, the header and the descriptor.
    regions: Regions,
    /// Places of tables that overlap other metadata.
    overlapping: Vec<u64>,
    /// Set if the first copy takes entries that only the redundant one has.
    takes_more: bool,
}

impl<'a> Extent<'a> {
    fn of(
        file: &Arc<dyn BlockTarget>,
        header: &SparseExtentHeader,
        limits: &'a Limits,
    ) -> Result<(Self, [Side; 2])> {
        let layout = Layout::hosted(header, header)?;
        let len = layout.directory_entries().saturating_mul(ENTRY);
        limits.check_metadata("the grain directory", len)?;
        let side = |is_redundant, field, sector: u64| -> Result<Side> {
            let at = sector.saturating_mul(SECTOR);
            let there = at.checked_add(len).is_some_and(|end| end <= file.size());
            let mut directory = vec![0; usize::try_from(len).unwrap_or(0)];
            if there {
                file.read_exact_at(&mut directory, at)?;
            }
            Ok(Side {
                is_redundant,
                field,
                at,
                directory: there.then_some(directory),
                grains: Claims::default(),
            })
        };
        let mut sides = [
            side(false, SparseExtentHeader::gd_offset, header.gd_offset)?,
            side(true, SparseExtentHeader::rgd_offset, header.rgd_offset)?,
        ];
        let mut extent = Extent {
            store: TableStore::new(file, Ordered, limits),
            size: file.size(),
            zeroed_grains: header.flag_set().contains(Flags::ZEROED_GRAINS),
            regions: Regions::default(),
            overlapping: Vec::new(),
            takes_more: false,
            limits,
            layout,
        };
        extent.find_regions(&sides);
        for side in &mut sides {
            extent.claim_grains(side)?;
        }
        Ok((extent, sides))
    }

    fn table_len(&self) -> u64 {
        self.layout.entries * ENTRY
    }

    fn find_regions(&mut self, sides: &[Side]) {
        let len = self.table_len();
        let mut ranges = self.layout.reserved.clone();
        for side in sides {
            let directory = side.directory.as_deref().unwrap_or_default();
            ranges.push((side.at, side.at + directory.len() as u64));
            let places = (0..self.layout.directory_entries()).map(|i| side.place(i));
            let there = places.filter(|at| *at != 0 && at + len <= self.size);
            ranges.extend(there.map(|at| (at, at + len)));
        }
        ranges.retain(|(start, end)| start < end);
        ranges.sort_unstable();
        let mut before = (0, 0);
        for range in &ranges {
            if range.0 < before.1 {
                self.overlapping.extend([range.0, before.0]);
            }
            if range.1 > before.1 {
                before = *range;
            }
        }
        self.overlapping.sort_unstable();
        self.regions = metadata(ranges).0;
    }

    /// A table of a side, if it is in the file and shares no bytes with other metadata.
    fn table(&self, side: &Side, index: u64) -> Result<Option<Vec<u8>>> {
        let at = side.place(index);
        let end = at.saturating_add(self.table_len());
        let alone = self.overlapping.binary_search(&at).is_err();
        if at == 0 || end > self.store.size() || !alone {
            return Ok(None);
        }
        let mut table = vec![0; usize::try_from(self.table_len()).unwrap_or(0)];
        self.store.read_exact_at(&mut table, at)?;
        Ok(Some(table))
    }

    fn claim_grains(&self, side: &mut Side) -> Result<()> {
        for index in 0..self.layout.directory_entries() {
            let table = self.table(side, index)?.unwrap_or_default();
            for (entry, guest) in self.entries(&table, index) {
                let grain = self.grain_of(entry);
                if let Some(grain) = grain.filter(|_| self.is_sound(entry, guest)) {
                    let units = grain..grain + 1;
                    side.grains.claim(units, Claim::Own, self.limits)?;
                }
            }
        }
        Ok(())
    }

    /// The entries of a table, each with the guest offset that it answers for.
    fn entries<'t>(
        &self,
        table: &'t [u8],
        index: u64,
    ) -> impl Iterator<Item = (GrainEntry, u64)> + use<'t> {
        let grain = self.layout.grain;
        let first = index * self.layout.entries * grain;
        GrainEntry::all(table).zip((0..).map(move |i| first + i * grain))
    }

    /// The grain of the file that an entry refers to, by its number.
    fn grain_of(&self, entry: GrainEntry) -> Option<u64> {
        match entry.grain(self.zeroed_grains) {
            Grain::At(start) => Some(start / self.layout.grain),
            Grain::Unallocated | Grain::Zero => None,
        }
    }

    /// Returns `true` if an entry is valid by itself.
    fn is_sound(&self, entry: GrainEntry, guest: u64) -> bool {
        let Grain::At(start) = entry.grain(self.zeroed_grains) else {
            return true;
        };
        let left = self.layout.capacity.saturating_sub(guest);
        let end = start + left.min(self.layout.grain);
        left > 0 && end <= self.size && self.regions.overlapping(start, end - start).is_none()
    }

    /// Returns `true` if an entry of a side is valid, and the only one there with its grain.
    fn is_good(&self, side: &Side, entry: GrainEntry, guest: u64) -> bool {
        let grain = self.grain_of(entry);
        self.is_sound(entry, guest) && grain.is_none_or(|grain| !side.grains.is_contested(grain))
    }

    /// Repairs one side by the other. Returns the number of tables and directories that were changed.
    fn repair(&self, own: &mut Side, other: &Side) -> Result<u64> {
        let mut fixed = 0;
        let mut places = Vec::new();
        for index in 0..self.layout.directory_entries() {
            let Some(theirs) = self.table(other, index)? else {
                continue;
            };
            if let Some(ours) = self.table(own, index)? {
                fixed += self.repair_table(own, other, index, ours, &theirs)?;
            } else if self.is_missing(own, other, index, &theirs) {
                places.push((index, self.replace(own, index, theirs)?));
                fixed += u64::from(own.directory.is_some());
            }
        }
        fixed += self.repair_directory(own, &places)?;
        self.store.commit()?;
        Ok(fixed)
    }

    /// Returns `true` if a side lacks a table of the other one. That the first copy has none is valid.
    fn is_missing(&self, own: &Side, other: &Side, index: u64, theirs: &[u8]) -> bool {
        let taken = || self.takes_more && self.is_all_new(own, other, index, theirs);
        own.is_redundant || !own.is_absent(index) || taken()
    }

    /// Repairs the entries of one table. Returns whether there were any.
    fn repair_table(
        &self,
        own: &Side,
        other: &Side,
        index: u64,
        mut ours: Vec<u8>,
        theirs: &[u8],
    ) -> Result<u64> {
        let fills = own.is_redundant || self.takes_more;
        let before = ours.clone();
        let pairs = self
            .entries(&before, index)
            .zip(self.entries(theirs, index));
        for (at, ((old, guest), (new, _))) in (0..).zip(pairs) {
            // A grain that another entry has would only move the damage.
            let is_free =
                |grain| !own.grains.has(grain, Claim::Own) || own.grains.is_contested(grain);
            let wanted = !self.is_good(own, old, guest) || old.raw() == 0 && fills;
            if wanted && self.is_good(other, new, guest) && self.grain_of(new).is_none_or(is_free) {
                new.put(&mut ours, at);
            }
        }
        if ours == before {
            return Ok(0);
        }
        self.store
            .put(Changes::of(Rank::Leaf, own.place(index), ours))?;
        Ok(1)
    }

    /// Returns `true` if a table of the redundant copy has grains, all of them sound and not in the first copy.
    fn is_all_new(&self, first: &Side, redundant: &Side, index: u64, table: &[u8]) -> bool {
        let mut entries = self.entries(table, index);
        table.iter().any(|byte| *byte != 0)
            && entries.all(|(entry, guest)| {
                let grain = self.grain_of(entry);
                self.is_good(redundant, entry, guest)
                    && grain.is_none_or(|grain| !first.grains.has(grain, Claim::Own))
            })
    }

    /// Returns the entry of a table that a side lacks: where it was, if it is there still, or behind the end.
    fn replace(&self, side: &Side, index: u64, table: Vec<u8>) -> Result<GrainDirectoryEntry> {
        let at = match self.old_place(side, index, &table)? {
            Some(at) => at,
            None => {
                let at = self.end();
                self.store.put(Changes::of(Rank::Leaf, at, table))?;
                at
            }
        };
        let sector = u32::try_from(at / SECTOR).map_err(|_| {
            Error::invalid("the extent has no room for a grain table that it lacks")
        })?;
        Ok(GrainDirectoryEntry::from_raw(sector))
    }

    /// The place of the next new structure.
    fn end(&self) -> u64 {
        self.store.size().next_multiple_of(self.layout.grain)
    }

    /// The place of a table that a damaged entry of a directory no longer leads to: beside its neighbour, if the
    /// same bytes are there as in the other copy.
    fn old_place(&self, side: &Side, index: u64, table: &[u8]) -> Result<Option<u64>> {
        let step = self.table_len().next_multiple_of(SECTOR);
        let neighbours = [
            index
                .checked_sub(1)
                .map(|before| (before, side.place(before) + step)),
            Some((index + 1, side.place(index + 1).saturating_sub(step))),
        ];
        for (neighbour, at) in neighbours.into_iter().flatten() {
            let end = at + self.table_len();
            if self.table(side, neighbour)?.is_none() || at == 0 || end > self.size {
                continue;
            }
            if self.regions.overlapping(at, end - at).is_some() {
                continue;
            }
            let mut there = vec![0; table.len()];
            self.store.read_exact_at(&mut there, at)?;
            if there == table {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    /// Puts tables in force at their new places. Returns how many directories were made for that.
    fn repair_directory(
        &self,
        side: &mut Side,
        places: &[(u64, GrainDirectoryEntry)],
    ) -> Result<u64> {
        if places.is_empty() {
            return Ok(0);
        }
        if let Some(directory) = &mut side.directory {
            for (index, entry) in places {
                entry.put(directory, *index);
                let at = side.at + index * ENTRY;
                let changes = Changes::of(Rank::Root, at, entry.encode());
                self.store.put(changes)?;
            }
            return Ok(0);
        }
        let len = self.layout.directory_entries().saturating_mul(ENTRY);
        let mut directory = vec![0; usize::try_from(len).unwrap_or(0)];
        for (index, entry) in places {
            entry.put(&mut directory, *index);
        }
        side.at = self.end();
        let mut changes = Changes::of(Rank::Root, side.at, directory.clone());
        let sector = side.field.bytes(side.at / SECTOR);
        changes.write(Rank::Header, side.field.at(0), sector);
        self.store.put(changes)?;
        side.directory = Some(directory);
        Ok(1)
    }

    /// Returns `true` if both copies agree, and all of their entries are valid.
    fn agree(&self, sides: &[Side; 2]) -> Result<bool> {
        let [first, second] = sides;
        for index in 0..self.layout.directory_entries() {
            let same = match (self.table(first, index)?, self.table(second, index)?) {
                (Some(table), Some(other)) => {
                    let good = |side, (entry, guest)| self.is_good(side, entry, guest);
                    let mut entries = self.entries(&table, index);
                    table == other && entries.all(|entry| good(first, entry) || good(second, entry))
                }
                (None, None) => first.is_absent(index) && second.is_absent(index),
                _ => false,
            };
            if !same {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
