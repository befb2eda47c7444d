//! The counts in the file beside those that were found.

use std::collections::HashSet;

use crate::error::Result;
use crate::image::{Finding, FindingKind};
use crate::source::BlockSource;

use super::super::entry::RefcountTableEntry;
use super::Survey;
use super::counts::PIECE;

/// Limit of repeated reads of refcount blocks, all blocks taken together. Sound images
/// have no block twice.
const MOST_AGAIN: u64 = 64;

/// A cluster whose counts are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Compared {
    cluster: u64,
    /// References by the count in the file.
    stored: u64,
    /// References that were found.
    found: u64,
}

impl Survey {
    /// Compares the counts of all clusters that have one or need one.
    pub(super) fn compare(&mut self) -> Result<()> {
        let (mut read, mut again) = (HashSet::new(), 0);
        let per_block = self.stored.per_block();
        let file_clusters = self.file.size().div_ceil(self.cluster_size());
        let (mut range, mut with_block) = (0, self.next_entry(0));
        loop {
            let piece = self.counts.next_piece(range * per_block / PIECE);
            let referred = piece.map(|piece| (piece * PIECE / per_block).max(range));
            let next = match (with_block, referred) {
                (Some(a), Some(b)) => a.min(b),
                (a, b) => match a.or(b) {
                    Some(next) => next,
                    None => return Ok(()),
                },
            };
            range = next + 1;
            if with_block == Some(next) {
                with_block = self.next_entry(range);
            }
            let first = next * per_block;
            let block = match self.stored.block_at(next) {
                Some(at) if !read.insert(at) => {
                    again += 1;
                    (again <= MOST_AGAIN).then_some(at)
                }
                block => block,
            };
            match block {
                Some(at) if first < file_clusters => {
                    self.compare_block(at, first, file_clusters)?
                }
                _ => self.rebuild |= self.compare_with_none(first, per_block),
            }
        }
    }

    /// The next range with an entry in the refcount table.
    fn next_entry(&self, from: u64) -> Option<u64> {
        (from..self.stored.ranges())
            .find(|range| self.stored.entry(*range) != RefcountTableEntry::default())
    }

    fn compare_block(&mut self, at: u64, first: u64, file_clusters: u64) -> Result<()> {
        let layout = self.stored.layout();
        let block = self.read_table(at, self.cluster_size())?;
        if block.is_empty() {
            self.compare_with_none(first, self.stored.per_block());
            return Ok(());
        }
        let piece_len = usize::try_from(PIECE * u64::from(layout.bits()) / 8).unwrap_or(8);
        for (number, bytes) in (first / PIECE..).zip(block.chunks_exact(piece_len)) {
            let referred = self.counts.piece(number).is_some();
            if !referred && bytes.iter().all(|byte| *byte == 0) {
                continue;
            }
            for cluster in number * PIECE..(number + 1) * PIECE {
                let stored = layout.read(bytes, cluster % PIECE);
                let found = self.counts.in_piece(self.counts.piece(number), cluster);
                // Counts beyond the end of the file have no meaning.
                if cluster < file_clusters || found > 0 {
                    self.compare_one(Compared {
                        cluster,
                        stored,
                        found,
                    });
                }
            }
        }
        Ok(())
    }

    /// Compares clusters whose counts are all 0, and returns whether one of them needs another.
    fn compare_with_none(&mut self, first: u64, per_block: u64) -> bool {
        let numbers = first / PIECE..first.saturating_add(per_block).div_ceil(PIECE);
        let numbers: Vec<u64> = self.counts.pieces_in(numbers).collect();
        let mut needed = false;
        for number in numbers {
            for cluster in number * PIECE..(number + 1) * PIECE {
                let found = self.counts.of(cluster);
                needed |= found > 0;
                self.compare_one(Compared {
                    cluster,
                    stored: 0,
                    found,
                });
            }
        }
        needed
    }

    fn compare_one(&mut self, compared: Compared) {
        let Compared {
            cluster,
            stored,
            found,
        } = compared;
        if stored == 0 && found == 0 {
            return;
        }
        self.last_cluster = self.last_cluster.max(cluster);
        let at = cluster << self.header.cluster_bits;
        if stored == found {
            if found > 1 {
                self.look_for_conflict(cluster, found, at);
            }
            return;
        }
        let problem =
            format!("of cluster {cluster} is {stored}, and {found} references were found");
        if stored < found {
            self.too_low = true;
            self.mismatch("refcount", at, None, 1, problem);
        } else {
            let kind = match self.incomplete {
                true => FindingKind::Note,
                false => FindingKind::Leak,
            };
            self.findings
                .add(Finding::new(kind, "refcount", problem).at(at));
        }
    }

    /// A cluster of a structure is nothing else besides, however right its count is; only L2 tables have
    /// several references, one from each state. Nor is one with compressed clusters, which share it among them.
    fn look_for_conflict(&mut self, cluster: u64, found: u64, at: u64) {
        let structures = self.structures.of(cluster);
        let shared = || self.tables.get(&at).map_or(1, |uses| uses.all);
        if structures > 0 && (found != structures || structures > shared()) {
            let problem = format!("cluster {cluster} holds a structure and something else besides");
            self.corruption("refcount", at, None, 1, problem);
            return;
        }
        let packed = self.packed.counts.of(cluster);
        if packed > 0 && packed != found {
            let problem =
                format!("cluster {cluster} holds packed clusters and something else besides");
            self.corruption("refcount", at, None, 1, problem);
        }
    }
}
