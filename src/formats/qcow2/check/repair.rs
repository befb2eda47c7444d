//! Mending counts and flags in place.
//!
//! What refers to clusters is right by definition: counts and flags are made to fit it, and no entry is
//! bent to fit a count. The steps are ordered so that a writer who finds the image between two of them
//! loses nothing: a count that is too high, or a missing flag, makes it copy or waste a cluster; a count
//! that is too low, or a flag too much, would make it write over data.

use std::collections::HashSet;
use std::sync::Arc;

use crate::error::Result;
use crate::image::{Fixed, Scope};
use crate::limits::Limits;
use crate::source::{BlockSource, BlockSourceExt};
use crate::target::BlockTarget;

use super::super::entry::be_u64;
use super::super::entry::{COMPRESSED, COPIED, L1_OFFSET, L2_OFFSET};
use super::super::header::HeaderV2;
use super::super::refcount::read_padded;
use super::super::{Autoclear, Incompatible};
use super::Survey;
use super::counts::{Counts, PIECE};

/// Where `incompatible_features` and `autoclear_features` stand in the file.
const INCOMPATIBLE_AT: u64 = HeaderV2::LEN as u64;
const AUTOCLEAR_AT: u64 = HeaderV2::LEN as u64 + 16;

/// Mends the image in `file`.
pub(in super::super) fn repair(
    file: &Arc<dyn BlockTarget>,
    limits: &Limits,
    scope: Scope,
) -> Result<Fixed> {
    let source: Arc<dyn BlockSource> = Arc::new(Arc::clone(file));
    let before = Survey::run(&source, limits)?;
    let (corruptions, leaks) = (before.findings.corruptions, before.findings.leaks);
    let after = if before.findings.is_clean() {
        before
    } else {
        let mut mending = Mending::new(file, &source, before)?;
        match scope {
            Scope::Leaks => mending.leaks()?,
            Scope::All | Scope::Redundant => mending.all()?,
        }
        Survey::run(&source, limits)?
    };
    let found = &after.findings;
    if found.corruptions == 0 && found.errors == 0 {
        clear_flags_of_damage(file, &after)?;
    }
    Ok(Fixed {
        corruptions: corruptions.saturating_sub(found.corruptions),
        leaks: leaks.saturating_sub(found.leaks),
    })
}

/// Clears the dirty and the corrupt bit of an image that is neither.
fn clear_flags_of_damage(file: &dyn BlockTarget, survey: &Survey) -> Result<()> {
    let bits = survey.header.incompatible;
    let damage = Incompatible::DIRTY | Incompatible::CORRUPT;
    if !bits.intersects(damage) {
        return Ok(());
    }
    let bits = bits.difference(damage).bits();
    file.write_all_at(&bits.to_be_bytes(), INCOMPATIBLE_AT)?;
    file.sync()
}

/// An image on the way to being sound.
pub(super) struct Mending<'a> {
    pub(super) file: &'a dyn BlockTarget,
    pub(super) source: &'a Arc<dyn BlockSource>,
    pub(super) survey: Survey,
    /// The counts as they are to be.
    pub(super) counts: Counts,
}

/// Which flags are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flags {
    /// Those that promise more than is so.
    Clear,
    /// All that are wrong.
    All,
}

/// Which counts are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Raise,
    Lower,
}

impl<'a> Mending<'a> {
    fn new(
        file: &'a Arc<dyn BlockTarget>,
        source: &'a Arc<dyn BlockSource>,
        mut survey: Survey,
    ) -> Result<Self> {
        let counts = if survey.rebuild {
            // The old counts will be given up, and are not to be counted.
            let mut bare = Survey::new(source, &survey.limits)?;
            bare.look_at_references()?;
            survey.budget = bare.budget;
            survey.damaged = bare.damaged;
            survey.past_end = bare.past_end;
            bare.counts
        } else {
            std::mem::take(&mut survey.counts)
        };
        let mut mending = Mending {
            file,
            source,
            survey,
            counts,
        };
        if mending.survey.incomplete || mending.survey.damaged {
            mending.keep_leaks()?;
        }
        Ok(mending)
    }

