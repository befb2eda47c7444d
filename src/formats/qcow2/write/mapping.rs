//! The L1 table and the one L2 table that is being filled.

use crate::error::Result;
use crate::formats::qcow2::entry::{L1Entry, L2Entry, L2Layout, SUBCLUSTERS};
use crate::image::Write;
use crate::ondisk::TableEntry;

use super::alloc::Allocator;
use super::bytes;

/// State of a subcluster (section "Extended L2 Entries").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subcluster {
    /// Its bytes are in the host cluster.
    Allocated,
    /// It reads as zero.
    Zero,
}

/// Guest to host, as far as it is not yet written.
#[derive(Debug)]
pub(super) struct Mapping {
    layout: L2Layout,
    cluster_size: u64,
    /// The L1 table as it will stand in the file, padded to whole clusters.
    l1: Vec<u8>,
    /// The L2 table of the span `current`, likewise.
    l2: Vec<u8>,
    current: u64,
    /// True if the L2 table has entries: it is allocated only then.
    used: bool,
}

impl Mapping {
    pub(super) fn new(layout: L2Layout, cluster_size: u64, l1_clusters: u64) -> Self {
        Mapping {
            layout,
            cluster_size,
            l1: bytes::zeroed(l1_clusters * cluster_size),
            l2: bytes::zeroed(cluster_size),
            current: 0,
            used: false,
        }
    }

    /// Guest offset of the end of the L2 table that maps `guest`.
    pub(super) fn span_end(&self, guest: u64) -> u64 {
        let span = self.layout.table_span();
        (guest / span + 1).saturating_mul(span)
    }

    /// Makes the L2 table that maps `guest` the current one. The one that is left is final.
    pub(super) fn enter(
        &mut self,
        guest: u64,
        allocator: &mut Allocator,
        tables: &mut Vec<Write>,
    ) -> Result<()> {
        let index = guest / self.layout.table_span();
        if index != self.current {
            self.leave(allocator, tables)?;
            self.current = index;
        }
        Ok(())
    }

    /// Emits the current L2 table, if it says anything.
    pub(super) fn leave(
        &mut self,
        allocator: &mut Allocator,
        tables: &mut Vec<Write>,
    ) -> Result<()> {
        if !self.used {
            return Ok(());
        }
        let (offset, _) = allocator.allocate(1, tables)?;
        L1Entry::of(offset).put(&mut self.l1, self.current);
        Write::push_table(tables, 0, offset, &self.l2);
        self.l2.fill(0);
        self.used = false;
        Ok(())
    }

    /// The L1 table, when all L2 tables are left.
    pub(super) fn into_l1(self) -> Vec<u8> {
        self.l1
    }

    /// The entry of the cluster at `guest`, which the current L2 table maps.
    pub(super) fn entry(&self, guest: u64) -> L2Entry {
        self.layout
            .decode(&self.l2, self.index(guest))
            .unwrap_or_default()
    }

    /// Sets the entry of the cluster at `guest`, which the current L2 table maps. Its subclusters stay.
    pub(super) fn set_entry(&mut self, guest: u64, entry: L2Entry) {
        let bitmap = self.entry(guest).bitmap;
        self.put(guest, entry.with_bitmap(bitmap));
    }

    fn put(&mut self, guest: u64, entry: L2Entry) {
        let index = self.index(guest);
        self.layout.put(entry, &mut self.l2, index);
        self.used = true;
    }

    /// Says of the subclusters that `len` bytes at `guest` touch what they are. They are in the
    /// current L2 table.
    pub(super) fn set_subclusters(&mut self, guest: u64, len: u64, kind: Subcluster) {
        let unit = self.cluster_size / u64::from(SUBCLUSTERS);
        let end = guest + len;
        let mut at = guest;
        while at < end {
            let stop = end.min((at / self.cluster_size + 1) * self.cluster_size);
            let first = at % self.cluster_size / unit;
            let count = (stop - at).div_ceil(unit);
            let bits = ((1_u64 << count) - 1) << first;
            let entry = self.entry(at);
            let (set, clear) = match kind {
                Subcluster::Allocated => (bits, bits << SUBCLUSTERS),
                Subcluster::Zero => (bits << SUBCLUSTERS, bits),
            };
            let bitmap = (entry.bitmap | set) & !clear;
            self.put(at, entry.with_bitmap(bitmap));
            at = stop;
        }
    }

    /// Number of the entry of the cluster at `guest` in its L2 table.
    fn index(&self, guest: u64) -> u64 {
        let span = self.layout.table_span();
        guest % span / self.cluster_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subclusters_are_marked_in_every_cluster_that_a_run_touches() {
        let mut mapping = Mapping::new(L2Layout::new(14, true, 3), 16 << 10, 1);
        // The last subcluster of the first cluster, all of the second, a part of one of the third.
        mapping.set_subclusters(31 * 512, 512 + (16 << 10) + 1, Subcluster::Allocated);
        mapping.set_subclusters(32 * 512, 1024, Subcluster::Zero);
        let bitmaps: Vec<u64> = (0..3)
            .map(|cluster| mapping.entry(cluster << 14).bitmap)
            .collect();
        assert_eq!(bitmaps, [1 << 31, 0x0000_0003_ffff_fffc, 1]);
    }
}
