//! Host clusters, handed out from front to back, and their reference counts.
//!
//! A refcount block counts the clusters of one *range*. Where data is allocated into a range, the
//! range's first cluster is its block: so the block of the range that is being filled is all that has
//! to be in memory, and it is final once the next range begins.

use crate::error::{Error, Result};
use crate::image::Write;
use crate::ondisk::TableEntry;

use super::super::entry::RefcountTableEntry;
use super::super::refcount::CountLayout;
use super::bytes;

/// The most entries that a refcount table can have: QEMU reads tables of up to 8 MiB.
const MAX_RANGES: u64 = (8 << 20) / 8;
/// First host offset too large for an entry, which has 56 bits for it (section "Cluster mapping").
const MAX_HOST: u64 = 1 << 56;

/// Hands out host clusters in ascending order and counts the references to them.
#[derive(Debug)]
pub(super) struct Allocator {
    cluster_size: u64,
    layout: CountLayout,
    /// Clusters in a range.
    per_range: u64,
    /// The first cluster that was not handed out.
    next: u64,
    /// The range that is counted in `block`.
    range: u64,
    /// The refcount block of `range`, as it will stand in the file.
    block: Vec<u8>,
    /// The refcount table: the offset of each range's block, also of those that `reserve` placed
    /// ahead.
    table: Vec<u64>,
}

impl Allocator {
    /// An allocator that has handed out cluster 0, for the header, and the one behind it, for the
    /// first refcount block.
    pub(super) fn new(cluster_size: u64, refcount_bits: u32) -> Self {
        let layout = CountLayout::new(refcount_bits);
        let mut new = Allocator {
            cluster_size,
            layout,
            per_range: layout.per_block(cluster_size),
            next: 2,
            range: 0,
            block: bytes::zeroed(cluster_size),
            table: vec![cluster_size],
        };
        new.set_refcount(0, 1);
        new.set_refcount(1, 1);
        new
    }

    /// Bytes up to the end of the last cluster that was handed out.
    pub(super) fn end(&self) -> u64 {
        self.next * self.cluster_size
    }

    /// Hands out up to `want` clusters that lie side by side, each with one reference: the offset of
    /// the first in bytes, and how many there are.
    pub(super) fn allocate(&mut self, want: u64, tables: &mut Vec<Write>) -> Result<(u64, u64)> {
        if self.next / self.per_range == self.table.len() as u64 {
            self.check_room(1)?;
            self.table.push(self.end());
            self.count_next(1, tables);
        }
        let left = self.per_range - self.next % self.per_range;
        let count = want.min(left);
        self.check_room(count)?;
        let first = self.end();
        self.count_next(count, tables);
        Ok((first, count))
    }

    /// Returns whether the next cluster that is handed out will be the one at `host`.
    pub(super) fn continues_at(&self, host: u64) -> bool {
        self.end() == host && self.next / self.per_range < self.table.len() as u64
    }

    /// Returns whether the next `count` clusters will lie side by side from `host` on.
    pub(super) fn continues_by(&self, host: u64, count: u64) -> bool {
        self.continues_at(host) && self.per_range - self.next % self.per_range >= count
    }

    /// Hands out `count` clusters, few of them, that lie side by side in one range: the offset of the
    /// first in bytes. What is left of a range that has too little room stays free.
    pub(super) fn allocate_together(&mut self, count: u64, tables: &mut Vec<Write>) -> Result<u64> {
        let left = self.per_range - self.next % self.per_range;
        let begins = self.next / self.per_range == self.table.len() as u64;
        if left < count + u64::from(begins) {
            self.check_room(left)?;
            self.next += left;
        }
        let (first, got) = self.allocate(count, tables)?;
        if got < count {
            return Err(Error::invalid(
                "a packed cluster is larger than what a refcount block counts",
            ));
        }
        Ok(first)
    }

    /// Hands out `count` clusters side by side, whatever ranges they cross, and returns the offset of
    /// the first in bytes. The refcount blocks of the ranges that have none follow directly.
    pub(super) fn reserve(&mut self, count: u64, tables: &mut Vec<Write>) -> Result<u64> {
        let (first, ranges) = self.plan(count);
        let ahead = first + count;
        self.check_room(ahead - self.next)?;
        // A range that begins right here gives its first cluster to its block, as always.
        if first > self.next {
            self.table.push(self.end());
        }
        let missing = ranges - self.table.len() as u64;
        self.check_room(ahead + missing - self.next)?;
        for cluster in ahead..ahead + missing {
            self.table.push(cluster * self.cluster_size);
        }
        self.count_next(ahead + missing - self.next, tables);
        Ok(first * self.cluster_size)
    }

