//! Check of the tables and of the reference counts.
//!
//! All that refers to clusters is counted anew: the header, the L1 and L2 tables of the active state
//! and of each snapshot, the snapshot table, bitmaps, the encryption's header, the refcount table and its
//! blocks. Then the counts in the file are compared. What is counted as a corruption or a leak is what
//! `qemu-img check` counts, and what it does not look at besides.

mod compare;
mod counts;
mod packed;
mod rebuild;
mod repair;
mod tables;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::{Clusters, Finding, Findings};
use crate::limits::Limits;
use crate::source::BlockSource;

use super::entry::RefcountTableEntry;
use super::header::Header;
use super::refcount::{self, StoredCounts};
use super::{Autoclear, Incompatible, encrypt, open};
use counts::{Budget, Counts};
use packed::Packed;

pub(super) use repair::{repair_all, repair_leaks};

/// Bytes of memory for an L2 table in the list of those to check.
const TABLE_BYTES: u64 = 64;

/// Checks the image in `source`.
pub(super) fn check(source: &Arc<dyn BlockSource>, limits: &Limits) -> Result<Findings> {
    Ok(Survey::run(source, limits)?.findings)
}

/// Findings, and the state of the check.
#[derive(Debug)]
pub(super) struct Survey {
    header: Header,
    file: Arc<dyn BlockSource>,
    limits: Limits,
    budget: Budget,
    findings: Findings,
    /// All references.
    counts: Counts,
    /// Those that make a cluster a table or another structure.
    structures: Counts,
    /// Those of compressed clusters.
    packed: Packed,
    stored: StoredCounts,
    /// The L2 tables, by their host offset.
    tables: BTreeMap<u64, Uses>,
    /// True if a structure that refers to clusters could not be read: its clusters look like leaks then.
    incomplete: bool,
    /// True if a table has damage other than wrong counts and flags: clusters that it once referred to
    /// may be among the leaks.
    damaged: bool,
    /// True if a cluster has more references than its count says.
    too_low: bool,
    /// True if a cluster has more references than can be counted.
    too_many: bool,
    /// True if something refers to bytes past the end of the file, which it would get if it grew.
    past_end: bool,
    /// True if the counts cannot be repaired in place.
    rebuild: bool,
    /// The last cluster that is in use or counts as such.
    last_cluster: u64,
}

/// References to an L2 table.
#[derive(Debug, Clone, Copy, Default)]
struct Uses {
    /// Entries of all L1 tables.
    all: u64,
    /// Those of the active one.
    active: u64,
    /// The guest offset of the first range for which it answers.
    guest: u64,
}

impl Survey {
    /// Looks at everything.
    pub(super) fn run(source: &Arc<dyn BlockSource>, limits: &Limits) -> Result<Self> {
        let mut survey = Self::new(source, limits)?;
        survey.look_at_header();
        survey.look_at_references()?;
        survey.look_at_refcount_table()?;
        survey.compare()?;
        let clusters = survey.last_cluster + 1;
        survey.findings.image_end = Some(clusters.saturating_mul(survey.cluster_size()));
        Ok(survey)
    }

    fn new(source: &Arc<dyn BlockSource>, limits: &Limits) -> Result<Self> {
        let header = open::read_header(source)?;
        let mut findings = Findings::default();
        let table = findings.sound(refcount::read_table(&header, source, limits))?;
        let rebuild = table.is_none();
        Ok(Survey {
            stored: StoredCounts::new(&header, source, table.unwrap_or_default(), limits),
            header,
            file: Arc::clone(source),
            limits: limits.clone(),
            budget: Budget::new(limits),
            findings,
            counts: Counts::default(),
            structures: Counts::default(),
            packed: Packed::default(),
            tables: BTreeMap::new(),
            incomplete: false,
            damaged: false,
            too_low: false,
            past_end: false,
            too_many: false,
            rebuild,
            last_cluster: 0,
        })
    }

    /// Counts everything that refers to clusters, but for the counts themselves.
    fn look_at_references(&mut self) -> Result<()> {
        self.findings.clusters = Some(Clusters {
            total: self.header.size.div_ceil(self.cluster_size()),
            ..Clusters::default()
        });
        self.structure("header", 0, self.cluster_size())?;
        self.look_at_l1_tables()?;
        self.look_at_l2_tables()?;
        self.look_for_overlaps();
        self.look_at_encryption()?;
        self.look_at_bitmaps()
    }

    fn cluster_size(&self) -> u64 {
        self.header.cluster_size()
    }

