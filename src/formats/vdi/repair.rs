//! Repair of a VDI image: the count of blocks in the header is that of the block map.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::{Fixed, Request};
use crate::map::edit::{Changes, Ordered, Rank, TableStore};
use crate::target::BlockTarget;

use super::header::{Header, Header0, Header1, PreHeader, VERSION};
use super::map::VdiMap;

/// Repairs the image in `file`. The block map has no copy, so that damaged entries stay as they are.
///
/// # Errors
/// Damage of the header, and errors of reading and writing.
pub(super) fn repair(file: &Arc<dyn BlockTarget>, request: &Request<'_>) -> Result<Fixed> {
    let mut fixed = Fixed::default();
    let store = TableStore::new(file, Ordered, request.limits);
    let header = Header::read(&store)?;
    let map = match VdiMap::read(&store, &header, request) {
        Ok(map) => map,
        Err(Error::Malformed { .. }) => return Ok(fixed),
        Err(error) => return Err(error),
    };
    let Some((count, next)) = map.in_use() else {
        return Ok(fixed);
    };
    let stored = u64::from(header.blocks_allocated);
    // Writers put a new block behind as many as the header counts: with too low a count they would overwrite one.
    // A count above the number of blocks is right where blocks were given back.
    if stored == next || stored > next && count < next {
        return Ok(fixed);
    }
    let field = match header.version {
        VERSION => Header1::blocks_allocated,
        _ => Header0::blocks_allocated,
    };
    if let Ok(next) = u32::try_from(next) {
        let at = field.at(PreHeader::LEN as u64);
        store.put(Changes::of(Rank::Header, at, field.bytes(next)))?;
        store.commit()?;
        fixed.corruptions = 1;
    }
    Ok(fixed)
}
