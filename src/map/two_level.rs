//! Two levels of tables with entries of 64 bits, as qcow and QED have them.
//!
//! Neither format counts references: a cluster, and a table, belongs to one entry and to no other.
//! The cluster of an entry has to lie in the file, and apart from all metadata.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

use crate::error::{Error, Result};
use crate::format_id::FormatId;
use crate::limits::Limits;
use crate::lock::lock;
use crate::map::{BlockMap, Claim, Claims, Held, Packing, Regions, Run, Table, TableReader};
use crate::ondisk::{FieldType, Order};
use crate::source::BlockSource;

/// The meaning of an entry of an L2 table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cluster {
    Stored { host: u64 },
    Packed { host: u64, len: u64 },
    Zero,
    Unallocated,
}

/// The encoding of a format's entries.
pub(crate) trait Entries: Debug + Send + Sync {
    fn decode(&self, entry: u64) -> Cluster;

    /// The compression of clusters, for a format that has compressed ones.
    fn packing(&self) -> Option<&dyn Packing> {
        None
    }
}

/// The tables as the header describes them. Sizes and offsets are in bytes.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) format: FormatId,
    pub(crate) order: Order,
    /// A power of two.
    pub(crate) cluster_size: u64,
    /// Length of an L2 table, a power of two.
    pub(crate) table_size: u64,
    /// Alignment of L2 tables.
    pub(crate) table_alignment: u64,
    pub(crate) virtual_size: u64,
    /// Host offset of the L1 table.
    pub(crate) l1_offset: u64,
    /// The least length of the L1 table, whatever the disk needs of it.
    pub(crate) l1_size: u64,
    /// Other metadata that the header names.
    pub(crate) regions: Regions,
}

/// The tables of an image.
#[derive(Debug)]
pub(crate) struct TwoLevel<E> {
    pub(super) shape: Shape,
    pub(super) entries: E,
    pub(super) file: Arc<dyn BlockSource>,
    pub(super) file_size: u64,
    /// The L1 table, as far as the disk needs it, as it stands in the file.
    pub(super) l1: Vec<u8>,
    pub(super) reader: TableReader,
    /// Host offsets of all L2 tables, in order. Made when the first one is read: a
    /// description of the image needs none.
    tables: OnceLock<Vec<u64>>,
    /// The clusters of the pieces of tables that were read.
    claims: Mutex<Claims>,
    /// The clusters of all tables, once that was asked for, if the image is salvaged.
    all_claims: OnceLock<Claims>,
}

/// Tables are read in pieces: one of QED's can be a gibibyte long.
pub(super) const PIECE: u64 = 64 << 10;

impl<E: Entries> TwoLevel<E> {
    /// Reads the L1 table.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`], and [`Error::Malformed`] if it is not all in the file, or where other
    /// metadata is.
    pub(crate) fn open(
        mut shape: Shape,
        entries: E,
        file: &Arc<dyn BlockSource>,
        limits: &Limits,
        salvages: bool,
    ) -> Result<Self> {
        let span = u128::from(shape.table_size / 8) * u128::from(shape.cluster_size);
        let count = u128::from(shape.virtual_size).div_ceil(span);
        let len = u64::try_from(count * 8).unwrap_or(u64::MAX);
        let start = shape.l1_offset;
        let bad = |problem| Err(Error::malformed(shape.format, "L1 table", start, problem));
        let whole = len.max(shape.l1_size);
        let may_be_cut = salvages && start < file.size();
        let end = start.checked_add(whole);
        let end = end.filter(|end| *end <= file.size() || may_be_cut);
        let Some(end) = end else {
            let (size, need) = (file.size(), shape.virtual_size);
            return bad(format!(
                "{whole} bytes long, as a disk of {need} bytes needs it, it reaches past the end of the \
                 file at {size}"
            ));
        };
        limits.check_metadata("the L1 table", len)?;
        if let Err(other) = shape.regions.add(start, end - start, "L1 table") {
            return bad(format!("is in the {other}"));
        }
        let there = (file.size() - start) / 8 * 8;
        let mut l1 = vec![0; usize::try_from(len.min(there)).unwrap_or(0)];
        let reader = TableReader::new(shape.format, limits, salvages);
        reader.read(file, &mut l1, start)?;
        Ok(TwoLevel {
            reader,
            shape,
            entries,
            file: Arc::clone(file),
            file_size: file.size(),
            l1,
            tables: OnceLock::new(),
            claims: Mutex::default(),
            all_claims: OnceLock::new(),
        })
    }

