//! Where the metadata is that the header names, so that nothing else may be there.

use crate::error::Result;

use super::bitmap::Directory;
use super::header::{Header, HeaderV2};
use super::snapshot::Snapshot;

/// The regions of a file that the header claims for metadata.
#[derive(Debug, Clone, Default)]
pub(super) struct Regions {
    /// Those that the header names.
    named: Vec<Region>,
    /// Those of snapshots and bitmaps, in order and apart.
    listed: Vec<Region>,
}

#[derive(Debug, Clone, Copy)]
struct Region {
    start: u64,
    end: u64,
    name: &'static str,
}

impl Regions {
    /// The header's regions: itself, the refcount table and the active L1 table.
    ///
    /// Of these only the L1 table has to be right for the image to be read, and is checked: to lie in
    /// the file, at the start of a cluster, and apart from the header. If what can be is to be salvaged, it
    /// may be cut short.
    pub(super) fn of(header: &Header, file_size: u64, salvages: bool) -> Result<Self> {
        let cluster_size = header.cluster_size();
        let bad = |field, problem| Err(HeaderV2::malformed(0, field, problem));
        let mut regions = Regions {
            named: vec![Region {
                start: 0,
                end: cluster_size,
                name: "header",
            }],
            listed: Vec::new(),
        };
        let l1_len = u64::from(header.l1_size) * 8;
        if l1_len > 0 {
            let start = header.l1_table_offset;
            if start % cluster_size != 0 {
                return bad(
                    "l1_table_offset",
                    format!("{start} is not at the start of a cluster"),
                );
            }
            let in_file = |end: &u64| *end <= file_size || salvages && start < file_size;
            let Some(end) = start.checked_add(l1_len).filter(in_file) else {
                let problem = format!(
                    "the L1 table at byte {start}, {l1_len} bytes long, reaches past the end of the \
                     file at {file_size}"
                );
                return bad("l1_table_offset", problem);
            };
            if let Some(other) = regions.overlapping(start, l1_len) {
                return bad("l1_table_offset", format!("{start} is in the {other}"));
            }
            regions.named.push(Region {
                start,
                end,
                name: "L1 table",
            });
        }
        let start = header.refcount_table_offset;
        let len = u64::from(header.refcount_table_clusters).saturating_mul(cluster_size);
        // A damaged refcount table must not keep the data from being read.
        let sound = start % cluster_size == 0 && regions.overlapping(start, len).is_none();
        if let Some(end) = start
            .checked_add(len)
            .filter(|end| sound && *end <= file_size)
        {
            regions.named.push(Region {
                start,
                end,
                name: "refcount table",
            });
        }
        Ok(regions)
    }

    /// Adds what snapshots and bitmaps have: the table of the snapshots, which begins and ends there, and what
    /// it and the directory of the bitmaps name. Damage of these must not keep the data from being read: of
    /// two that overlap one is left out.
    pub(super) fn add_listed(
        &mut self,
        table: (u64, u64),
        snapshots: &[Snapshot],
        bitmaps: &Directory,
    ) {
        let region = |name, start: u64, len: u64| Region {
            start,
            end: start.saturating_add(len),
            name,
        };
        let (start, end) = table;
        self.listed = vec![
            region("snapshot table", start, end.saturating_sub(start)),
            region("bitmap directory", bitmaps.offset, bitmaps.len),
        ];
        self.listed.extend(snapshots.iter().map(|snapshot| {
            let len = u64::from(snapshot.l1_size) * 8;
            region("L1 table of a snapshot", snapshot.l1_table_offset, len)
        }));
        self.listed.extend(bitmaps.bitmaps.iter().map(|bitmap| {
            let len = u64::from(bitmap.table_size) * 8;
            region("bitmap table", bitmap.table_offset, len)
        }));
        self.listed.sort_unstable_by_key(|region| region.start);
        let mut last = 0;
        self.listed.retain(|region| {
            let apart = region.start < region.end && region.start >= last;
            last = if apart { region.end } else { last };
            apart
        });
    }

    /// The name of a region that shares bytes with the `len` bytes at `start`.
    pub(super) fn overlapping(&self, start: u64, len: u64) -> Option<&'static str> {
        let end = start.saturating_add(len);
        let next = self.listed.partition_point(|region| region.end <= start);
        let mut regions = self.named.iter().chain(self.listed.get(next));
        let hit = regions.find(|region| start < region.end && region.start < end);
        hit.map(|region| region.name)
    }
}