    /// Mends everything.
    fn all(&mut self) -> Result<()> {
        // A file that was cut short must not grow: what is missing would turn into other bytes.
        if self.survey.rebuild && (self.survey.past_end || self.survey.incomplete) {
            return Ok(());
        }
        self.clear_unknown_features()?;
        self.write_flags(Flags::Clear)?;
        if self.survey.rebuild {
            self.file.sync()?;
            self.rebuild()?;
        } else {
            self.write_counts(Change::Raise)?;
            self.file.sync()?;
            self.write_counts(Change::Lower)?;
            self.file.sync()?;
        }
        // A count that cannot be told is no proof that a cluster has one owner.
        if !self.survey.too_many {
            self.write_flags(Flags::All)?;
        }
        self.file.sync()
    }

    /// Gives leaked clusters back, and nothing else, unless the flags alone are wrong besides.
    fn leaks(&mut self) -> Result<()> {
        if self.survey.rebuild {
            return Ok(());
        }
        self.clear_unknown_features()?;
        self.write_counts(Change::Lower)?;
        self.file.sync()?;
        let survey = &self.survey;
        if !survey.damaged && !survey.too_low && !survey.too_many {
            self.write_flags(Flags::All)?;
            self.file.sync()?;
        }
        Ok(())
    }

    /// What belongs to a feature that is not known may be among the leaks: the feature's bit says to clear
    /// it then.
    fn clear_unknown_features(&self) -> Result<()> {
        let header = &self.survey.header;
        let known = header.autoclear & Autoclear::all();
        if header.version < 3 || known == header.autoclear {
            return Ok(());
        }
        self.file
            .write_all_at(&known.bits().to_be_bytes(), AUTOCLEAR_AT)?;
        self.file.sync()
    }

    /// Lets counts that are too high be: what is damaged may have referred to these clusters.
    fn keep_leaks(&mut self) -> Result<()> {
        let layout = self.survey.stored.layout();
        let most = layout.most();
        self.each_block(|mending, _, first, block| {
            for index in 0..layout.per_block(block.len() as u64) {
                let cluster = first + index;
                // Where the counts are made anew, the old ones are no leaks, and are given up.
                let found = match mending.survey.rebuild {
                    true => mending.survey.counts.of(cluster),
                    false => mending.counts.of(cluster),
                };
                let stored = layout.read(block, index);
                if stored > found && mending.is_in_file(cluster) {
                    let budget = &mut mending.survey.budget;
                    mending.counts.add(cluster, stored - found, most, budget)?;
                }
            }
            Ok(None)
        })
    }

    fn is_in_file(&self, cluster: u64) -> bool {
        cluster < self.source.size().div_ceil(self.survey.cluster_size())
    }

    /// Hands out each refcount block that is there, once, with its place and its first cluster. What is
    /// returned is the range of bytes to be written back.
    fn each_block(
        &mut self,
        mut each: impl FnMut(&mut Self, u64, u64, &mut [u8]) -> Result<Option<(usize, usize)>>,
    ) -> Result<()> {
        let mut done = HashSet::new();
        let per_block = self.survey.stored.per_block();
        for range in 0..self.survey.stored.ranges() {
            let Some(at) = self.survey.stored.block_at(range) else {
                continue;
            };
            let first = range.saturating_mul(per_block);
            if !done.insert(at) || !self.is_in_file(first) {
                continue;
            }
            let mut block = self.survey.read_table(at, self.survey.cluster_size())?;
            if block.is_empty() {
                // A hole of the file: all of its counts are 0.
                let pieces = first / PIECE..(first + per_block).div_ceil(PIECE);
                if self.counts.pieces_in(pieces).next().is_none() {
                    continue;
                }
                block = read_padded(self.source, at, self.survey.cluster_size())?;
            }
            if let Some((start, end)) = each(self, at, first, &mut block)? {
                let changed = block.get(start..end).unwrap_or_default();
                self.file.write_all_at(changed, at + start as u64)?;
            }
        }
        Ok(())
    }

