//! Writing the log back, and mending the copies of the header and of the region table by each other.

use std::sync::Arc;

use crate::error::Result;
use crate::formats::identity::derived;
use crate::image::{Fixed, Request};
use crate::source::{BlockSource, BlockSourceExt};
use crate::target::BlockTarget;

use super::guid::Guid;
use super::header::{self, CHECKSUM, Current, HEADER_LEN, HEADERS, Header};
use super::log;
use super::region;

/// Mends the image in `file`.
///
/// The log is replayed again and again until a header says that it is empty, with the same result; that
/// header is written where the one that does not count is. Copies are written over copies that are damaged.
///
/// # Errors
/// What is wrong with the image and cannot be mended, and what reading and writing fail with.
pub(super) fn repair(file: &Arc<dyn BlockTarget>, request: &Request<'_>) -> Result<Fixed> {
    let limits = request.limits;
    header::check_identifier(file)?;
    let mut current = header::read_current(file)?;
    let source: Arc<dyn BlockSource> = Arc::new(Arc::clone(file));
    let mut fixed = Fixed::default();
    if let Some(overlay) = log::replay(&current.header, current.offset, &source, limits)? {
        // What the log makes of the image has to be one.
        region::read_regions(&overlay, &current.header, current.offset)?;
        overlay.write_to(&**file)?;
        file.sync()?;
        put_header(file, &current)?;
        current = header::read_current(file)?;
        // The other one still tells of the log. Should this one be lost, it would be replayed over what is
        // written until then.
        put_header(file, &current)?;
        current = header::read_current(file)?;
        fixed.corruptions += 1;
    }
    if current.warning.is_some() {
        put_header(file, &current)?;
        current = header::read_current(file)?;
        fixed.corruptions += 1;
    }
    let regions = region::read_regions(file, &current.header, current.offset)?;
    if regions.warning.is_some() {
        region::mend_copy(&**file)?;
        fixed.corruptions += 1;
    }
    Ok(fixed)
}

/// Writes a header that says what the current one does, and that the log is empty, over the other one, and
/// makes it the current one.
fn put_header(file: &dyn BlockTarget, current: &Current) -> Result<()> {
    let [first, second] = HEADERS;
    let to = if current.offset == first {
        second
    } else {
        first
    };
    let sequence_number = current.header.sequence_number.checked_add(1);
    let sequence_number = sequence_number.ok_or_else(|| {
        let problem = "is the last one that there is";
        Header::malformed(current.offset, "sequence_number", problem)
    })?;
    let number = sequence_number.to_le_bytes();
    let header = Header {
        sequence_number,
        // It tells that the file was written to; the other one that its disk is the same.
        file_write_guid: Guid(derived(&[
            b"file write",
            &current.header.file_write_guid.0,
            &number,
        ])),
        log_guid: Guid::ZERO,
        ..current.header
    };
    let mut bytes = vec![0; HEADER_LEN];
    file.read_exact_at(&mut bytes, current.offset)?;
    let fields = header.encode();
    for (to, from) in bytes.iter_mut().zip(fields) {
        *to = from;
    }
    let sum = header::checksum(&bytes).to_le_bytes();
    for (to, from) in bytes.iter_mut().skip(CHECKSUM).zip(sum) {
        *to = from;
    }
    file.write_all_at(&bytes, to)?;
    file.sync()
}
