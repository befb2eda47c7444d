//! Repair of a VHDX image: its log is replayed, and the copies of the header and of the region table are repaired
//! by each other.

use std::sync::Arc;

use uuid::Uuid;

use crate::error::Result;
use crate::formats::identity::derived;
use crate::image::{Fixed, Request};
use crate::map::edit::{Changes, Ordered, Rank, TableStore};
use crate::source::{BlockSource, BlockSourceExt};
use crate::target::BlockTarget;

use super::header::{self, Current, HEADER_LEN, HEADERS, Header};
use super::log;
use super::region::{self, REGION_TABLE_LEN, REGION_TABLES};

/// Repairs the image in `file`.
///
/// A log is replayed as often as a header names it, with the same result each time. A new header without a log
/// replaces the older one of the two, twice, so that neither names the log in the end. A sound copy replaces a
/// damaged one.
///
/// # Errors
/// Damage that cannot be repaired, and errors of reading and writing.
pub(super) fn repair(file: &Arc<dyn BlockTarget>, request: &Request<'_>) -> Result<Fixed> {
    let store = Arc::new(TableStore::new(file, Ordered, request.limits));
    let source: Arc<dyn BlockSource> = Arc::clone(&store) as _;
    header::check_identifier(&store)?;
    let mut current = header::read_current(&store)?;
    let mut fixed = Fixed::default();
    if let Some(overlay) = log::replay(&current.header, current.offset, &source, request.limits)? {
        // The result of the replay has to be an image.
        region::read_regions(&overlay, &current.header, current.offset)?;
        store.put(overlay.into_changes())?;
        for _ in HEADERS {
            // The other header still names the log: while it does, nothing but the replay may be written.
            store.put(next_header(&store, &current)?)?;
            store.commit()?;
            current = header::read_current(&store)?;
        }
        fixed.corruptions += 1;
    }
    if current.warning.is_some() {
        store.put(next_header(&store, &current)?)?;
        store.commit()?;
        current = header::read_current(&store)?;
        fixed.corruptions += 1;
    }
    let regions = region::read_regions(&store, &current.header, current.offset)?;
    if regions.warning.is_some() {
        let table = header::read(&store, regions.offset, REGION_TABLE_LEN, "region table")?;
        let at = other(REGION_TABLES, regions.offset);
        store.put(Changes::of(Rank::Root, at, table))?;
        store.commit()?;
        fixed.corruptions += 1;
    }
    Ok(fixed)
}

/// The current header with an empty log and the next sequence number, in the place of the other header.
fn next_header(file: &dyn BlockSource, current: &Current) -> Result<Changes> {
    let sequence_number = current.header.sequence_number.checked_add(1);
    let sequence_number = sequence_number.ok_or_else(|| {
        let problem = "is the largest possible, and a new header needs a larger one";
        Header::malformed(current.offset, "sequence_number", problem)
    })?;
    let number = sequence_number.to_le_bytes();
    let header = Header {
        sequence_number,
        // A new one says that the file was written to; the same data_write_guid, that the disk is the same.
        file_write_guid: Uuid::from_bytes_le(
            derived(&[
                b"file write",
                &current.header.file_write_guid.to_bytes_le(),
                &number,
            ])
            .into_bytes(),
        ),
        log_guid: Uuid::nil(),
        ..current.header
    };
    let mut bytes = vec![0; HEADER_LEN];
    file.read_exact_at(&mut bytes, current.offset)?;
    bytes.splice(..Header::LEN, header.encode());
    header::set_checksum(&mut bytes);
    let at = other(HEADERS, current.offset);
    Ok(Changes::of(Rank::Header, at, bytes))
}

/// The place of the second of two copies, if one is at `this`.
fn other([first, second]: [u64; 2], this: u64) -> u64 {
    if this == first { second } else { first }
}