    fn malformed(&self, structure: &'static str, guest: u64, problem: &str) -> Error {
        let problem = format!("{problem} (guest offset {guest})");
        Error::malformed(self.shape.format, structure, None, problem)
    }

    /// Guest bytes for which one L2 table answers.
    pub(super) fn span_of_table(&self) -> u64 {
        (self.shape.table_size / 8).saturating_mul(self.shape.cluster_size)
    }

    pub(super) fn number(&self, table: &[u8], index: u64) -> Option<u64> {
        let offset = usize::try_from(index.checked_mul(8)?).ok()?;
        u64::get(table, offset, self.shape.order)
    }

    fn tables(&self) -> &[u64] {
        self.tables.get_or_init(|| {
            let entries = (0..self.l1.len() as u64 / 8).filter_map(|i| self.number(&self.l1, i));
            let mut tables: Vec<u64> = entries.filter(|entry| *entry != 0).collect();
            tables.sort_unstable();
            tables
        })
    }

    /// Returns `true` if the table at `offset` shares bytes with another one, or is that of two entries.
    fn table_is_shared(&self, offset: u64) -> bool {
        let tables = self.tables();
        let first =
            tables.partition_point(|table| table.saturating_add(self.shape.table_size) <= offset);
        let end = offset.saturating_add(self.shape.table_size);
        let near = tables.iter().skip(first).take(2);
        near.filter(|table| **table < end).count() > 1
    }

