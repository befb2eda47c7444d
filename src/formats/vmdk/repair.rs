//! Mending the two copies of the grain directory, and of each grain table, by each other.
//!
//! An entry of one copy that makes no sense is replaced by that of the other, if that does. Where both make
//! sense and say different things, the first copy counts, as it does for who salvages, and the redundant one is
//! only brought up to it where it knows nothing. The other way round only on request: that changes the disk.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::{Fixed, Request, Scope};
use crate::limits::Limits;
use crate::map::{Claim, Claims, Regions};
use crate::ondisk::{Field, TableEntry};
use crate::source::{BlockSource, BlockSourceExt};
use crate::target::BlockTarget;

use super::alias::metadata;
use super::entry::{Grain, GrainDirectoryEntry, GrainEntry};
use super::header::{
    Flags, SE_SPARSE_MAGIC, SECTOR, SPARSE_MAGIC, SparseExtentHeader, unsupported,
};
use super::sparse::{Layout, read_header, second_directory};

/// Bytes of an entry.
const ENTRY: u64 = 4;

/// Mends the extent in `file`.
///
/// Tables that are missing are written behind the end of the file, then put into force by one entry of a
/// directory, or of the header; entries are replaced that are damaged, and no others.
///
/// # Errors
/// [`Error::Unsupported`] for a file that is not such an extent, and what reading and writing fail with.
pub(super) fn repair(
    file: &Arc<dyn BlockTarget>,
    request: &Request<'_>,
    scope: Scope,
) -> Result<Fixed> {
    let mut magic = [0; 8];
    file.read_at(&mut magic, 0)?;
    if !magic.starts_with(&SPARSE_MAGIC) {
        let is_extent = magic == SE_SPARSE_MAGIC || magic.starts_with(b"COWD");
        return Err(match is_extent {
            true => unsupported("repairing an extent that has one grain directory".to_owned()),
            false => Error::Unsupported {
                format: super::VMDK,
                feature: "repairing a disk through its descriptor".to_owned(),
                hint: Some("repair each of its extent files".into()),
            },
        });
    }
    let header = read_header(file)?;
    let mut fixed = Fixed::default();
    let second = second_directory(&header);
    let (Some(_), false) = (second, header.is_compressed()) else {
        return Ok(fixed);
    };
    let mut mending = Mending::of(&**file, &header, request.limits)?;
    mending.takes_more = scope == Scope::Redundant;
    fixed.corruptions = mending.tables()?;
    fixed.corruptions += mending.directories()?;
    if header.unclean_shutdown != 0 && mending.agree {
        let field = SparseExtentHeader::unclean_shutdown;
        file.write_all_at(&field.bytes(0), field.at(0))?;
        file.sync()?;
    }
    Ok(fixed)
}

/// One of the two copies.
#[derive(Debug)]
struct Side {
    /// The field of the header that says where the directory is.
    field: Field<u64>,
    /// Where that is, in bytes.
    at: u64,
    /// The directory as it stands in the file; `None` if it is not all there.
    directory: Option<Vec<u8>>,
    /// Grains that entries refer to.
    grains: Claims,
    /// Entries of the directory that have to be written, each with its number.
    changed: Vec<(u64, GrainDirectoryEntry)>,
}

struct Mending<'a> {
    file: &'a dyn BlockTarget,
    limits: &'a Limits,
    layout: Layout,
    zeroed_grains: bool,
    /// Where the tables, the directories, the header and the descriptor are.
    regions: Regions,
    /// The copy that counts, and the redundant one.
    sides: [Side; 2],
    /// Places of tables that overlap other metadata.
    overlapping: Vec<u64>,
    /// Where the next new structure goes.
    end: u64,
    /// Whether both copies say the same in the end.
    agree: bool,
    /// Whether what the first copy has nothing of is taken from the redundant one.
    takes_more: bool,
}

impl<'a> Mending<'a> {
    fn of(
        file: &'a dyn BlockTarget,
        header: &SparseExtentHeader,
        limits: &'a Limits,
    ) -> Result<Self> {
        let layout = Layout::hosted(header, header)?;
        let len = layout.directory_entries().saturating_mul(ENTRY);
        limits.check_metadata("the grain directory", len)?;
        let side = |field, sector: u64| -> Result<Side> {
            let at = sector.saturating_mul(SECTOR);
            let there = at.checked_add(len).is_some_and(|end| end <= file.size());
            let mut directory = vec![0; usize::try_from(len).unwrap_or(0)];
            if there {
                file.read_exact_at(&mut directory, at)?;
            }
            Ok(Side {
                field,
                at,
                directory: there.then_some(directory),
                grains: Claims::default(),
                changed: Vec::new(),
            })
        };
        let sides = [
            side(SparseExtentHeader::gd_offset, header.gd_offset)?,
            side(SparseExtentHeader::rgd_offset, header.rgd_offset)?,
        ];
        let mut mending = Mending {
            zeroed_grains: header.flag_set().contains(Flags::ZEROED_GRAINS),
            regions: Regions::default(),
            overlapping: Vec::new(),
            end: file.size().next_multiple_of(layout.grain),
            agree: true,
            takes_more: false,
            file,
            limits,
            layout,
            sides,
        };
        mending.find_regions();
        mending.claim_grains()?;
        Ok(mending)
    }

