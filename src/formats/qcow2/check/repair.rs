//! Repair of counts and flags in place.
//!
//! The references to clusters are right by definition: counts and flags are made to agree with them, and no
//! entry is changed to agree with a count. A count that is too high, or a missing flag, makes a writer copy or
//! waste a cluster; a count that is too low, or a flag too many, makes it overwrite data. Therefore one commit
//! raises counts and clears flags, and the next one lowers counts and sets flags.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::image::{Fixed, Request};
use crate::limits::Limits;
use crate::map::edit::{Changes, Ordered, Rank, TableStore};
use crate::ondisk::TableEntry;
use crate::source::{BlockSource, BlockSourceExt};
use crate::target::BlockTarget;

use super::super::entry::{Copied, L1Entry, L2Layout, set_copied};
use super::super::header::{Header, HeaderV3};
use super::super::refcount::read_padded;
use super::super::{Autoclear, Incompatible};
use super::Survey;
use super::counts::{Counts, PIECE};

/// Repairs only leaks.
///
/// # Errors
/// As [`check`](super::check), and errors of writing.
pub(in super::super) fn repair_leaks(
    file: &Arc<dyn BlockTarget>,
    request: &Request<'_>,
) -> Result<Fixed> {
    repair(file, request.limits, Repair::leaks)
}

/// Repairs everything.
///
/// # Errors
/// As [`repair_leaks`].
pub(in super::super) fn repair_all(
    file: &Arc<dyn BlockTarget>,
    request: &Request<'_>,
) -> Result<Fixed> {
    repair(file, request.limits, Repair::all)
}

fn repair(
    file: &Arc<dyn BlockTarget>,
    limits: &Limits,
    run: fn(&mut Repair) -> Result<()>,
) -> Result<Fixed> {
    let store = Arc::new(TableStore::new(file, Ordered, limits));
    let source: Arc<dyn BlockSource> = Arc::clone(&store) as _;
    let before = Survey::run(&source, limits)?;
    let (corruptions, leaks) = (before.findings.corruptions, before.findings.leaks);
    let after = if before.findings.is_clean() {
        before
    } else {
        run(&mut Repair::new(Arc::clone(&store), &source, before)?)?;
        Survey::run(&source, limits)?
    };
    let found = &after.findings;
    if found.corruptions == 0 && found.errors == 0 {
        store.put(clear_flags_of_damage(&after.header))?;
    }
    store.commit()?;
    Ok(Fixed {
        corruptions: corruptions.saturating_sub(found.corruptions),
        leaks: leaks.saturating_sub(found.leaks),
    })
}

/// Clears the dirty and the corrupt bit.
fn clear_flags_of_damage(header: &Header) -> Changes {
    let damage = Incompatible::DIRTY | Incompatible::CORRUPT;
    if !header.incompatible.intersects(damage) {
        return Changes::default();
    }
    let bits = header.incompatible.difference(damage).bits();
    let field = HeaderV3::incompatible_features;
    Changes::of(Rank::Header, field.at(HeaderV3::AT), field.bytes(bits))
}

/// Clears the bits of unknown features. Clusters of such a feature may be among the leaks, and the bit says to
/// clear it then.
fn clear_unknown_features(header: &Header) -> Changes {
    let known = header.autoclear & Autoclear::all();
    if header.version < 3 || known == header.autoclear {
        return Changes::default();
    }
    let field = HeaderV3::autoclear_features;
    Changes::of(
        Rank::Header,
        field.at(HeaderV3::AT),
        field.bytes(known.bits()),
    )
}

/// A repair on its way.
pub(super) struct Repair {
    pub(super) store: Arc<TableStore<Ordered>>,
    pub(super) survey: Survey,
    /// The counts as they are to be.
    pub(super) counts: Counts,
}

/// Flags to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flags {
    /// Those that promise more than is so.
    Clear,
    /// All that are wrong.
    All,
}

/// Counts to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Raise,
    Lower,
}

impl Repair {
    fn new(
        store: Arc<TableStore<Ordered>>,
        source: &Arc<dyn BlockSource>,
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
        let mut repair = Repair {
            store,
            survey,
            counts,
        };
        if repair.survey.incomplete || repair.survey.damaged {
            repair.keep_leaks()?;
        }
        Ok(repair)
    }

    /// Repairs everything: what promises too much goes first, then what promises too little.
    fn all(&mut self) -> Result<()> {
        // A file that was cut short must not grow: what is missing would turn into other bytes.
        if self.survey.rebuild && (self.survey.past_end || self.survey.incomplete) {
            return Ok(());
        }
        self.store
            .put(clear_unknown_features(&self.survey.header))?;
        self.store.commit()?;
        self.put_flags(Flags::Clear)?;
        if self.survey.rebuild {
            self.rebuild()?;
            self.store.commit()?;
        } else {
            self.put_counts(Change::Raise)?;
            self.store.commit()?;
            self.put_counts(Change::Lower)?;
        }
        // A count that is too large to be stored does not prove that a cluster has one owner.
        if !self.survey.too_many {
            self.put_flags(Flags::All)?;
        }
        Ok(())
    }

    /// Gives leaked clusters back, and sets flags if nothing else is wrong.
    fn leaks(&mut self) -> Result<()> {
        if self.survey.rebuild {
            return Ok(());
        }
        self.store
            .put(clear_unknown_features(&self.survey.header))?;
        self.store.commit()?;
        self.put_counts(Change::Lower)?;
        let survey = &self.survey;
        if !survey.damaged && !survey.too_low && !survey.too_many {
            self.put_flags(Flags::All)?;
        }
        Ok(())
    }

