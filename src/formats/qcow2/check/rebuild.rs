//! A new refcount table with its blocks, behind the end of the file.

use crate::error::{Error, Result};
use crate::map::edit::{Changes, Rank};
use crate::ondisk::TableEntry;
use crate::source::BlockSource;

use super::super::QCOW2;
use super::super::entry::RefcountTableEntry;
use super::super::header::HeaderV2;
use super::counts::PIECE;
use super::repair::Repair;

/// The longest refcount table that QEMU reads, in bytes.
const MAX_TABLE: u64 = 8 << 20;

impl Repair {
    /// Puts new counts, and the fields of the header that put them in force, into the store. The old ones are free
    /// then.
    pub(super) fn rebuild(&mut self) -> Result<()> {
        let cluster_size = self.survey.header.cluster_size();
        let per_block = self.survey.stored.per_block();
        let mut first = self.store.size().div_ceil(cluster_size);
        // The last compressed cluster may reach a little beyond the end.
        while self.counts.of(first) > 0 {
            first += 1;
        }
        let ranges = self.ranges(per_block);
        // The new structures count themselves, and may need more of them for that.
        let (mut clusters, mut table_clusters) = (0, 0);
        let with_blocks = loop {
            let end = first + clusters;
            let mut with_blocks = ranges.clone();
            if clusters > 0 {
                with_blocks.extend(first / per_block..=(end - 1) / per_block);
                with_blocks.sort_unstable();
                with_blocks.dedup();
            }
            let entries = with_blocks.last().map_or(0, |last| last + 1);
            let len = entries.saturating_mul(8);
            if len > MAX_TABLE {
                let problem = format!("has to count {end} clusters, more than any table can");
                let at = self.survey.header.refcount_table_offset;
                return Err(Error::malformed(QCOW2, "refcount table", at, problem));
            }
            table_clusters = len.div_ceil(cluster_size).max(table_clusters);
            let need = table_clusters + with_blocks.len() as u64;
            let enough = need <= clusters;
            clusters = need;
            if enough {
                break with_blocks;
            }
        };
        let most = self.survey.stored.layout().most();
        for cluster in first..first + clusters {
            self.counts.add(cluster, 1, most, &mut self.survey.budget)?;
        }
        let table_at = first * cluster_size;
        let len = table_clusters * cluster_size;
        let mut table = vec![0; usize::try_from(len).unwrap_or(0)];
        let mut at = table_at + len;
        for range in &with_blocks {
            let block = self.block(*range, per_block);
            self.store.put(Changes::of(Rank::Count, at, block))?;
            RefcountTableEntry::from_raw(at).put(&mut table, *range);
            at += cluster_size;
        }
        self.store.put(Changes::of(Rank::Count, table_at, table))?;
        let clusters = u32::try_from(table_clusters).unwrap_or(u32::MAX);
        let (offset, count) = (
            HeaderV2::refcount_table_offset,
            HeaderV2::refcount_table_clusters,
        );
        // Side by side, so that one write puts both in force.
        let switch = [offset.bytes(table_at).as_slice(), &count.bytes(clusters)].concat();
        self.store
            .put(Changes::of(Rank::Header, offset.at(0), switch))
    }

    /// The ranges in which clusters have references, in order.
    fn ranges(&self, per_block: u64) -> Vec<u64> {
        let mut ranges = Vec::new();
        let mut next = 0;
        while let Some(piece) = self.counts.next_piece(next) {
            let range = piece * PIECE / per_block;
            ranges.push(range);
            next = ((range + 1) * per_block).div_ceil(PIECE);
        }
        ranges
    }

    /// The block of a range.
    fn block(&self, range: u64, per_block: u64) -> Vec<u8> {
        let layout = self.survey.stored.layout();
        let cluster_size = self.survey.header.cluster_size();
        let mut block = vec![0; usize::try_from(cluster_size).unwrap_or(0)];
        let first = range * per_block;
        for piece in self
            .counts
            .pieces_in(first / PIECE..(first + per_block).div_ceil(PIECE))
        {
            for cluster in piece * PIECE..(piece + 1) * PIECE {
                let count = self.counts.of(cluster);
                if count > 0 {
                    layout.write(&mut block, cluster - first, count);
                }
            }
        }
        block
    }
}
