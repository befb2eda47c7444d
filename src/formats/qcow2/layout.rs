//! Regions of metadata that the header names: nothing else may lie there.

use crate::error::Result;
use crate::map::Regions;

use super::bitmap::Directory;
use super::header::{Header, HeaderV2};
use super::snapshot::Snapshot;

/// The header's regions: itself, the refcount table and the active L1 table.
///
/// Of these only the L1 table has to be right for the image to be read, and is checked: to lie in
/// the file, at the start of a cluster, and apart from the header. If the image is salvaged, it may be cut
/// short.
pub(super) fn of_header(header: &Header, file_size: u64, salvages: bool) -> Result<Regions> {
    let cluster_size = header.cluster_size();
    let bad = |problem| Err(HeaderV2::malformed(0, "l1_table_offset", problem));
    let mut regions = Regions::default();
    // Nothing is in the way of the first range.
    let _ = regions.add(0, cluster_size, "header");
    let (start, len) = (header.l1_table_offset, u64::from(header.l1_size) * 8);
    if len > 0 {
        if start % cluster_size != 0 {
            return bad(format!("{start} is not at the start of a cluster"));
        }
        let in_file = |end| end <= file_size || salvages && start < file_size;
        if !start.checked_add(len).is_some_and(in_file) {
            return bad(format!(
                "the L1 table at byte {start}, {len} bytes long, reaches past the end of the file at \
                 {file_size}"
            ));
        }
        if let Err(other) = regions.add(start, len, "L1 table") {
            return bad(format!("{start} is in the {other}"));
        }
    }
    let start = header.refcount_table_offset;
    let len = u64::from(header.refcount_table_clusters).saturating_mul(cluster_size);
    let end = start.checked_add(len);
    if start % cluster_size == 0 && end.is_some_and(|end| end <= file_size) {
        // A damaged refcount table must not keep the data from being read.
        let _ = regions.add(start, len, "refcount table");
    }
    Ok(regions)
}

/// Adds what snapshots and bitmaps have: the table of the snapshots, which begins and ends there, and what
/// it and the directory of the bitmaps name. Damage of these must not keep the data from being read: one that
/// overlaps another region is left out.
pub(super) fn add_listed(
    regions: &mut Regions,
    table: (u64, u64),
    snapshots: &[Snapshot],
    bitmaps: &Directory,
) {
    let mut listed = vec![
        (table.0, table.1.saturating_sub(table.0), "snapshot table"),
        (bitmaps.offset, bitmaps.len, "bitmap directory"),
    ];
    listed.extend(snapshots.iter().map(|snapshot| {
        let len = u64::from(snapshot.l1_size) * 8;
        (snapshot.l1_table_offset, len, "L1 table of a snapshot")
    }));
    listed.extend(bitmaps.bitmaps.iter().map(|bitmap| {
        let len = u64::from(bitmap.table_size) * 8;
        (bitmap.table_offset, len, "bitmap table")
    }));
    listed.sort_unstable();
    for (start, len, name) in listed {
        let _ = regions.add(start, len, name);
    }
}