    fn look_at_header(&mut self) {
        let has = |bit| self.header.incompatible.contains(bit);
        let (dirty, corrupt) = (has(Incompatible::DIRTY), has(Incompatible::CORRUPT));
        let unknown = self.header.autoclear.bits() & !Autoclear::all().bits();
        if dirty {
            let problem = "the dirty bit is set: the image was not closed";
            self.findings.note("header", problem);
        }
        if corrupt {
            let problem = "the corrupt bit is set: somebody found damage";
            self.findings.note("header", problem);
        }
        if unknown != 0 {
            let problem = format!("has the unknown autoclear bits {unknown:#x}");
            self.findings.note("header", problem);
        }
    }

    /// Counts a reference to each cluster of a structure; `false` if that was not possible.
    fn structure(&mut self, name: &'static str, start: u64, len: u64) -> Result<bool> {
        self.refer(name, start, len, 1, None, true)
    }

    /// Counts references to the clusters that `len` bytes at `start` touch. They may end beyond the end
    /// of the file, by less than a cluster: its last one need not be whole. `false` if one of them could
    /// not be counted.
    fn refer(
        &mut self,
        name: &'static str,
        start: u64,
        len: u64,
        times: u64,
        guest: Option<u64>,
        is_structure: bool,
    ) -> Result<bool> {
        if len == 0 {
            return Ok(true);
        }
        let file_size = self.file.size();
        let over = match start.checked_add(len) {
            Some(end) => end.saturating_sub(file_size),
            None => u64::MAX,
        };
        // Compressed clusters are counted in sectors, the last of which need not be whole.
        self.past_end |= over > 0 && name != "packed cluster";
        if over >= self.cluster_size() {
            self.past_end = true;
            let problem = format!("{len} bytes, lies past the end of the file at {file_size}");
            self.corruption(name, start, guest, times, problem);
            return Ok(false);
        }
        let most = self.stored.layout().most();
        let bits = self.header.cluster_bits;
        let mut all = true;
        for cluster in start >> bits..=(start + len - 1) >> bits {
            let added = self.counts.add(cluster, times, most, &mut self.budget)?;
            if is_structure {
                self.structures
                    .add(cluster, added, most, &mut self.budget)?;
            }
            if added < times {
                let problem =
                    format!("has more references than {most}, which is all that can be counted");
                // A repair chooses the place of the counts itself.
                self.too_many |= !name.starts_with("refcount");
                self.mismatch(name, cluster << bits, guest, times - added, problem);
                all = false;
            }
        }
        Ok(all)
    }

    /// Damage of a table.
    fn corruption(
        &mut self,
        structure: &'static str,
        at: u64,
        guest: Option<u64>,
        times: u64,
        problem: impl Into<Cow<'static, str>>,
    ) {
        self.damaged = true;
        self.mismatch(structure, at, guest, times, problem);
    }

    /// A count or a flag that does not fit the tables.
    fn mismatch(
        &mut self,
        structure: &'static str,
        at: u64,
        guest: Option<u64>,
        times: u64,
        problem: impl Into<Cow<'static, str>>,
    ) {
        let mut finding = Finding::corruption(structure, problem).at(at).times(times);
        finding.guest = guest;
        self.findings.add(finding);
    }

    /// Takes it down that what a structure refers to is not known.
    fn cannot_tell(&mut self, error: Error) -> Result<()> {
        self.incomplete = true;
        self.findings.add_damage(error)
    }

    fn look_at_encryption(&mut self) -> Result<()> {
        match encrypt::header_place(&self.header) {
            Ok(Some((start, len))) => {
                self.structure("encryption header", start, len)?;
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(error) => self.cannot_tell(error),
        }
    }

    /// The refcount table and its blocks. They come last: each has to have been nothing else.
    fn look_at_refcount_table(&mut self) -> Result<()> {
        let cluster_size = self.cluster_size();
        let table_len = u64::from(self.header.refcount_table_clusters).saturating_mul(cluster_size);
        if !self.rebuild {
            let start = self.header.refcount_table_offset;
            self.rebuild |= !self.structure("refcount table", start, table_len)?;
        }
        let end = self.file.size().next_multiple_of(cluster_size);
        for range in 0..self.stored.ranges() {
            let entry = self.stored.entry(range);
            if entry == RefcountTableEntry::default() {
                continue;
            }
            let offset = entry.offset();
            let problem = if entry.has_reserved_bits() {
                format!("entry {range} is {entry:#x}, with reserved bits set")
            } else if offset % cluster_size != 0 {
                format!("entry {range} is {entry:#x}, not at the start of a cluster")
            } else if offset >= end {
                format!("entry {range} is {entry:#x}, past the end of the file")
            } else {
                if !self.structure("refcount block", offset, cluster_size)? {
                    self.rebuild = true;
                    continue;
                }
                let references = self.counts.of(offset / cluster_size);
                if references == 1 {
                    continue;
                }
                format!("entry {range} is {entry:#x}, a cluster with {references} references")
            };
            let at = self.header.refcount_table_offset + range * 8;
            self.mismatch("refcount table", at, None, 1, problem);
            self.rebuild = true;
        }
        Ok(())
    }
}
