//! What an image may not do with its clusters: use metadata as data, or one cluster for two things.
//!
//! Without these rules a small file could hold a disk of any size, each range of it the same cluster,
//! and a guest could read the tables that its own disk is made of.

use std::collections::HashSet;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::error::Result;
use crate::limits::Limits;
use crate::map::Claims;
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
    claimed: Mutex<Claimed>,
    /// Who has which clusters in all tables, once that was asked for.
    owners: OnceLock<Owners>,
}

/// Clusters that an entry says it has for itself, and others.
#[derive(Debug, Default)]
struct Claimed {
    /// L2 tables whose entries are counted.
    tables: HashSet<u64>,
    clusters: Claims,
    /// Clusters of entries that do not say so.
    shared: Claims,
    /// Clusters in which packed data begins.
    packed_in: Claims,
    /// Entries with data of their own, and with packed data.
    stored: u64,
    packed: u64,
}

/// Clusters that entries have for themselves, and of these those that several have.
#[derive(Debug, Default)]
struct Owners {
    own: Claims,
    contested: Claims,
}

/// The fewest bytes that a packed cluster can take up: the shortest frame of zstd has some more, the
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
            claimed: Mutex::default(),
            owners: OnceLock::new(),
        }
    }

    /// What kind of table, if any, the cluster at `host` is, other than `but`.
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

    /// Whether more than one L1 entry has the L2 table at `host`. No state of a disk has one twice.
    pub(super) fn is_shared(&self, host: u64) -> bool {
        let first = self.l2_tables.partition_point(|table| *table < host);
        self.l2_tables.get(first + 1) == Some(&host)
    }

    /// Counts what the entries of an L2 table have for themselves; the problem, if an entry has what
    /// another one has. `own` tells the cluster that an entry has for itself.
    ///
    /// Where no flag says that a cluster is an entry's own, two may have it: some day somebody may have
    /// written such a file. But then there are no more of them than the file has room for. What one entry
    /// has for itself no other has, with the flag or without, and where packed data is nothing else is.
    pub(super) fn count(
        &self,
        table_offset: u64,
        table: &[u8],
        own: &dyn Fn(L2Entry) -> Option<u64>,
        limits: &Limits,
    ) -> Result<Option<String>> {
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        if !claimed.tables.insert(table_offset) {
            return Ok(None);
        }
        let problem = self.count_new(&mut claimed, table, own, limits)?;
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
                claimed.stored += 1;
            }
            if let Some(problem) = self.claim(claimed, own(entry), host, limits)? {
                return Ok(Some(problem));
            }
        }
        for host in &packed {
            let cluster = host >> self.cluster_bits;
            claimed.packed_in.claim(cluster, limits)?;
            if claimed.clusters.has(cluster) || claimed.shared.has(cluster) {
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
        claimed.packed += packed.len() as u64;
        let too_many = claimed.stored > (self.file_size >> self.cluster_bits) + 1
            || claimed.packed > self.file_size / PACKED_LEAST;
        Ok(too_many
            .then(|| "there are more entries with data than the file has room for".to_owned()))
    }

    /// Claims the cluster of an entry that is not packed, where it has one; the problem, if another entry
    /// has it and one of the two says that it is its own.
    fn claim(
        &self,
        claimed: &mut Claimed,
        own: Option<u64>,
        host: u64,
        limits: &Limits,
    ) -> Result<Option<String>> {
        if host == 0 {
            return Ok(None);
        }
        let cluster = host >> self.cluster_bits;
        let taken = match own {
            Some(_) => !claimed.clusters.claim(cluster, limits)? || claimed.shared.has(cluster),
            None => {
                claimed.shared.claim(cluster, limits)?;
                claimed.clusters.has(cluster)
            }
        };
        if taken {
            return Ok(Some(format!(
                "an entry says that the cluster at byte {host} is its own, and another one has it"
            )));
        }
        let packed = claimed.packed_in.has(cluster);
        Ok(packed.then(|| among_packed(host)))
    }

    /// Whether the cluster at `host` belongs to several entries of the state's tables or, if the one who asks
    /// does not say that it is its own, to one that does. All tables are read for the first answer, by `read`,
    /// which tells how much that is. What cannot be read has nothing.
    pub(super) fn is_contested(
        &self,
        host: u64,
        is_own: bool,
        own: &dyn Fn(L2Entry) -> Option<u64>,
        read: &dyn Fn(&mut [u8], u64) -> usize,
        limits: &Limits,
    ) -> Result<bool> {
        let owners = match self.owners.get() {
            Some(owners) => owners,
            None => {
                let found = self.find_owners(own, read, limits)?;
                self.owners.get_or_init(|| found)
            }
        };
        let clusters = match is_own {
            true => &owners.contested,
            false => &owners.own,
        };
        Ok(clusters.has(host >> self.cluster_bits))
    }

    fn find_owners(
        &self,
        own: &dyn Fn(L2Entry) -> Option<u64>,
        read: &dyn Fn(&mut [u8], u64) -> usize,
        limits: &Limits,
    ) -> Result<Owners> {
        let mut owners = Owners::default();
        let mut table = vec![0; 1 << self.cluster_bits];
        for offset in &self.l2_tables {
            let n = read(&mut table, *offset);
            let entries = self.layout.all(table.get(..n).unwrap_or_default());
            for host in entries.filter_map(own) {
                let cluster = host >> self.cluster_bits;
                if !owners.own.claim(cluster, limits)? {
                    owners.contested.claim(cluster, limits)?;
                }
            }
        }
        Ok(owners)
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
