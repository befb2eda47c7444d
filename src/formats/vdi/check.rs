//! Check that every entry of the map has a block of its own in the file.

use crate::error::Result;
use crate::image::{Finding, Findings, Request};
use crate::map::Usage;
use crate::source::BlockSource;

use super::header::{Header, Header1, PreHeader};
use super::map::read_entries;

/// Checks the image in `source`.
pub(super) fn check(source: &dyn BlockSource, request: &Request<'_>) -> Result<Findings> {
    let header = Header::read(source)?;
    let mut findings = Findings::default();
    let blocks = u64::from(header.blocks);
    let read = read_entries(source, &header, blocks, request);
    let Some((entries, _)) = findings.sound(read)? else {
        return Ok(findings);
    };
    let stride = header.block_size + header.block_extra;
    let mut usage = Usage::new(source.size(), stride, request.limits);
    let (map, map_len) = (header.offset_blocks, header.map_len());
    // Bytes between the header and the map belong to nothing.
    usage.structure("header", 0, PreHeader::LEN as u64, &mut findings)?;
    usage.structure("block map", map, map_len, &mut findings)?;
    usage.settle(&mut findings);
    let mut allocated = 0_u64;
    let stored = entries.iter().zip(0_u64..);
    for (entry, index) in stored.filter_map(|(entry, index)| Some((entry.number()?, index))) {
        let place = (map + index * 4, index * header.block_size);
        if entry >= blocks {
            let problem = format!("entry {index} is {entry}, and there are {blocks} blocks");
            let finding = Finding::corruption("block map", problem);
            findings.add(finding.at(place.0).guest(place.1));
            continue;
        }
        allocated += 1;
        let start = header.offset_data + entry * stride;
        // The last block may end with the disk.
        let left = header.disk_size.saturating_sub(index * header.block_size);
        let needed = header.block_extra + left.min(header.block_size);
        usage.unit("block map", start, needed, place, &mut findings)?;
    }
    usage.finish("block", &mut findings);
    if allocated != u64::from(header.blocks_allocated) {
        let problem = format!(
            "is {}, and {allocated} are in the block map",
            header.blocks_allocated
        );
        let at = PreHeader::LEN as u64;
        findings.add_damage(Header1::malformed(at, "blocks_allocated", problem))?;
    }
    Ok(findings)
}