    fn write_counts(&mut self, change: Change) -> Result<()> {
        let layout = self.survey.stored.layout();
        self.each_block(|mending, _, first, block| {
            let mut changed: Option<(usize, usize)> = None;
            for index in 0..layout.per_block(block.len() as u64) {
                let cluster = first + index;
                let (stored, wanted) = (layout.read(block, index), mending.counts.of(cluster));
                let wrong = match change {
                    Change::Raise => stored < wanted,
                    Change::Lower => stored > wanted && mending.is_in_file(cluster),
                };
                if wrong {
                    layout.write(block, index, wanted);
                    let place = layout.place(index).0;
                    let start = changed.map_or(place.start, |(start, _)| start);
                    changed = Some((start, place.end));
                }
            }
            Ok(changed)
        })
    }

    /// Makes the flags of the active tables fit the counts.
    fn write_flags(&mut self, flags: Flags) -> Result<()> {
        self.write_l1_flags(flags)?;
        let tables = self.survey.tables.iter();
        let active = tables.filter(|(_, uses)| uses.active > 0);
        let active: Vec<u64> = active.map(|(offset, _)| *offset).collect();
        for offset in active {
            self.write_l2_flags(offset, flags)?;
        }
        Ok(())
    }

    fn write_l1_flags(&mut self, flags: Flags) -> Result<()> {
        let header = &self.survey.header;
        let (start, len) = (header.l1_table_offset, u64::from(header.l1_size) * 8);
        let whole = start
            .checked_add(len)
            .is_some_and(|end| end <= self.source.size());
        if start % header.cluster_size() != 0 || !whole {
            return Ok(());
        }
        let mut table = vec![0; usize::try_from(len).unwrap_or(0)];
        self.source.read_exact_at(&mut table, start)?;
        self.write_entries(start, table, 1, flags, |mending, entry| {
            mending.wanted(entry & L1_OFFSET)
        })
    }

    fn write_l2_flags(&mut self, offset: u64, flags: Flags) -> Result<()> {
        let header = &self.survey.header;
        let table = read_padded(self.source, offset, header.cluster_size())?;
        let stride = if header.has_extended_l2() { 2 } else { 1 };
        let data_file = header.has_data_file();
        self.write_entries(offset, table, stride, flags, |mending, entry| {
            let offset = entry & L2_OFFSET;
            if entry & COMPRESSED != 0 {
                None
            } else if data_file {
                // Whose clusters have no counts, and are one entry's each.
                (offset != 0).then_some(true)
            } else {
                mending.wanted(offset)
            }
        })
    }

    /// Whether an entry that points there is to have the flag; `None` where none can be.
    fn wanted(&self, offset: u64) -> Option<bool> {
        let bits = self.survey.header.cluster_bits;
        let sound = offset != 0 && offset % (1 << bits) == 0;
        sound.then(|| self.counts.of(offset >> bits) == 1)
    }

    fn write_entries(
        &self,
        at: u64,
        mut table: Vec<u8>,
        stride: usize,
        flags: Flags,
        wanted: impl Fn(&Self, u64) -> Option<bool>,
    ) -> Result<()> {
        let mut changed: Option<(usize, usize)> = None;
        let len = 8 * stride;
        for (index, raw) in table.chunks_exact_mut(len).enumerate() {
            let entry = be_u64(raw, 0).unwrap_or(0);
            let has = entry & COPIED != 0;
            let Some(wanted) = wanted(self, entry).filter(|wanted| *wanted != has) else {
                continue;
            };
            if wanted && flags == Flags::Clear {
                continue;
            }
            if let Some(place) = raw.first_chunk_mut() {
                *place = (entry ^ COPIED).to_be_bytes();
                let start = index * len;
                changed = Some((changed.map_or(start, |(first, _)| first), start + 8));
            }
        }
        if let Some((start, end)) = changed {
            let changed = table.get(start..end).unwrap_or_default();
            self.file.write_all_at(changed, at + start as u64)?;
        }
        Ok(())
    }
}
