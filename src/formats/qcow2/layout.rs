//! Where the metadata is that the header names, so that nothing else may be there.

use crate::error::Result;

use super::header::{Header, HeaderV2};

/// The regions of a file that the header claims for metadata.
#[derive(Debug, Clone, Default)]
pub(super) struct Regions(Vec<Region>);

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
        let mut regions = Regions(vec![Region {
            start: 0,
            end: cluster_size,
            name: "header",
        }]);
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
            regions.0.push(Region {
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
            regions.0.push(Region {
                start,
                end,
                name: "refcount table",
            });
        }
        Ok(regions)
    }

    /// The name of a region that shares bytes with the `len` bytes at `start`.
    pub(super) fn overlapping(&self, start: u64, len: u64) -> Option<&'static str> {
        let end = start.saturating_add(len);
        let hit = self
            .0
            .iter()
            .find(|region| start < region.end && region.start < end);
        hit.map(|region| region.name)
    }
}
