//! Repair of a VHD image: the two copies of the footer by each other, and the checksum of the header.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::{Fixed, Request};
use crate::map::edit::{Changes, Ordered, Rank, TableStore};
use crate::source::{BlockSource, BlockSourceExt};
use crate::target::BlockTarget;

use super::SECTOR;
use super::footer::{Copy, DiskType, Footer, Footers, checksum};
use super::header::{Header, Tables};
use super::proof::{is_proven, stored};

const FOOTER: usize = Footer::LEN;

/// Repairs the image in `file` where a second source has what is damaged. Only sectors that are damaged are
/// written.
///
/// # Errors
/// Damage that cannot be repaired, and errors of reading and writing.
pub(super) fn repair(file: &Arc<dyn BlockTarget>, request: &Request<'_>) -> Result<Fixed> {
    let store = TableStore::new(file, Ordered, request.limits);
    let mut fixed = Fixed::default();
    for changes in [footers, header_checksum] {
        let changes = changes(&store, request)?;
        fixed.corruptions += u64::from(!changes.is_empty());
        store.put(changes)?;
    }
    store.commit()?;
    Ok(fixed)
}

fn footers(file: &dyn BlockSource, request: &Request<'_>) -> Result<Changes> {
    let mut changes = Changes::default();
    let is_fixed = |footer: &Footer| footer.disk_type == DiskType::Fixed.number();
    let (start, end) = (Copy::read(file, 0)?, Copy::read_at_end(file)?);
    match (start, end) {
        // A fixed disk has guest data at its start.
        (_, Copy::Sound { footer, .. } | Copy::Damaged { footer, .. }) if is_fixed(&footer) => {
            Footers::read(file)?;
        }
        (Copy::Sound { footer: copy, .. }, Copy::Sound { footer, .. }) if copy == footer => {}
        (_, Copy::Sound { at, .. }) => {
            // Fails where the copies describe different disks: neither is written over the other then.
            Footers::read(file)?;
            changes.write(Rank::Root, 0, read(file, at)?);
        }
        (Copy::Sound { footer, .. }, Copy::Damaged { at, .. }) if !is_fixed(&footer) => {
            changes.write(Rank::Root, at, read(file, 0)?);
        }
        (Copy::Sound { footer, .. }, Copy::Absent) if !is_fixed(&footer) => {
            if let Some(at) = place_of_footer(file, request)? {
                changes.write(Rank::Root, at, read(file, 0)?);
            }
        }
        // Both agree in every field: only their checksum is stale. One at a time is written.
        (Copy::Damaged { footer: copy, .. }, Copy::Damaged { at, footer, .. })
            if copy == footer =>
        {
            let mut bytes = read(file, at)?;
            let sum = checksum(&bytes, Footer::checksum);
            Footer::checksum.put(&mut bytes, sum);
            changes.write(Rank::Root, at, bytes);
            changes.write(Rank::Header, 0, bytes);
        }
        _ => {
            Footers::read(file)?;
        }
    }
    Ok(changes)
}

/// The place of the footer in a file that has lost it; `None` if the file has lost blocks, too, which a footer
/// would only hide.
fn place_of_footer(file: &dyn BlockSource, request: &Request<'_>) -> Result<Option<u64>> {
    let footers = Footers::read(file)?;
    let size = footers.footer.virtual_size();
    let tables = Tables::read(file, &footers, size, request)?;
    let ends = stored(&tables).map(|(start, index)| start + tables.stored_len(index, size));
    let end = ends.max().unwrap_or(0);
    let file_size = file.size();
    if end > file_size {
        return Ok(None);
    }
    let last = file_size
        .checked_sub(SECTOR)
        .filter(|at| *at >= end && at % SECTOR == 0);
    if let Some(at) = last.filter(|at| *at > 0) {
        // A footer with only a damaged cookie is still in its place.
        let (copy, there) = (read(file, 0)?, read(file, at)?);
        let told = copy.iter().zip(&there).filter(|(byte, _)| **byte != 0);
        let (same, other): (Vec<_>, Vec<_>) = told.partition(|(byte, there)| byte == there);
        if same.len() >= 3 * other.len() {
            return Ok(Some(at));
        }
    }
    Ok(Some(file_size.next_multiple_of(SECTOR)))
}

/// The header has no copy. Its checksum is corrected only where the rest of the file proves every field that says
/// where the disk's bytes are.
fn header_checksum(file: &dyn BlockSource, request: &Request<'_>) -> Result<Changes> {
    let footers = Footers::read(file)?;
    if footers.kind == DiskType::Fixed {
        return Ok(Changes::default());
    }
    let size = footers.footer.virtual_size();
    let tables = match Tables::read(file, &footers, size, request) {
        Ok(tables) if tables.damaged => tables,
        // Blocks have no second source: a check reports their damage.
        Ok(_) | Err(Error::Malformed { .. }) => return Ok(Changes::default()),
        Err(error) => return Err(error),
    };
    if !is_proven(&tables, &footers, size) {
        return Ok(Changes::default());
    }
    let mut bytes = [0; Header::LEN];
    file.read_exact_at(&mut bytes, tables.at)?;
    let field = Header::checksum;
    let sum = field.bytes(checksum(&bytes, field));
    Ok(Changes::of(Rank::Header, field.at(tables.at), sum))
}

fn read(file: &dyn BlockSource, at: u64) -> Result<[u8; FOOTER]> {
    let mut bytes = [0; FOOTER];
    // An old footer at the end is a byte shorter.
    file.read_at(&mut bytes, at)?;
    Ok(bytes)
}
