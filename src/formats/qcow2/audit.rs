//! Clusters that metadata and data share, or two entries: no sound image has any.
//!
//! Without these rules a small file could hold a disk of any size, each range of it the same cluster,
//! and a guest could read the tables that its own disk is made of.

use std::sync::{Mutex, OnceLock};

use crate::error::Result;
use crate::limits::Limits;
use crate::lock::lock;
use crate::map::{Claim, Claims};
use crate::ondisk::TableEntry;
use crate::source::BlockSource;

use super::entry::{L1Entry, L2Entry, L2Layout, RefcountTableEntry};
use super::header::Header;
use super::refcount;

/// The clusters of an image that hold tables, and those that were found to hold data.
#[derive(Debug)]
pub(super) struct Audit {
    cluster_bits: u32,
    file_size: u64,
    layout: L2Layout,
    /// Host offsets of the L2 tables, in order, each as often as an L1 entry has it.
    l2_tables: Vec<u64>,
    /// Host offsets of the refcount blocks, in order.
    refcount_blocks: Vec<u64>,
    counted: Mutex<Counted>,
    /// The clusters that entries of all tables have for themselves, once that was asked for.
    owned: OnceLock<Claims>,
}

/// The entries that were counted: with the flag they have their cluster for themselves, without it they share
/// it.
#[derive(Debug, Default)]
struct Counted {
    clusters: Claims,
    /// Entries with data of their own, and with compressed data.
    stored: u64,
    packed: u64,
}

/// The fewest bytes that a compressed cluster can take up: the shortest frame of zstd has some more, the
/// shortest stream of deflate for 512 bytes as many.
const PACKED_LEAST: u64 = 8;

impl Audit {
    /// Learns where the tables of the state with this L1 table are. A refcount table that cannot be
    /// read, or makes no sense, is left out: the data can be read without it.
    pub(super) fn new(header: &Header, l1: &[u8], file: &dyn BlockSource, limits: &Limits) -> Self {
        let sorted = |offsets: &mut dyn Iterator<Item = u64>| {
            let mut offsets: Vec<u64> = offsets.filter(|at| *at != 0).collect();
            offsets.sort_unstable();
            offsets
        };
        let table = refcount::read_table(header, file, limits).unwrap_or_default();
        Audit {
            cluster_bits: header.cluster_bits,
            file_size: file.size(),
            layout: L2Layout::of(header),
            l2_tables: sorted(&mut L1Entry::all(l1).map(L1Entry::offset)),
            refcount_blocks: sorted(
                &mut RefcountTableEntry::all(&table).map(RefcountTableEntry::offset),
            ),
            counted: Mutex::default(),
            owned: OnceLock::new(),
        }
    }

