//! Lookup of guest ranges: the walk through the L1 and L2 tables.
//!
//! Section "Cluster mapping" and "Extended L2 Entries" of the specification.

use std::sync::{Arc, OnceLock};

use crate::codec::{UnpackError, Unpacker};
use crate::error::{Error, Result};
use crate::map::{BlockMap, Held, Packing, Regions, Run, Table, TableReader};
use crate::ondisk::TableEntry;
use crate::packed::Codec;
use crate::source::BlockSource;

use super::QCOW2;
use super::audit::{Audit, Target};
use super::entry::{Copied, Descriptor, L1Entry, L2Entry, L2Layout, SUBCLUSTERS};
use super::header::{CompressionType, Header};

/// The tables of one state of an image: the active one, or a snapshot's.
#[derive(Debug)]
pub(super) struct Qcow2Map {
    /// The image file, which holds the tables and the compressed clusters.
    file: Arc<dyn BlockSource>,
    /// The L1 table as it stands in the file.
    l1: Vec<u8>,
    /// Host offset of that.
    l1_offset: u64,
    reader: TableReader,
    cluster_bits: u32,
    layout: L2Layout,
    extended_l2: bool,
    data_file: bool,
    unpacker: Unpacker,
    /// Metadata that no entry may point into.
    regions: Regions,
    header: Header,
    /// Made when the first table is read: a description of the image does not need it.
    audit: OnceLock<Audit>,
}

impl Qcow2Map {
    pub(super) fn new(
        header: &Header,
        file: Arc<dyn BlockSource>,
        l1: (Vec<u8>, u64),
        regions: Regions,
        reader: TableReader,
    ) -> Self {
        let (l1, l1_offset) = l1;
        Qcow2Map {
            file,
            l1,
            l1_offset,
            reader,
            cluster_bits: header.cluster_bits,
            layout: L2Layout::of(header),
            extended_l2: header.has_extended_l2(),
            data_file: header.has_data_file(),
            unpacker: match header.compression {
                CompressionType::Zlib => Unpacker::deflate(),
                CompressionType::Zstd => Unpacker::zstd(),
            },
            regions,
            header: header.clone(),
            audit: OnceLock::new(),
        }
    }

    fn audit(&self) -> &Audit {
        self.audit
            .get_or_init(|| Audit::new(&self.header, &self.l1, &self.file, self.reader.limits()))
    }

    /// The cluster that an entry says it has for itself, if it says so and makes sense otherwise.
    fn own_cluster(&self, entry: L2Entry) -> Option<u64> {
        let host = entry.offset();
        let own = entry.descriptor().is_none() && entry.is_copied() && host != 0;
        let sound = !self.layout.has_reserved_bits(entry) && host % self.cluster_size() == 0;
        (own && (sound || !self.reader.salvages())).then_some(host)
    }

    /// Fails if the cluster of an entry is that of another one, too, which is found out about all of them
    /// before any is believed: else it would be the first that was asked for that is. If one of the two says
    /// that it is its own, that one is.
    fn check_own(&self, entry: L2Entry, guest: u64) -> Result<()> {
        let host = entry.offset();
        if self.data_file || host == 0 || entry.descriptor().is_some() {
            return Ok(());
        }
        let own = |entry| self.own_cluster(entry);
        let is_own = own(entry).is_some();
        let read = |table: &mut [u8], at: u64| {
            let there = self.file.size().saturating_sub(at);
            let n = usize::try_from(there).map_or(table.len(), |there| there.min(table.len()));
            let there = table.get_mut(..n).unwrap_or_default();
            let read = self.reader.read(&self.file, there, at);
            read.map_or(0, |()| n)
        };
        let limits = self.reader.limits();
        match self
            .audit()
            .is_contested(host, is_own, &own, &read, limits)?
        {
            false => Ok(()),
            true => {
                let problem = format!(
                    "entry {entry:#x} has the cluster at byte {host}, and so has another one"
                );
                Err(self.malformed("L2 table", guest, problem))
            }
        }
    }

