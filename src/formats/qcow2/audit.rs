//! What an image may not do with its clusters: use metadata as data, or one cluster for two things.
//!
//! Without these rules a small file could hold a disk of any size, each range of it the same cluster,
//! and a guest could read the tables that its own disk is made of.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::error::Result;
use crate::limits::Limits;
use crate::map::Claims;
use crate::source::{BlockSource, BlockSourceExt};

use super::entry::{COMPRESSED, COPIED, L1_OFFSET, L2_OFFSET, REFCOUNT_OFFSET, ZERO};
use super::header::Header;
use super::map::be_u64;

/// The clusters of an image that hold tables, and those that were found to hold data.
#[derive(Debug)]
pub(super) struct Audit {
    cluster_bits: u32,
    file_size: u64,
    /// Host offsets of the L2 tables, in order, each as often as an L1 entry has it.
    l2_tables: Vec<u64>,
    /// Host offsets of the refcount blocks, in order.
    refcount_blocks: Vec<u64>,
    claimed: Mutex<Claimed>,
}

/// Clusters that an entry says it has for itself.
#[derive(Debug, Default)]
struct Claimed {
    /// L2 tables whose entries are counted.
    tables: HashSet<u64>,
    clusters: Claims,
    /// Entries with data of their own, and with packed data.
    stored: u64,
    packed: u64,
}

/// The fewest bytes that a packed cluster can take up: the shortest frame of zstd has some more, the
/// shortest stream of deflate for 512 bytes as many.
const PACKED_LEAST: u64 = 8;

impl Audit {
    /// Learns where the tables of the state with this L1 table are. A refcount table that cannot be
    /// read, or makes no sense, is left out: the data can be read without it.
    pub(super) fn new(header: &Header, l1: &[u8], file: &dyn BlockSource, limits: &Limits) -> Self {
        let offsets = |table: &[u8], mask: u64| {
            let entries = table.chunks_exact(8).filter_map(|entry| be_u64(entry, 0));
            let mut offsets: Vec<u64> = entries.map(|e| e & mask).filter(|at| *at != 0).collect();
            offsets.sort_unstable();
            offsets
        };
        let table = read_refcount_table(header, file, limits).unwrap_or_default();
        Audit {
            cluster_bits: header.cluster_bits,
            file_size: file.size(),
            l2_tables: offsets(l1, L1_OFFSET),
            refcount_blocks: offsets(&table, REFCOUNT_OFFSET),
            claimed: Mutex::default(),
        }
    }

    /// What kind of table, if any, the cluster at `host` is, other than `but`.
    pub(super) fn table_at(&self, host: u64, but: Table) -> Option<&'static str> {
        let cluster = host >> self.cluster_bits << self.cluster_bits;
        if but != Table::L2 && self.l2_tables.binary_search(&cluster).is_ok() {
            return Some("L2 table");
        }
        self.refcount_blocks
            .binary_search(&cluster)
            .is_ok()
            .then_some("refcount block")
    }

    /// Whether more than one L1 entry has the L2 table at `host`. No state of a disk has one twice.
    pub(super) fn is_shared(&self, host: u64) -> bool {
        let first = self.l2_tables.partition_point(|table| *table < host);
        self.l2_tables.get(first + 1) == Some(&host)
    }

    /// Counts what the entries of an L2 table have for themselves; the problem, if an entry has what
    /// another one has. `stride` is how many numbers an entry is long, and `packed_at` tells where the
    /// data of a packed one begins.
    ///
    /// Where no flag says that a cluster is an entry's own, two may have it: some day somebody may have
    /// written such a file. But then there are no more of them than the file has room for.
    pub(super) fn count(
        &self,
        table_offset: u64,
        table: &[u8],
        stride: usize,
        packed_at: impl Fn(u64) -> u64,
        limits: &Limits,
    ) -> Result<Option<String>> {
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        if !claimed.tables.insert(table_offset) {
            return Ok(None);
        }
        let problem = self.count_new(&mut claimed, table, stride, packed_at, limits)?;
        if problem.is_some() {
            // Asked again, it has to say so again.
            claimed.tables.remove(&table_offset);
        }
        Ok(problem)
    }

    fn count_new(
        &self,
        claimed: &mut Claimed,
        table: &[u8],
        stride: usize,
        packed_at: impl Fn(u64) -> u64,
        limits: &Limits,
    ) -> Result<Option<String>> {
        let mut packed = Vec::new();
        let entries = table
            .chunks_exact(8 * stride)
            .filter_map(|entry| be_u64(entry, 0));
        for entry in entries {
            let host = entry & L2_OFFSET;
            if entry & COMPRESSED != 0 {
                packed.push(packed_at(entry));
            } else if host != 0 && entry & ZERO == 0 {
                claimed.stored += 1;
            }
            let is_own = entry & COMPRESSED == 0 && entry & COPIED != 0 && host != 0;
            if is_own && !claimed.clusters.claim(host >> self.cluster_bits, limits)? {
                return Ok(Some(format!(
                    "an entry says that the cluster at byte {host} is its own, and another one has it"
                )));
            }
        }
        packed.sort_unstable();
        let mut pairs = packed.iter().zip(packed.iter().skip(1));
        if let Some((host, _)) = pairs.find(|(one, next)| one == next) {
            return Ok(Some(format!(
                "two entries have the packed cluster at byte {host}"
            )));
        }
        claimed.packed += packed.len() as u64;
        let too_many = claimed.stored > (self.file_size >> self.cluster_bits) + 1
            || claimed.packed > self.file_size / PACKED_LEAST;
        Ok(too_many
            .then(|| "there are more entries with data than the file has room for".to_owned()))
    }
}

/// What an entry points to on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    /// An L2 table.
    L2,
    /// No table.
    None,
}

fn read_refcount_table(
    header: &Header,
    file: &dyn BlockSource,
    limits: &Limits,
) -> Option<Vec<u8>> {
    let len = u64::from(header.refcount_table_clusters).checked_mul(header.cluster_size())?;
    limits.check_metadata("the refcount table", len).ok()?;
    let start = header.refcount_table_offset;
    start.checked_add(len).filter(|end| *end <= file.size())?;
    let mut table = vec![0; usize::try_from(len).ok()?];
    file.read_exact_at(&mut table, start).ok()?;
    Some(table)
}