    fn table_len(&self) -> u64 {
        self.layout.entries * ENTRY
    }

    /// Where a directory says that a table is, in bytes; 0 if there is none.
    fn place(side: &Side, index: u64) -> u64 {
        let directory = side.directory.as_deref().unwrap_or_default();
        let entry = GrainDirectoryEntry::decode(directory, index);
        entry.and_then(GrainDirectoryEntry::table).unwrap_or(0)
    }

    fn find_regions(&mut self) {
        let len = self.table_len();
        let mut ranges = self.layout.reserved.clone();
        for side in &self.sides {
            let directory = side.directory.as_deref().unwrap_or_default();
            ranges.push((side.at, side.at + directory.len() as u64));
            let places = (0..self.layout.directory_entries()).map(|i| Self::place(side, i));
            let there = places.filter(|at| *at != 0 && at + len <= self.file.size());
            ranges.extend(there.map(|at| (at, at + len)));
        }
        ranges.retain(|(start, end)| start < end);
        ranges.sort_unstable();
        let (mut overlapping, mut before) = (Vec::new(), (0, 0));
        for range in &ranges {
            if range.0 < before.1 {
                overlapping.extend([range.0, before.0]);
            }
            if range.1 > before.1 {
                before = *range;
            }
        }
        overlapping.sort_unstable();
        self.overlapping = overlapping;
        self.regions = metadata(ranges).0;
    }

    /// A table of a side, if it is in the file and shares no bytes with other metadata.
    fn table(&self, side: &Side, index: u64) -> Result<Option<Vec<u8>>> {
        let at = Self::place(side, index);
        let end = at.saturating_add(self.table_len());
        let alone = self.overlapping.binary_search(&at).is_err();
        if at == 0 || end > self.file.size() || !alone {
            return Ok(None);
        }
        let mut table = vec![0; usize::try_from(self.table_len()).unwrap_or(0)];
        self.file.read_exact_at(&mut table, at)?;
        Ok(Some(table))
    }