    /// Returns the kind of table that the cluster at `host` holds, other than `but`.
    pub(super) fn table_at(&self, host: u64, but: Target) -> Option<&'static str> {
        let cluster = host >> self.cluster_bits << self.cluster_bits;
        if but != Target::L2Table && self.l2_tables.binary_search(&cluster).is_ok() {
            return Some("L2 table");
        }
        self.refcount_blocks
            .binary_search(&cluster)
            .is_ok()
            .then_some("refcount block")
    }

    /// Returns whether several L1 entries have the L2 table at `host`. No state of a disk has one twice.
    pub(super) fn is_shared(&self, host: u64) -> bool {
        let first = self.l2_tables.partition_point(|table| *table < host);
        self.l2_tables.get(first + 1) == Some(&host)
    }

    /// Counts what the entries of an L2 table have for themselves; the problem, if an entry has what
    /// another one has. `own` tells the cluster that an entry has for itself.
    ///
    /// Two entries may have a cluster that no flag gives to one of them, as long as there are no more of them
    /// than the file has room for. A cluster that one
    /// entry has for itself belongs to no other, and compressed data shares no cluster with other data.
    pub(super) fn count(
        &self,
        table_offset: u64,
        table: &[u8],
        own: &dyn Fn(L2Entry) -> Option<u64>,
        limits: &Limits,
    ) -> Result<Option<String>> {
        let mut counted = lock(&self.counted);
        if counted.clusters.is_counted(table_offset) {
            return Ok(None);
        }
        let problem = self.count_new(&mut counted, table, own, limits)?;
        if problem.is_none() {
            counted.clusters.set_counted(table_offset);
        }
        Ok(problem)
    }

    fn count_new(
        &self,
        counted: &mut Counted,
        table: &[u8],
        own: &dyn Fn(L2Entry) -> Option<u64>,
        limits: &Limits,
    ) -> Result<Option<String>> {
        let mut packed = Vec::new();
        for entry in self.layout.all(table) {
            if let Some(descriptor) = entry.descriptor() {
                packed.push(self.layout.data(descriptor).0);
                continue;
            }
            let host = entry.offset();
            if host != 0 && !self.layout.is_zero(entry) {
                counted.stored += 1;
            }
            let claim = match own(entry) {
                Some(_) => Claim::Own,
                None => Claim::Shared,
            };
            let cluster = host >> self.cluster_bits;
            if host == 0
                || counted
                    .clusters
                    .claim(cluster..cluster + 1, claim, limits)?
            {
                continue;
            }
            return Ok(Some(match counted.clusters.has(cluster, Claim::Packed) {
                true => among_packed(host),
                false => format!(
                    "an entry says that the cluster at byte {host} is its own, and another one has it"
                ),
            }));
        }
        for host in &packed {
            let cluster = host >> self.cluster_bits;
            let units = cluster..cluster + 1;
            if !counted.clusters.claim(units, Claim::Packed, limits)? {
                return Ok(Some(among_packed(*host)));
            }
        }
        packed.sort_unstable();
        let mut pairs = packed.iter().zip(packed.iter().skip(1));
        if let Some((host, _)) = pairs.find(|(one, next)| one == next) {
            return Ok(Some(format!(
                "two entries have the packed cluster at byte {host}"
            )));
        }
        counted.packed += packed.len() as u64;
        let too_many = counted.stored > (self.file_size >> self.cluster_bits) + 1
            || counted.packed > self.file_size / PACKED_LEAST;
        Ok(too_many
            .then(|| "there are more entries with data than the file has room for".to_owned()))
    }

    /// Returns whether the cluster at `host` belongs to several entries of the state's tables, or to one if
    /// `is_own` is false. All tables are read for the first answer, by `read`,
    /// which tells how much that is. What cannot be read has nothing.
    pub(super) fn is_contested(
        &self,
        host: u64,
        is_own: bool,
        own: &dyn Fn(L2Entry) -> Option<u64>,
        read: &dyn Fn(&mut [u8], u64) -> usize,
        limits: &Limits,
    ) -> Result<bool> {
        let owned = match self.owned.get() {
            Some(owned) => owned,
            None => {
                let found = self.find_owned(own, read, limits)?;
                self.owned.get_or_init(|| found)
            }
        };
        let cluster = host >> self.cluster_bits;
        Ok(match is_own {
            true => owned.is_contested(cluster),
            false => owned.has(cluster, Claim::Own),
        })
    }

    fn find_owned(
        &self,
        own: &dyn Fn(L2Entry) -> Option<u64>,
        read: &dyn Fn(&mut [u8], u64) -> usize,
        limits: &Limits,
    ) -> Result<Claims> {
        let mut owned = Claims::default();
        let mut table = vec![0; 1 << self.cluster_bits];
        for offset in &self.l2_tables {
            let n = read(&mut table, *offset);
            let entries = self.layout.all(table.get(..n).unwrap_or_default());
            for host in entries.filter_map(own) {
                let cluster = host >> self.cluster_bits;
                owned.claim(cluster..cluster + 1, Claim::Own, limits)?;
            }
        }
        Ok(owned)
    }
}

fn among_packed(host: u64) -> String {
    format!("one entry has the cluster around byte {host}, and another one packed data in it")
}

/// The thing that an entry is there to point to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// An L2 table.
    L2Table,
    /// A cluster of data.
    Data,
}
