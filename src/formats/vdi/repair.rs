//! Mending the count of blocks in the header, by the map.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::{Fixed, Request};
use crate::target::BlockTarget;

use super::header::{Header, Header0, Header1, PreHeader, VERSION};
use super::map::VdiMap;

/// Mends the image in `file`. Of the map there is no copy: which of two entries a block belongs to, and what
/// was in one that is missing, nothing tells.
///
/// # Errors
/// What is wrong with the header, and what reading and writing fail with.
pub(super) fn repair(file: &Arc<dyn BlockTarget>, request: &Request<'_>) -> Result<Fixed> {
    let mut fixed = Fixed::default();
    let header = Header::read(file)?;
    let map = match VdiMap::read(file, &header, request) {
        Ok(map) => map,
        Err(Error::Malformed { .. }) => return Ok(fixed),
        Err(error) => return Err(error),
    };
    let Some((count, next)) = map.in_use() else {
        return Ok(fixed);
    };
    let stored = u64::from(header.blocks_allocated);
    // Writers put the next block behind so many: fewer than there are would make them write over one. Where
    // some were given back, more than there are is right.
    if stored == next || stored > next && count < next {
        return Ok(fixed);
    }
    let field = match header.version {
        VERSION => Header1::blocks_allocated,
        _ => Header0::blocks_allocated,
    };
    if let Ok(next) = u32::try_from(next) {
        file.write_all_at(&field.bytes(next), field.at(PreHeader::LEN as u64))?;
        file.sync()?;
        fixed.corruptions = 1;
    }
    Ok(fixed)
}