    /// The name of the metadata that a range of the file runs into.
    fn metadata_at(&self, range: &Range<u64>) -> Option<&'static str> {
        let region = self
            .shape
            .regions
            .overlapping(range.start, range.end - range.start);
        region.or_else(|| {
            let tables = self.tables();
            let after = tables.partition_point(|table| *table < range.end);
            let last = tables.get(after.checked_sub(1)?)?;
            (last.saturating_add(self.shape.table_size) > range.start).then_some("L2 table")
        })
    }

    /// Host offset of the L2 table that answers for `guest`, if there is one.
    fn table_offset(&self, guest: u64) -> Result<Option<u64>> {
        let index = guest / self.span_of_table();
        let place = self.shape.l1_offset.saturating_add(index.saturating_mul(8));
        self.reader.check("L1 table", place, 8)?;
        let offset = self.number(&self.l1, index);
        if offset.is_none() && self.reader.salvages() {
            let problem = format!("lacks entry {index}: it was cut short");
            return Err(self.malformed("L1 table", guest, &problem));
        }
        let offset = offset.unwrap_or(0);
        if offset == 0 {
            return Ok(None);
        }
        let bad = |problem: String| {
            let text = format!("entry {index} is {offset:#x}, {problem}");
            Err(self.malformed("L1 table", guest, &text))
        };
        if offset % self.shape.table_alignment != 0 {
            return bad(format!("not a multiple of {}", self.shape.table_alignment));
        }
        let end = offset.checked_add(self.shape.table_size);
        let Some(end) = end.filter(|end| *end <= self.file_size) else {
            return bad("and the table there reaches past the end of the file".to_owned());
        };
        if let Some(other) = self.shape.regions.overlapping(offset, end - offset) {
            return bad(format!("which is in the {other}"));
        }
        if self.table_is_shared(offset) {
            return bad("where another entry has its table, too".to_owned());
        }
        Ok(Some(offset))
    }

    /// The piece of an L2 table that answers for `guest`.
    fn piece(&self, guest: u64) -> Result<Option<Table>> {
        let Some(table) = self.table_offset(guest)? else {
            return Ok(None);
        };
        let len = self.shape.table_size.min(PIECE);
        let covered = (len / 8).saturating_mul(self.shape.cluster_size);
        let start = guest - guest % covered;
        let offset = table + start % self.span_of_table() / covered * len;
        let entries = self.reader.table(offset, || {
            let mut piece = vec![0; usize::try_from(len).unwrap_or(0)];
            self.reader.read(&self.file, &mut piece, offset)?;
            if !self.reader.salvages() {
                self.count(offset, &piece, start)?;
            }
            Ok(piece)
        })?;
        Ok(Some(Table {
            guest: start..start.saturating_add(covered),
            host: offset,
            entries,
        }))
    }

    /// Counts the clusters that the entries of a piece have, whose first one answers for `guest`.
    fn count(&self, offset: u64, piece: &[u8], guest: u64) -> Result<()> {
        let mut claims = lock(&self.claims);
        if claims.is_counted(offset) {
            return Ok(());
        }
        // Entries past the end of the disk own nothing.
        let left = self.shape.virtual_size.saturating_sub(guest);
        let entries = (piece.len() as u64 / 8).min(left.div_ceil(self.shape.cluster_size));
        let twice = |host: u64| {
            let problem = format!("two entries have the cluster at byte {host}");
            Err(self.malformed("L2 table", guest, &problem))
        };
        let mut packed = Vec::new();
        for entry in (0..entries).filter_map(|index| self.number(piece, index)) {
            let cluster = self.entries.decode(entry);
            let Some((clusters, claim)) = self.clusters_of(cluster) else {
                continue;
            };
            let host = match cluster {
                Cluster::Packed { host, len } => {
                    packed.push((host, host.saturating_add(len)));
                    host
                }
                _ => clusters.start * self.shape.cluster_size,
            };
            if !claims.claim(clusters, claim, self.reader.limits())? {
                return twice(host);
            }
        }
        packed.sort_unstable();
        let pairs = packed.iter().zip(packed.iter().skip(1));
        if let Some((_, (host, _))) = pairs.into_iter().find(|((_, end), (next, _))| end > next) {
            return twice(*host);
        }
        claims.set_counted(offset);
        Ok(())
    }

    /// The clusters of the file that an entry has, and how.
    pub(super) fn clusters_of(&self, cluster: Cluster) -> Option<(Range<u64>, Claim)> {
        let size = self.shape.cluster_size;
        match cluster {
            Cluster::Stored { host } if host % size == 0 && host < self.file_size => {
                Some((host / size..host / size + 1, Claim::Own))
            }
            // Compressed clusters lie side by side, in clusters that are shared by them alone.
            Cluster::Packed { host, len } if host < self.file_size => {
                let last = host.saturating_add(len.saturating_sub(1));
                let last = last.min(self.file_size) / size;
                Some((host / size..last + 1, Claim::Packed))
            }
            _ => None,
        }
    }

    /// Returns `true` if another entry has a cluster of this one. The first answer reads all tables.
    fn is_contested(&self, entry: u64) -> Result<bool> {
        let Some((mut clusters, _)) = self.clusters_of(self.entries.decode(entry)) else {
            return Ok(false);
        };
        let claims = match self.all_claims.get() {
            Some(claims) => claims,
            None => {
                let found = self.claim_all()?;
                self.all_claims.get_or_init(|| found)
            }
        };
        Ok(clusters.any(|number| claims.is_contested(number)))
    }

    fn claim_all(&self) -> Result<Claims> {
        let mut claims = Claims::default();
        let len = self.shape.table_size.min(PIECE);
        let mut piece = vec![0; usize::try_from(len).unwrap_or(0)];
        for index in 0..self.l1.len() as u64 / 8 {
            // A table that cannot be read owns nothing.
            let Ok(Some(table)) = self.table_offset(index.saturating_mul(self.span_of_table()))
            else {
                continue;
            };
            for offset in (table..table + self.shape.table_size).step_by(piece.len().max(1)) {
                if self.reader.read(&self.file, &mut piece, offset).is_err() {
                    continue;
                }
                let entries = (0..len / 8).filter_map(|i| self.number(&piece, i));
                let clusters = entries.filter_map(|e| self.clusters_of(self.entries.decode(e)));
                for (clusters, claim) in clusters {
                    claims.claim(clusters, claim, self.reader.limits())?;
                }
            }
        }
        Ok(claims)
    }

    /// The run at `guest` by its entry, checked.
    fn decode(&self, entry: u64, guest: u64) -> Result<Run> {
        let bad = |problem: &str| {
            let text = format!("entry {entry:#x} {problem}");
            Err(self.malformed("L2 table", guest, &text))
        };
        if self.reader.salvages() && self.is_contested(entry)? {
            return bad("has a cluster that another entry has, too");
        }
        let cluster_size = self.shape.cluster_size;
        let into = guest % cluster_size;
        let start = guest - into;
        match self.entries.decode(entry) {
            Cluster::Zero => Ok(Run::Zero),
            Cluster::Unallocated => Ok(Run::Unallocated),
            Cluster::Stored { host } => {
                if host % cluster_size != 0 {
                    return bad("is not at the start of a cluster");
                }
                // Of the disk's last cluster only the disk's part has to be there.
                let needed = cluster_size.min(self.shape.virtual_size.saturating_sub(start));
                let end = host
                    .checked_add(needed)
                    .filter(|end| *end <= self.file_size);
                let Some(end) = end else {
                    return Err(self.past_end(start, host, self.file_size));
                };
                match self.metadata_at(&(host..end)) {
                    Some(other) => bad(&format!("points into the {other}")),
                    None => Ok(Run::Stored { host: host + into }),
                }
            }
            Cluster::Packed { host, len } => {
                let end = host.saturating_add(len);
                if host >= self.file_size {
                    return Err(self.past_end(start, host, self.file_size));
                }
                match self.metadata_at(&(host..end)) {
                    Some(other) => bad(&format!("points into the {other}")),
                    None => Ok(Run::Packed { host, max_len: len }),
                }
            }
        }
    }
}

