//! The check of two levels of tables: each table and each cluster is in the file, and has one owner.

use crate::error::Result;
use crate::image::{Clusters, Finding, FindingKind, Findings};
use crate::source::{BlockSource, BlockSourceExt};

use super::two_level::PIECE;
use super::{Claim, Claims, Cluster, Entries, TwoLevel};

/// The results of a walk through all tables.
struct Walk {
    findings: Findings,
    clusters: Clusters,
    claims: Claims,
    /// Clusters of tables and of data that is stored as it is.
    claimed: u64,
}

impl<E: Entries> TwoLevel<E> {
    /// Looks at every entry. With `leaks` all clusters of the file behind the header have to have an
    /// owner, and how the disk's clusters are stored is counted.
    pub(crate) fn check(&self, leaks: bool) -> Result<Findings> {
        let shape = &self.shape;
        let mut walk = Walk {
            findings: Findings::default(),
            clusters: Clusters {
                total: shape.virtual_size.div_ceil(shape.cluster_size),
                ..Clusters::default()
            },
            claims: Claims::default(),
            claimed: 0,
        };
        for (start, len, name) in shape.regions.iter() {
            self.claim(&mut walk, name, start, len)?;
        }
        for index in 0..self.l1.len() as u64 / 8 {
            let offset = self.number(&self.l1, index).unwrap_or(0);
            if offset != 0 {
                self.check_table(&mut walk, index, offset)?;
            }
        }
        if leaks {
            // A last cluster that is not whole is none.
            let all = self.file_size / shape.cluster_size;
            let unused = all.saturating_sub(walk.claimed);
            if unused > 0 {
                let problem = format!("{unused} clusters of the file have no owner");
                let leak = Finding::new(FindingKind::Leak, "file", problem);
                walk.findings.add(leak.times(unused));
            }
            walk.findings.clusters = Some(walk.clusters);
        }
        Ok(walk.findings)
    }

    /// Gives clusters to an owner; `false` if one of them had one.
    fn claim(&self, walk: &mut Walk, name: &'static str, start: u64, len: u64) -> Result<bool> {
        let size = self.shape.cluster_size;
        let mut alone = true;
        for cluster in start / size..start.saturating_add(len).div_ceil(size) {
            walk.claimed += u64::from(!walk.claims.has(cluster, Claim::Own));
            let units = cluster..cluster + 1;
            let free = walk.claims.claim(units, Claim::Own, self.reader.limits())?;
            // Structures that are smaller than a cluster may share one.
            if len >= size && !free {
                alone = false;
                let problem = "has another owner, too";
                let finding = Finding::corruption(name, problem).at(cluster * size);
                walk.findings.add(finding);
            }
        }
        Ok(alone)
    }

    fn check_table(&self, walk: &mut Walk, index: u64, offset: u64) -> Result<()> {
        let shape = &self.shape;
        let guest = index.saturating_mul(self.span_of_table());
        let at = shape.l1_offset + index * 8;
        let end = offset.checked_add(shape.table_size);
        let problem = if offset % shape.table_alignment != 0 {
            format!(
                "entry {index} is {offset:#x}, not a multiple of {}",
                shape.table_alignment
            )
        } else if end.is_none_or(|end| end > self.file_size) {
            format!(
                "entry {index} is {offset:#x}, and the table there reaches past the end of the file"
            )
        } else {
            if self.claim(walk, "L2 table", offset, shape.table_size)? {
                self.check_entries(walk, offset, guest)?;
            }
            return Ok(());
        };
        let finding = Finding::corruption("L1 table", problem);
        walk.findings.add(finding.at(at).guest(guest));
        Ok(())
    }

    fn check_entries(&self, walk: &mut Walk, table: u64, guest: u64) -> Result<()> {
        let shape = &self.shape;
        let len = shape.table_size.min(PIECE);
        let mut follows = None;
        for start in (table..table + shape.table_size).step_by(usize::try_from(len).unwrap_or(1)) {
            let run = self.file.extent_at(start, len)?;
            if run.kind.reads_as_zero() && run.len == len {
                continue;
            }
            let mut piece = vec![0; usize::try_from(len).unwrap_or(0)];
            self.file.read_exact_at(&mut piece, start)?;
            for index in 0..len / 8 {
                let at = start + index * 8;
                let number = (at - table) / 8;
                let guest = guest.saturating_add(number.saturating_mul(shape.cluster_size));
                // Entries past the end of the disk own nothing.
                if guest >= shape.virtual_size {
                    return Ok(());
                }
                let entry = self.number(&piece, index).unwrap_or(0);
                self.check_entry(walk, entry, (at, guest), &mut follows)?;
            }
        }
        Ok(())
    }

    fn check_entry(
        &self,
        walk: &mut Walk,
        entry: u64,
        place: (u64, u64),
        follows: &mut Option<u64>,
    ) -> Result<()> {
        let size = self.shape.cluster_size;
        let (at, guest) = place;
        let problem = match self.entries.decode(entry) {
            Cluster::Zero | Cluster::Unallocated => return Ok(()),
            Cluster::Stored { host } => {
                walk.clusters.allocated += 1;
                if follows.is_some_and(|next| next != host) {
                    walk.clusters.fragmented += 1;
                }
                *follows = host.checked_add(size);
                // Of the disk's last cluster only the disk's part has to be there.
                let needed = size.min(self.shape.virtual_size - guest);
                let end = host.checked_add(needed);
                if host % size != 0 {
                    "is not at the start of a cluster"
                } else if end.is_none_or(|end| end > self.file_size) {
                    "lies past the end of the file"
                } else {
                    self.claim(walk, "data cluster", host, size)?;
                    return Ok(());
                }
            }
            cluster @ Cluster::Packed { .. } => match self.clusters_of(cluster) {
                None => "lies past the end of the file",
                Some((clusters, claim)) => {
                    if walk.claims.claim(clusters, claim, self.reader.limits())? {
                        return Ok(());
                    }
                    "is compressed, in a cluster that has another owner"
                }
            },
        };
        let problem = format!("entry {entry:#x} {problem}");
        let finding = Finding::corruption("L2 table", problem);
        walk.findings.add(finding.at(at).guest(guest));
        Ok(())
    }
}