    /// The name of the metadata that the cluster at `host` holds, if it does.
    fn metadata_at(&self, host: u64, but: Target) -> Option<&'static str> {
        let region = self.regions.overlapping(host, self.cluster_size());
        region.or_else(|| self.audit().table_at(host, but))
    }

    fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn malformed(&self, structure: &'static str, guest: u64, problem: String) -> Error {
        let problem = format!("{problem} (guest offset {guest})");
        Error::malformed(QCOW2, structure, None, problem)
    }

    /// Host offset of the L2 table that answers for `guest`, if there is one.
    fn l2_offset(&self, guest: u64) -> Result<Option<u64>> {
        let index = guest / self.layout.table_span();
        let place = self.l1_offset.saturating_add(index.saturating_mul(8));
        self.reader.check("L1 table", place, 8)?;
        // The L1 table may be shorter than the disk is after it was enlarged.
        let Some(entry) = L1Entry::decode(&self.l1, index) else {
            if self.reader.salvages() {
                let problem = format!("entry {index} is missing");
                return Err(self.malformed("L1 table", guest, problem));
            }
            return Ok(None);
        };
        let offset = entry.offset();
        if entry.has_reserved_bits() {
            let problem = format!("entry {index} is {entry:#x}, with reserved bits set");
            return Err(self.malformed("L1 table", guest, problem));
        }
        if offset == 0 && !entry.is_copied() {
            return Ok(None);
        }
        if offset == 0 {
            let problem =
                format!("entry {index} is {entry:#x}: it has a table of its own, and none");
            return Err(self.malformed("L1 table", guest, problem));
        }
        if offset % self.cluster_size() != 0 {
            let problem = format!("entry {index} is {entry:#x}, not at the start of a cluster");
            return Err(self.malformed("L1 table", guest, problem));
        }
        if let Some(other) = self.metadata_at(offset, Target::L2Table) {
            let problem = format!("entry {index} points into the {other}");
            return Err(self.malformed("L1 table", guest, problem));
        }
        Ok(Some(offset))
    }

    /// That table.
    fn l2_table(&self, guest: u64) -> Result<Option<Table>> {
        let Some(host) = self.l2_offset(guest)? else {
            return Ok(None);
        };
        let entries = self.reader.table(host, || {
            let table = self.read_l2_table(host, guest)?;
            if !self.reader.salvages() {
                self.count(&table, host, guest)?;
            }
            Ok(table)
        })?;
        let start = guest - guest % self.layout.table_span();
        Ok(Some(Table {
            guest: start..start.saturating_add(self.layout.table_span()),
            host,
            entries,
        }))
    }

    /// Counts the clusters of an L2 table that answers for `guest`; fails if another one has one of them.
    fn count(&self, table: &[u8], host: u64, guest: u64) -> Result<()> {
        let audit = self.audit();
        if audit.is_shared(host) {
            let problem = format!("two entries have the L2 table at byte {host}");
            return Err(self.malformed("L1 table", guest, problem));
        }
        if self.data_file {
            return Ok(());
        }
        let own = |entry| self.own_cluster(entry);
        match audit.count(host, table, &own, self.reader.limits())? {
            None => Ok(()),
            Some(problem) => Err(self.malformed("L2 table", guest, problem)),
        }
    }

    /// Reads the L2 table at `offset`, which answers for `guest`: all of it, or what there is if that is to
    /// be salvaged.
    fn read_l2_table(&self, offset: u64, guest: u64) -> Result<Vec<u8>> {
        let there = self.file.size().saturating_sub(offset);
        let len = match self.reader.salvages() {
            true => self.cluster_size().min(there / 16 * 16),
            false => self.cluster_size(),
        };
        if len > there || len == 0 {
            let problem = format!("at byte {offset} reaches past the end of the file");
            return Err(self.malformed("L2 table", guest, problem));
        }
        let mut table = vec![0; usize::try_from(len).unwrap_or(0)];
        self.reader.read(&self.file, &mut table, offset)?;
        Ok(table)
    }

    /// The status of one guest offset by its entry, and for how many bytes of the cluster, from
    /// there on, it holds.
    fn decode(&self, entry: Option<L2Entry>, guest: u64) -> Result<(Run, u64)> {
        let Some(entry) = entry else {
            let problem = "lacks its entry: it was cut short".to_owned();
            return Err(self.malformed("L2 table", guest, problem));
        };
        if self.reader.salvages() {
            self.check_own(entry, guest)?;
        }
        let into = guest % self.cluster_size();
        let rest = self.cluster_size() - into;
        if let Some(descriptor) = entry.descriptor() {
            return Ok((self.decode_compressed(entry, descriptor, guest)?, rest));
        }
        let bad = |problem: &str| {
            let text = format!("entry {entry:#x} {problem}");
            Err(self.malformed("L2 table", guest, text))
        };
        if self.layout.has_reserved_bits(entry) {
            return bad("has reserved bits set");
        }
        let offset = entry.offset();
        let is_zero = self.layout.is_zero(entry);
        // Only in a data file can a cluster be at offset 0, and then bit 63 says that it is one.
        let allocated = offset != 0 || (self.data_file && entry.is_copied());
        if allocated {
            if offset % self.cluster_size() != 0 {
                return bad("is not at the start of a cluster");
            }
            if self.data_file && offset != guest - into {
                return bad("is not where the guest has it, and in a data file it has to be");
            }
            let metadata = if self.data_file {
                None
            } else {
                self.metadata_at(offset, Target::Data)
            };
            if let Some(other) = metadata {
                return bad(&format!("points into the {other}"));
            }
        }
        // The specification lets no cluster at offset 0 be an entry's own but in a data file.
        if !allocated && entry.is_copied() && !is_zero {
            return bad("has a cluster of its own, and none");
        }
        if self.extended_l2 {
            return self.decode_subclusters(entry, allocated, guest);
        }
        let run = match (is_zero, allocated) {
            (true, _) => Run::Zero,
            (false, true) => Run::Stored {
                host: offset + into,
            },
            (false, false) => Run::Unallocated,
        };
        Ok((run, rest))
    }

    fn decode_compressed(&self, entry: L2Entry, descriptor: Descriptor, guest: u64) -> Result<Run> {
        let (host, max_len) = self.layout.data(descriptor);
        if entry.is_copied() || host >= self.layout.compressed_limit() || self.data_file {
            let problem = format!("entry {entry:#x} is no valid compressed cluster");
            return Err(self.malformed("L2 table", guest, problem));
        }
        if let Some(other) = self.metadata_at(host & !(self.cluster_size() - 1), Target::Data) {
            let problem = format!("entry {entry:#x} points into the {other}");
            return Err(self.malformed("L2 table", guest, problem));
        }
        Ok(Run::Packed { host, max_len })
    }

    /// The status of the subclusters that begin with the one at `guest` and have the same.
    fn decode_subclusters(
        &self,
        entry: L2Entry,
        allocated: bool,
        guest: u64,
    ) -> Result<(Run, u64)> {
        let [stored, zero] = entry.subclusters();
        if stored & zero != 0 || (stored != 0 && !allocated) {
            let bitmap = entry.bitmap;
            let problem = format!("bitmap {bitmap:#x} of entry {entry:#x} contradicts itself");
            return Err(self.malformed("L2 table", guest, problem));
        }
        let into = guest % self.cluster_size();
        let subcluster_size = self.cluster_size() / u64::from(SUBCLUSTERS);
        let index = into / subcluster_size;
        let (stored, zero) = (stored >> index, zero >> index);
        let left = u64::from(SUBCLUSTERS) - index;
        let (run, count) = if stored & 1 != 0 {
            (
                Run::Stored {
                    host: entry.offset() + into,
                },
                stored.trailing_ones(),
            )
        } else if zero & 1 != 0 {
            (Run::Zero, zero.trailing_ones())
        } else {
            (Run::Unallocated, (stored | zero).trailing_zeros())
        };
        let len = u64::from(count).min(left) * subcluster_size - into % subcluster_size;
        Ok((run, len))
    }
}