    /// Returns the first of `count` clusters that `reserve` would hand out, and the number of ranges then.
    fn plan(&self, count: u64) -> (u64, u64) {
        let begins = self.next / self.per_range == self.table.len() as u64;
        let first = self.next + u64::from(begins);
        let have = self.table.len() as u64 + u64::from(begins);
        let mut ranges = have;
        // Blocks that are placed behind may themselves reach into ranges without a block.
        loop {
            let end = first + count + (ranges - have);
            let need = end.div_ceil(self.per_range).max(have);
            if need <= ranges {
                return (first, ranges);
            }
            ranges = need;
        }
    }

    /// Adds a reference to the cluster at `host` bytes, unless it has as many as its count can tell
    /// or its range is already closed.
    pub(super) fn add_reference(&mut self, host: u64) -> bool {
        let cluster = host / self.cluster_size;
        if cluster / self.per_range != self.range {
            return false;
        }
        let count = self.refcount(cluster);
        if count >= self.layout.most() {
            return false;
        }
        self.set_refcount(cluster, count + 1);
        true
    }

    /// Returns whether [`add_reference`](Self::add_reference) would add one.
    pub(super) fn can_add_reference(&self, host: u64) -> bool {
        let cluster = host / self.cluster_size;
        cluster / self.per_range == self.range && self.refcount(cluster) < self.layout.most()
    }

    /// Places the refcount table and closes the last range: the table's offset in bytes and its
    /// length in clusters.
    pub(super) fn finish(&mut self, tables: &mut Vec<Write>) -> Result<(u64, u64)> {
        // The table counts the blocks of the ranges that it reaches into itself.
        let mut clusters = 1;
        loop {
            let need = (self.plan(clusters).1 * 8).div_ceil(self.cluster_size);
            if need <= clusters {
                break;
            }
            clusters = need;
        }
        let offset = self.reserve(clusters, tables)?;
        self.close_range(tables);
        let mut table = bytes::zeroed(clusters * self.cluster_size);
        for (index, block) in (0..).zip(&self.table) {
            RefcountTableEntry::from_raw(*block).put(&mut table, index);
        }
        Write::push_table(tables, 0, offset, &table);
        Ok((offset, clusters))
    }

    /// Fails where an image would become larger than its tables can tell if `count` more clusters
    /// were handed out.
    fn check_room(&self, count: u64) -> Result<()> {
        let end = self.next.saturating_add(count);
        if end.div_ceil(self.per_range) > MAX_RANGES {
            return Err(Error::invalid(format!(
                "the image is too large for a refcount table of 8 MiB with clusters of {} bytes and \
                 refcounts of {} bits; take larger clusters",
                self.cluster_size,
                self.layout.bits()
            )));
        }
        if end.saturating_mul(self.cluster_size) > MAX_HOST {
            return Err(Error::invalid("the image would be larger than 64 PiB"));
        }
        Ok(())
    }

    /// Gives the next `count` clusters one reference each.
    fn count_next(&mut self, count: u64, tables: &mut Vec<Write>) {
        for cluster in self.next..self.next + count {
            let range = cluster / self.per_range;
            if range != self.range {
                self.close_range(tables);
                self.range = range;
            }
            self.set_refcount(cluster, 1);
        }
        self.next += count;
    }

    /// Emits the block of the current range and clears it for another.
    fn close_range(&mut self, tables: &mut Vec<Write>) {
        let range = usize::try_from(self.range).ok();
        if let Some(offset) = range.and_then(|range| self.table.get(range)) {
            Write::push_table(tables, 0, *offset, &self.block);
        }
        self.block.fill(0);
    }

    fn refcount(&self, cluster: u64) -> u64 {
        self.layout.read(&self.block, cluster % self.per_range)
    }