    /// Keeps counts that are too high: damaged tables may have referred to these clusters.
    fn keep_leaks(&mut self) -> Result<()> {
        let layout = self.survey.stored.layout();
        let most = layout.most();
        self.each_block(|repair, first, block| {
            for index in 0..layout.per_block(block.len() as u64) {
                let cluster = first + index;
                // New counts replace the old ones, whose blocks are no leaks.
                let found = match repair.survey.rebuild {
                    true => repair.survey.counts.of(cluster),
                    false => repair.counts.of(cluster),
                };
                let stored = layout.read(block, index);
                if stored > found && repair.is_in_file(cluster) {
                    let budget = &mut repair.survey.budget;
                    repair.counts.add(cluster, stored - found, most, budget)?;
                }
            }
            Ok(None)
        })
    }

    fn is_in_file(&self, cluster: u64) -> bool {
        cluster < self.store.size().div_ceil(self.survey.cluster_size())
    }

    /// Calls `each` once for each refcount block in the file, with its first cluster. The range of bytes that it
    /// returns is put into the store.
    fn each_block(
        &mut self,
        mut each: impl FnMut(&mut Self, u64, &mut [u8]) -> Result<Option<Range<usize>>>,
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
                block = read_padded(&self.store, at, self.survey.cluster_size())?;
            }
            let changed = each(self, first, &mut block)?;
            self.put_range(Rank::Count, at, &block, changed)?;
        }
        Ok(())
    }

    fn put_counts(&mut self, change: Change) -> Result<()> {
        let layout = self.survey.stored.layout();
        self.each_block(|repair, first, block| {
            let mut changed = None;
            for index in 0..layout.per_block(block.len() as u64) {
                let cluster = first + index;
                let (stored, wanted) = (layout.read(block, index), repair.counts.of(cluster));
                let wrong = match change {
                    Change::Raise => stored < wanted,
                    Change::Lower => stored > wanted && repair.is_in_file(cluster),
                };
                if wrong {
                    layout.write(block, index, wanted);
                    let place = layout.place(index).0;
                    extend(&mut changed, place);
                }
            }
            Ok(changed)
        })
    }

    /// Makes the flags of the active tables fit the counts.
    fn put_flags(&mut self, flags: Flags) -> Result<()> {
        self.put_l1_flags(flags)?;
        let tables = self.survey.tables.iter();
        let active = tables.filter(|(_, uses)| uses.active > 0);
        let active: Vec<u64> = active.map(|(offset, _)| *offset).collect();
        for offset in active {
            self.put_l2_flags(offset, flags)?;
        }
        Ok(())
    }

    fn put_l1_flags(&mut self, flags: Flags) -> Result<()> {
        let header = &self.survey.header;
        let (start, len) = (header.l1_table_offset, u64::from(header.l1_size) * 8);
        let whole = start
            .checked_add(len)
            .is_some_and(|end| end <= self.store.size());
        if start % header.cluster_size() != 0 || !whole {
            return Ok(());
        }
        let mut table = vec![0; usize::try_from(len).unwrap_or(0)];
        self.store.read_exact_at(&mut table, start)?;
        self.put_entries(Rank::Root, start, table, 8, flags, |raw| {
            let entry = L1Entry::decode(raw, 0)?;
            Some((entry.is_copied(), self.wanted(entry.offset())?))
        })
    }

    fn put_l2_flags(&mut self, offset: u64, flags: Flags) -> Result<()> {
        let header = &self.survey.header;
        let table = read_padded(&self.store, offset, header.cluster_size())?;
        let layout = L2Layout::of(header);
        let len = layout.entry_len();
        self.put_entries(Rank::Leaf, offset, table, len, flags, |raw| {
            let entry = layout.decode(raw, 0)?;
            let wanted = match entry.offset() {
                _ if entry.descriptor().is_some() => None,
                // Clusters of a data file have no counts, and each has one entry.
                offset if header.has_data_file() => (offset != 0).then_some(true),
                offset => self.wanted(offset),
            };
            Some((entry.is_copied(), wanted?))
        })
    }

    /// Returns whether an entry that points there has to have the flag; `None` where none can.
    fn wanted(&self, offset: u64) -> Option<bool> {
        let bits = self.survey.header.cluster_bits;
        let sound = offset != 0 && offset % (1 << bits) == 0;
        sound.then(|| self.counts.of(offset >> bits) == 1)
    }

    /// Puts the entries whose flags change.
    fn put_entries(
        &self,
        rank: Rank,
        at: u64,
        mut table: Vec<u8>,
        entry_len: u64,
        flags: Flags,
        has_and_wanted: impl Fn(&[u8]) -> Option<(bool, bool)>,
    ) -> Result<()> {
        let mut changed = None;
        let len = usize::try_from(entry_len).unwrap_or(8);
        for (index, raw) in table.chunks_exact_mut(len).enumerate() {
            let Some((has, wanted)) = has_and_wanted(raw) else {
                continue;
            };
            if has == wanted || wanted && flags == Flags::Clear {
                continue;
            }
            set_copied(raw, wanted);
            extend(&mut changed, index * len..index * len + 8);
        }
        self.put_range(rank, at, &table, changed)
    }

    /// Puts a range of a structure at `at`.
    fn put_range(
        &self,
        rank: Rank,
        at: u64,
        bytes: &[u8],
        range: Option<Range<usize>>,
    ) -> Result<()> {
        let Some(range) = range else {
            return Ok(());
        };
        let start = at + range.start as u64;
        let bytes = bytes.get(range).unwrap_or_default();
        self.store.put(Changes::of(rank, start, bytes))
    }
}

/// Extends a range to the end of a later one.
fn extend(range: &mut Option<Range<usize>>, later: Range<usize>) {
    match range {
        Some(range) => range.end = later.end,
        None => *range = Some(later),
    }
}