impl BlockMap for Qcow2Map {
    fn unit(&self) -> u64 {
        self.cluster_size()
    }

    fn step(&self, guest: u64, held: &mut Held) -> Result<(Run, u64)> {
        let Some(table) = held.table(guest, || self.l2_table(guest))? else {
            let span = self.layout.table_span();
            return Ok((Run::Unallocated, span - guest % span));
        };
        let index = (guest - table.guest.start) >> self.cluster_bits;
        let place = table.host + index * self.layout.entry_len();
        self.reader
            .check("L2 table", place, self.layout.entry_len())?;
        let entry = self.layout.decode(&table.entries, index);
        let (run, len) = self.decode(entry, guest)?;
        let empty = entry.is_some_and(L2Entry::is_empty);
        // An unread sector is zeros, too.
        if empty && !self.reader.is_unread(table.host, self.cluster_size()) {
            let count = table.zeros(index, self.layout.entry_len());
            let len = (count << self.cluster_bits) - guest % self.cluster_size();
            return Ok((run, len));
        }
        Ok((run, len))
    }

    fn lost_with(&self, guest: u64) -> u64 {
        let answers = match self.l2_table(guest) {
            Ok(_) => self.cluster_size(),
            Err(_) => self.layout.table_span(),
        };
        answers - guest % answers
    }

    fn tables(&self) -> Vec<(u64, u64)> {
        let tables = L1Entry::all(&self.l1)
            .map(L1Entry::offset)
            .filter(|at| *at != 0);
        tables.map(|at| (at, at + self.cluster_size())).collect()
    }

    fn packing(&self) -> Option<&dyn Packing> {
        Some(self)
    }

    fn past_end(&self, guest: u64, host: u64, file_size: u64) -> Error {
        let problem = format!(
            "the data of guest offset {guest} is missing from byte {host} on, past the end of the \
             file at {file_size}: it was cut short"
        );
        Error::malformed(QCOW2, "data cluster", host, problem)
    }
}

impl Packing for Qcow2Map {
    fn codec(&self) -> Option<Codec> {
        Some(match self.header.compression {
            CompressionType::Zlib => Codec::Deflate,
            CompressionType::Zstd => Codec::Zstd,
        })
    }

    fn unpack(&self, payload: &[u8], _: u64, host: u64, unit: &mut [u8]) -> Result<()> {
        self.unpacker
            .unpack(payload, unit)
            .map_err(|error| match error {
                UnpackError::Damaged(problem) => {
                    Error::malformed(QCOW2, "compressed cluster", host, problem)
                }
                UnpackError::NotBuilt(feature) => Error::unsupported(
                    QCOW2,
                    format!("reading clusters packed with {feature}"),
                    "build blockform with the feature of that name",
                ),
            })
    }
}
