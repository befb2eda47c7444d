//! A stream that has lost its end, and its tables with it: the markers of its grains give their places.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::Result;
use crate::limits::Limits;
use crate::ondisk::TableEntry;
use crate::source::BlockSource;
use crate::storage::{Concat, Memory};

use super::entry::{GrainDirectoryEntry, GrainEntry};
use super::header::{
    GRAIN_MARKER_LEN, MARKER_FOOTER, MARKER_GD, MARKER_GT, MARKER_PROGRESS, Marker, SECTOR,
    SECTOR_LEN, SparseExtentHeader,
};
use super::stream::marker_at;

/// An entry that leads past the end of any file: what it stands for is lost.
const LOST: u32 = u32::MAX;

/// The rest of a stream: its header, as it would be, and the file followed by the tables that it would
/// have had.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) header: SparseExtentHeader,
    pub(super) file: Arc<dyn BlockSource>,
}

/// The grains that were met.
#[derive(Debug, Default)]
struct Grains {
    /// The sectors of their markers, table by table; 0 where none was met.
    tables: BTreeMap<u64, Vec<u32>>,
    /// Of which grains nothing is known: the first, and the one behind the last.
    unknown: Vec<(u64, u64)>,
}

/// Looks for grains from the first to the last sector of the file. A writer goes through the disk in order,
/// so that what it passed over is not recorded; what comes behind the damage, or between two grains with
/// damage between them, may have been, and is lost.
///
/// # Errors
/// [`Error::LimitExceeded`](crate::Error::LimitExceeded), and what reading fails with.
pub(super) fn scan(
    file: &Arc<dyn BlockSource>,
    first: &SparseExtentHeader,
    limits: &Limits,
) -> Result<Found> {
    let grains = Grains::find(file, first, limits)?;
    let per_table = u64::from(first.num_gtes_per_gt.max(1));
    let total = first.capacity.div_ceil(first.grain_size.max(1));
    let count = total.div_ceil(per_table);
    limits.check_metadata("the grain directory", count.saturating_mul(4))?;
    let table_len = (per_table * 4).next_multiple_of(SECTOR);
    let start = file.size().next_multiple_of(SECTOR);
    let mut next = start + (count * 4).next_multiple_of(SECTOR);
    let (mut directory, mut tables) = (Vec::new(), Vec::new());
    let mut unknown = grains.unknown.iter().peekable();
    for index in 0..count {
        let (from, to) = (index * per_table, ((index + 1) * per_table).min(total));
        while unknown.next_if(|(_, end)| *end <= from).is_some() {}
        let met = grains.tables.get(&index);
        let here = unknown.peek().filter(|(start, _)| *start < to);
        let entry = match (met, here) {
            (None, None) => 0,
            (None, Some((start, end))) if *start <= from && *end >= to => LOST,
            _ => {
                let mut table = met.cloned().unwrap_or_default();
                table.resize(usize::try_from(table_len / 4).unwrap_or(0), 0);
                let mut gaps = unknown.clone();
                while let Some((start, end)) = gaps.next_if(|(start, _)| *start < to) {
                    for (entry, grain) in table.iter_mut().zip(from..to) {
                        if *entry == 0 && (*start..*end).contains(&grain) {
                            *entry = LOST;
                        }
                    }
                }
                limits.check_metadata(
                    "the grain tables",
                    (tables.len() as u64).saturating_add(table_len),
                )?;
                tables.extend(
                    table
                        .into_iter()
                        .flat_map(|n| GrainEntry::from_raw(n).encode()),
                );
                let sector = u32::try_from(next / SECTOR).unwrap_or(LOST);
                next += table_len;
                sector
            }
        };
        directory.extend(GrainDirectoryEntry::from_raw(entry).encode());
    }
    directory.resize(directory.len().next_multiple_of(SECTOR_LEN), 0);
    let padding = vec![0; usize::try_from(start - file.size()).unwrap_or(0)];
    let parts: [Arc<dyn BlockSource>; 4] = [
        Arc::clone(file),
        Arc::new(Memory::new(padding)),
        Arc::new(Memory::new(directory)),
        Arc::new(Memory::new(tables)),
    ];
    Ok(Found {
        header: SparseExtentHeader {
            gd_offset: start / SECTOR,
            rgd_offset: 0,
            ..*first
        },
        file: Arc::new(Concat::new(parts)?),
    })
}