impl<E: Entries> BlockMap for TwoLevel<E> {
    fn unit(&self) -> u64 {
        self.shape.cluster_size
    }

    fn step(&self, guest: u64, held: &mut Held) -> Result<(Run, u64)> {
        let cluster_size = self.shape.cluster_size;
        let Some(piece) = held.table(guest, || self.piece(guest))? else {
            let span = self.span_of_table();
            return Ok((Run::Unallocated, span - guest % span));
        };
        let index = (guest - piece.guest.start) / cluster_size;
        let place = piece.host.saturating_add(index * 8);
        self.reader.check("L2 table", place, 8)?;
        let entry = self.number(&piece.entries, index).unwrap_or(0);
        let run = self.decode(entry, guest)?;
        // Entries that could not be read are zeros, too.
        let count = match entry == 0 && !self.reader.salvages() {
            true => piece.zeros(index, 8).max(1),
            false => 1,
        };
        Ok((run, count * cluster_size - guest % cluster_size))
    }

    fn lost_with(&self, guest: u64) -> u64 {
        let answers = match (self.table_offset(guest), self.piece(guest)) {
            (Err(_), _) => self.span_of_table(),
            (_, Err(_)) => (self.shape.table_size.min(PIECE) / 8).saturating_mul(self.unit()),
            _ => self.unit(),
        };
        answers - guest % answers
    }

    fn tables(&self) -> Vec<(u64, u64)> {
        let len = self.shape.table_size;
        let tables = TwoLevel::tables(self).iter();
        tables.map(|at| (*at, at.saturating_add(len))).collect()
    }

    fn packing(&self) -> Option<&dyn Packing> {
        self.entries.packing()
    }

    fn past_end(&self, guest: u64, host: u64, file_size: u64) -> Error {
        data_past_end(self.shape.format, guest, host, file_size)
    }
}

/// The error about data that the file no longer has.
pub(crate) fn data_past_end(format: FormatId, guest: u64, host: u64, file_size: u64) -> Error {
    let problem = format!(
        "the data of guest offset {guest}, from byte {host} on, reaches past the end of the file at \
         {file_size}: it was cut short"
    );
    Error::malformed(format, "data cluster", host, problem)
}