    fn set_refcount(&mut self, cluster: u64, count: u64) {
        let index = cluster % self.per_range;
        self.layout.write(&mut self.block, index, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Payload;

    #[test]
    fn counts_of_every_width_keep_to_their_place() {
        for bits in [1, 2, 4, 8, 16, 32, 64] {
            let mut allocator = Allocator::new(512, bits);
            let (first, count) = allocator.allocate(3, &mut Vec::new()).unwrap();
            assert_eq!((first, count), (1024, 3));
            let added = (0..3)
                .filter(|_| allocator.add_reference(first + 512))
                .count() as u64;
            assert_eq!(
                added,
                if bits == 1 { 0 } else { (1 << bits.min(3)) - 2 }.min(3)
            );
            let counts: Vec<u64> = (0..6).map(|c| allocator.refcount(c)).collect();
            assert_eq!(counts, [1, 1, 1, 1 + added, 1, 0], "{bits} bits");
        }
    }

    #[test]
    fn the_first_cluster_of_a_range_is_its_block() {
        // 64 counts of 64 bits in a block of 512 bytes.
        let mut allocator = Allocator::new(512, 64);
        let mut tables = Vec::new();
        assert_eq!(allocator.allocate(100, &mut tables).unwrap(), (1024, 62));
        assert!(!allocator.continues_at(64 * 512));
        assert!(tables.is_empty());
        assert_eq!(
            allocator.allocate(100, &mut tables).unwrap(),
            (65 * 512, 63)
        );
        assert_eq!(allocator.table, [512, 64 * 512]);
        let blocks: Vec<u64> = tables.iter().map(|w| w.offset).collect();
        assert_eq!(blocks, [512]);
    }

    #[test]
    fn a_table_across_ranges_is_followed_by_their_blocks() {
        let mut allocator = Allocator::new(512, 64);
        let mut tables = Vec::new();
        // Clusters 2 to 191, so that the blocks behind need a block of their own range too.
        assert_eq!(allocator.reserve(190, &mut tables).unwrap(), 1024);
        assert_eq!(allocator.table, [512, 192 * 512, 193 * 512, 194 * 512]);
        assert_eq!(allocator.next, 195);
        let blocks: Vec<u64> = tables.iter().map(|w| w.offset).collect();
        assert_eq!(blocks, [512, 192 * 512, 193 * 512]);
    }

    /// Allocates `reserved` clusters at once and `single` ones one by one, and reads the counts back.
    fn check_counts(reserved: u64, single: u64) {
        let mut allocator = Allocator::new(512, 64);
        let mut tables = Vec::new();
        allocator.reserve(reserved, &mut tables).unwrap();
        for _ in 0..single {
            allocator.allocate(1, &mut tables).unwrap();
        }
        let (offset, clusters) = allocator.finish(&mut tables).unwrap();
        let mut file = vec![0; usize::try_from(allocator.end()).unwrap()];
        for write in &tables {
            // A new file is zero where nothing is written.
            if let Payload::Bytes(bytes) = &write.payload {
                let at = usize::try_from(write.offset).unwrap();
                file[at..at + bytes.len()].copy_from_slice(bytes);
            }
        }
        let numbers = |offset: u64, clusters: u64| -> Vec<u64> {
            let at = usize::try_from(offset).unwrap();
            let len = usize::try_from(clusters * 512).unwrap();
            let words = file[at..at + len].chunks_exact(8);
            words
                .map(|word| u64::from_be_bytes(word.try_into().unwrap()))
                .collect()
        };
        let blocks = numbers(offset, clusters);
        let used = blocks.iter().filter(|block| **block != 0);
        let counts = used.flat_map(|block| numbers(*block, 1));
        let counts: Vec<u64> = counts.collect();
        let end = allocator.end() / 512;
        assert!((end..end + 64).contains(&(counts.len() as u64)));
        let one = counts
            .iter()
            .zip(0..)
            .all(|(count, at)| *count == u64::from(at < end));
        assert!(one, "{reserved} at once, {single} one by one");
    }

    #[test]
    fn every_cluster_is_counted_wherever_the_ranges_end() {
        for n in (0..200).chain(3900..4100) {
            check_counts(1, n);
            check_counts(n + 1, 0);
            check_counts(n + 1, 62);
        }
    }

    #[test]
    fn more_than_the_refcount_table_can_tell_is_refused() {
        let mut allocator = Allocator::new(512, 64);
        allocator.next = MAX_RANGES * 64 - 1;
        allocator.table = vec![0; usize::try_from(MAX_RANGES).unwrap()];
        assert!(allocator.allocate(1, &mut Vec::new()).is_ok());
        assert!(allocator.allocate(1, &mut Vec::new()).is_err());
    }
}