    fn claim_grains(&mut self) -> Result<()> {
        for index in 0..self.layout.directory_entries() {
            for number in 0..self.sides.len() {
                let Some(side) = self.sides.get(number) else {
                    continue;
                };
                let Some(table) = self.table(side, index)? else {
                    continue;
                };
                let sound = |(entry, guest)| self.is_sound(entry, guest);
                let entries = self.entries(&table, index).filter(|entry| sound(*entry));
                let stored = entries.filter_map(|(entry, _)| self.grain_of(entry));
                let stored: Vec<u64> = stored.collect();
                let Some(side) = self.sides.get_mut(number) else {
                    continue;
                };
                for grain in stored {
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

    /// Whether an entry makes sense by itself.
    fn is_sound(&self, entry: GrainEntry, guest: u64) -> bool {
        let Grain::At(start) = entry.grain(self.zeroed_grains) else {
            return true;
        };
        let left = self.layout.capacity.saturating_sub(guest);
        let end = start + left.min(self.layout.grain);
        left > 0
            && end <= self.file.size()
            && self.regions.overlapping(start, end - start).is_none()
    }

    /// Whether an entry of a side makes sense, and is the only one there with its grain.
    fn is_good(&self, side: &Side, entry: GrainEntry, guest: u64) -> bool {
        let grain = self.grain_of(entry);
        self.is_sound(entry, guest) && grain.is_none_or(|grain| !side.grains.is_contested(grain))
    }

    /// Mends the tables by each other. Returns how many.
    fn tables(&mut self) -> Result<u64> {
        let mut mended = 0;
        for index in 0..self.layout.directory_entries() {
            let [main, other] = &self.sides;
            let (first, second) = (self.table(main, index)?, self.table(other, index)?);
            let absent = |side: &Side| side.directory.is_some() && Self::place(side, index) == 0;
            match (first, second) {
                (Some(first), Some(second)) => mended += self.pair(index, &first, &second)?,
                (Some(first), None) => {
                    self.replace(1, index, &first)?;
                    mended += u64::from(self.sides.get(1).is_some_and(|s| s.directory.is_some()));
                }
                // That there is none, as the first copy says, makes sense.
                (None, Some(second)) if absent(main) => {
                    if self.takes_more && self.is_all_new(index, &second) {
                        self.replace(0, index, &second)?;
                        mended += 1;
                    } else {
                        self.agree = false;
                    }
                }
                (None, Some(second)) => {
                    self.replace(0, index, &second)?;
                    mended += u64::from(self.sides.first().is_some_and(|s| s.directory.is_some()));
                }
                (None, None) => self.agree &= absent(main) && absent(other),
            }
        }
        Ok(mended)
    }

    /// Mends the entries of two tables by each other. Returns how many tables that were.
    fn pair(&mut self, index: u64, first: &[u8], second: &[u8]) -> Result<u64> {
        let [main, other] = &self.sides;
        let places = [Self::place(main, index), Self::place(other, index)];
        let (mut new_first, mut new_second) = (first.to_vec(), second.to_vec());
        let pairs = self.entries(first, index).zip(self.entries(second, index));
        let mut agree = true;
        for (at, ((a, guest), (b, _))) in (0..).zip(pairs) {
            let good = (self.is_good(main, a, guest), self.is_good(other, b, guest));
            // What takes a grain that another entry has would only move the damage.
            let free = |side: &Side, entry| {
                let grain = self.grain_of(entry);
                grain.is_none_or(|grain| {
                    !side.grains.has(grain, Claim::Own) || side.grains.is_contested(grain)
                })
            };
            match good {
                (true, true) if a == b => {}
                (true, true) if b.raw() == 0 && free(other, a) => a.put(&mut new_second, at),
                (true, true) if a.raw() == 0 && self.takes_more && free(main, b) => {
                    b.put(&mut new_first, at);
                }
                (true, false) if free(other, a) => a.put(&mut new_second, at),
                (false, true) if free(main, b) => b.put(&mut new_first, at),
                _ => agree = false,
            }
        }
        self.agree &= agree;
        let mut mended = 0;
        for (old, new, place) in [
            (first, new_first, places[0]),
            (second, new_second, places[1]),
        ] {
            if old != new {
                self.file.write_all_at(&new, place)?;
                self.file.sync()?;
                mended += 1;
            }
        }
        Ok(mended)
    }

    /// Whether a table of the redundant copy has grains, and all of them are sound and no others' in the first.
    fn is_all_new(&self, index: u64, table: &[u8]) -> bool {
        let [main, other] = &self.sides;
        let mut entries = self.entries(table, index);
        table.iter().any(|byte| *byte != 0)
            && entries.all(|(entry, guest)| {
                let grain = self.grain_of(entry);
                self.is_good(other, entry, guest)
                    && grain.is_none_or(|grain| !main.grains.has(grain, Claim::Own))
            })
    }

    /// Gives a side the table that it lacks: where it was, if it is there still, or behind the end.
    fn replace(&mut self, number: usize, index: u64, table: &[u8]) -> Result<()> {
        let at = match self.old_place(number, index, table)? {
            Some(at) => at,
            None => {
                let at = self.end;
                self.file.write_all_at(table, at)?;
                self.file.sync()?;
                self.end = (at + table.len() as u64).next_multiple_of(self.layout.grain);
                at
            }
        };
        let sector = u32::try_from(at / SECTOR).map_err(|_| {
            Error::invalid("the extent has no room for a grain table that it lacks")
        })?;
        if let Some(side) = self.sides.get_mut(number) {
            side.changed
                .push((index, GrainDirectoryEntry::from_raw(sector)));
        }
        Ok(())
    }

    /// Where the table is that a damaged entry of a directory does not find any more: beside its neighbour, if
    /// the same is there that the other copy says.
    fn old_place(&self, number: usize, index: u64, table: &[u8]) -> Result<Option<u64>> {
        let Some(side) = self.sides.get(number) else {
            return Ok(None);
        };
        let step = self.table_len().next_multiple_of(SECTOR);
        let neighbours = [
            index
                .checked_sub(1)
                .map(|before| (before, Self::place(side, before) + step)),
            Some((index + 1, Self::place(side, index + 1).saturating_sub(step))),
        ];
        for (neighbour, at) in neighbours.into_iter().flatten() {
            let end = at + self.table_len();
            if self.table(side, neighbour)?.is_none() || at == 0 || end > self.file.size() {
                continue;
            }
            if self.regions.overlapping(at, end - at).is_some() {
                continue;
            }
            let mut there = vec![0; table.len()];
            self.file.read_exact_at(&mut there, at)?;
            if there == table {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    /// Puts the new tables into force. Returns how many directories were made anew for that.
    fn directories(&mut self) -> Result<u64> {
        let mut mended = 0;
        let len = self.layout.directory_entries().saturating_mul(ENTRY);
        for side in &self.sides {
            if side.changed.is_empty() {
                continue;
            }
            if side.directory.is_some() {
                for (index, entry) in &side.changed {
                    let at = side.at + index * ENTRY;
                    self.file.write_all_at(&entry.encode(), at)?;
                }
                self.file.sync()?;
                continue;
            }
            let mut directory = vec![0; usize::try_from(len).unwrap_or(0)];
            for (index, entry) in &side.changed {
                entry.put(&mut directory, *index);
            }
            let at = self.end;
            self.file.write_all_at(&directory, at)?;
            self.file.sync()?;
            self.end = (at + len).next_multiple_of(self.layout.grain);
            let sector = side.field.bytes(at / SECTOR);
            self.file.write_all_at(&sector, side.field.at(0))?;
            self.file.sync()?;
            mended += 1;
        }
        Ok(mended)
    }
}
