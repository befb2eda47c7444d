//! Mending the two copies of the footer by each other, and the checksum of the header.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::{Fixed, Request};
use crate::source::BlockSourceExt;
use crate::target::BlockTarget;

use super::SECTOR;
use super::footer::{self, Copy, DiskType, Footer, Footers};
use super::header::{self, Header, Tables};
use super::proof::{is_proven, stored};

const FOOTER: usize = Footer::LEN;

/// Mends the image in `file`, as far as there is a second source for what is damaged. Every write is of a
/// sector that is damaged, while the sound one stays.
///
/// # Errors
/// What is wrong with the image and cannot be mended, and what reading and writing fail with.
pub(super) fn repair(file: &Arc<dyn BlockTarget>, request: &Request<'_>) -> Result<Fixed> {
    let mut fixed = Fixed::default();
    fixed.corruptions += mend_footers(file, request)?;
    fixed.corruptions += mend_header(file, request)?;
    Ok(fixed)
}

fn mend_footers(file: &dyn BlockTarget, request: &Request<'_>) -> Result<u64> {
    let is_fixed = |footer: &Footer| footer.disk_type == DiskType::Fixed.number();
    let (start, end) = (Copy::read(&file, 0)?, Copy::read_at_end(&file)?);
    match (start, end) {
        // The start of a fixed disk is the guest's.
        (_, Copy::Sound { footer, .. } | Copy::Damaged { footer, .. }) if is_fixed(&footer) => {}
        (Copy::Sound { footer: copy, .. }, Copy::Sound { footer, .. }) if copy == footer => {
            return Ok(0);
        }
        (_, Copy::Sound { at, .. }) => {
            // Where they mean different disks, neither is taken for the other.
            Footers::read(&file)?;
            put(file, &read(file, at)?, 0)?;
            return Ok(1);
        }
        (Copy::Sound { footer, .. }, Copy::Damaged { at, .. }) if !is_fixed(&footer) => {
            put(file, &read(file, 0)?, at)?;
            return Ok(1);
        }
        (Copy::Sound { footer, .. }, Copy::Absent) if !is_fixed(&footer) => {
            return match place_of_footer(file, request)? {
                Some(at) => put(file, &read(file, 0)?, at).map(|()| 1),
                None => Ok(0),
            };
        }
        // Both agree in every field: it is the checksum that is stale.
        (Copy::Damaged { footer: copy, .. }, Copy::Damaged { at, footer, .. })
            if copy == footer =>
        {
            let mut bytes = read(file, at)?;
            let sum = footer::checksum(&bytes, footer::CHECKSUM_AT).to_be_bytes();
            let field = bytes.get_mut(footer::CHECKSUM_AT..);
            if let Some(field) = field.and_then(|rest| rest.first_chunk_mut()) {
                *field = sum;
            }
            put(file, &bytes, at)?;
            put(file, &bytes, 0)?;
            return Ok(1);
        }
        _ => {}
    }
    Footers::read(&file).map(|_| 0)
}

/// Where the footer has to be in a file that has lost it; `None` if the file has lost blocks, too, which a
/// footer would only hide.
fn place_of_footer(file: &dyn BlockTarget, request: &Request<'_>) -> Result<Option<u64>> {
    let footers = Footers::read(&file)?;
    let size = footers.footer.virtual_size();
    let tables = Tables::read(&file, &footers, size, request)?;
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
        // Where only the cookie is damaged, what stands there is the footer still.
        let (copy, there) = (read(file, 0)?, read(file, at)?);
        let told = copy.iter().zip(&there).filter(|(byte, _)| **byte != 0);
        let (same, other): (Vec<_>, Vec<_>) = told.partition(|(byte, there)| byte == there);
        if same.len() >= 3 * other.len() {
            return Ok(Some(at));
        }
    }
    Ok(Some(file_size.next_multiple_of(SECTOR)))
}

/// The header has no copy. Its checksum is made right only where the rest of the file proves every number in
/// it that says where the disk's bytes are.
fn mend_header(file: &dyn BlockTarget, request: &Request<'_>) -> Result<u64> {
    let footers = Footers::read(&file)?;
    if footers.kind == DiskType::Fixed {
        return Ok(0);
    }
    let size = footers.footer.virtual_size();
    let tables = match Tables::read(&file, &footers, size, request) {
        Ok(tables) if tables.damaged => tables,
        // Nothing vouches for the blocks, and what is wrong with them a check tells.
        Ok(_) | Err(Error::Malformed { .. }) => return Ok(0),
        Err(error) => return Err(error),
    };
    if !is_proven(&tables, &footers, size) {
        return Ok(0);
    }
    let mut bytes = [0; Header::LEN];
    file.read_exact_at(&mut bytes, tables.at)?;
    let sum = header::checksum_of(&bytes).to_be_bytes();
    file.write_all_at(&sum, tables.at + header::CHECKSUM_AT as u64)?;
    file.sync()?;
    Ok(1)
}

fn read(file: &dyn BlockTarget, at: u64) -> Result<[u8; FOOTER]> {
    let mut bytes = [0; FOOTER];
    // An old one at the end is a byte shorter.
    file.read_at(&mut bytes, at)?;
    Ok(bytes)
}

fn put(file: &dyn BlockTarget, footer: &[u8; FOOTER], at: u64) -> Result<()> {
    file.write_all_at(footer, at)?;
    file.sync()
}