impl Grains {
    fn find(file: &dyn BlockSource, first: &SparseExtentHeader, limits: &Limits) -> Result<Self> {
        let mut grains = Grains::default();
        let per_table = u64::from(first.num_gtes_per_gt.max(1));
        let grain_size = first.grain_size.max(1);
        let total = first.capacity.div_ceil(grain_size);
        // Grains before this one were met or passed over, unless the writer did not go in order.
        let (mut reached, mut in_order) = (0, true);
        let (mut damaged, mut whole) = (false, false);
        let mut at = first.over_head.max(1).saturating_mul(SECTOR);
        while at.checked_add(SECTOR).is_some_and(|end| end <= file.size()) {
            let marker = marker_at(file, at).ok();
            let sectors = match marker {
                Some(marker) if is_grain(file, at, &marker, first) => {
                    let grain = marker.val / grain_size;
                    if damaged {
                        grains.lose(reached, grain, limits)?;
                        damaged = false;
                    }
                    in_order &= grain >= reached;
                    reached = grain + 1;
                    grains.meet(grain, per_table, at, limits)?;
                    (u64::from(marker.size) + GRAIN_MARKER_LEN as u64).div_ceil(SECTOR)
                }
                Some(Marker {
                    size: 0,
                    kind: kind @ (MARKER_GT | MARKER_GD | MARKER_PROGRESS | MARKER_FOOTER),
                    val,
                }) if val <= file.size() / SECTOR => {
                    // All grains come before the directory.
                    whole |= kind == MARKER_GD && !damaged;
                    val + 1
                }
                _ => {
                    damaged = true;
                    1
                }
            };
            at = at.saturating_add(sectors.saturating_mul(SECTOR));
        }
        if !in_order {
            grains.unknown = vec![(0, total)];
        } else if !whole {
            grains.lose(reached, total, limits)?;
        }
        Ok(grains)
    }

    fn lose(&mut self, from: u64, to: u64, limits: &Limits) -> Result<()> {
        if from < to {
            let bytes = (self.unknown.len() as u64 + 1) * 16;
            limits.check_metadata("the record of what is lost", bytes)?;
            self.unknown.push((from, to));
        }
        Ok(())
    }

    fn meet(&mut self, grain: u64, per_table: u64, at: u64, limits: &Limits) -> Result<()> {
        let tables = self.tables.len() as u64 + 1;
        limits.check_metadata("the grain tables", tables.saturating_mul(per_table * 4))?;
        let len = usize::try_from(per_table).unwrap_or(0);
        let table = self.tables.entry(grain / per_table);
        let table = table.or_insert_with(|| vec![0; len]);
        let index = usize::try_from(grain % per_table).unwrap_or(usize::MAX);
        if let Some(entry) = table.get_mut(index) {
            // Of two that say the same of themselves none is believed.
            *entry = match *entry {
                0 => u32::try_from(at / SECTOR).unwrap_or(LOST),
                _ => LOST,
            };
        }
        Ok(())
    }
}

/// Returns `true` if a grain may begin at `at`, by its marker and the two bytes of zlib. Decompressing it
/// proves it by a checksum.
fn is_grain(file: &dyn BlockSource, at: u64, marker: &Marker, first: &SparseExtentHeader) -> bool {
    let most = 2 * first.grain_size * SECTOR + SECTOR;
    let sound = marker.size != 0
        && u64::from(marker.size) <= most
        && marker.val < first.capacity
        && marker.val % first.grain_size.max(1) == 0;
    let mut start = [0; 2];
    sound
        && file
            .read_at(&mut start, at + GRAIN_MARKER_LEN as u64)
            .is_ok()
        && start[0] & 0x0f == 8
        && u16::from_be_bytes(start) % 31 == 0
}
