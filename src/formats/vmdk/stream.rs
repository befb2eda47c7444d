//! Streams: the footer that holds what a forward-only writer could not know at the start (section
//! "Stream-Optimized Compressed Sparse Extents").

use crate::error::Result;
use crate::source::BlockSource;

use super::header::{
    GD_AT_END, GRAIN_MARKER_LEN, MARKER_EOS, MARKER_FOOTER, MARKER_GD, MARKER_GT, MARKER_PROGRESS,
    Marker, SECTOR, SPARSE_MAGIC, SparseExtentHeader, header_at,
};
use super::malformed;

/// The header that is in force in an extent with this one at its start: it, or its footer.
pub(super) fn in_force(
    file: &dyn BlockSource,
    first: &SparseExtentHeader,
) -> Result<SparseExtentHeader> {
    match first.gd_offset {
        GD_AT_END => read_footer(file, first),
        _ => Ok(*first),
    }
}

/// Finds and reads the footer of a stream whose header is `first`. It stands before the last sector of
/// the file, or, where bytes follow the stream, after the marker that a walk from the start finds.
///
/// # Errors
/// [`Error::Malformed`](crate::Error::Malformed) if there is none: the stream is cut short.
pub(super) fn read_footer(
    file: &dyn BlockSource,
    first: &SparseExtentHeader,
) -> Result<SparseExtentHeader> {
    let at = match at_end(file)? {
        Some(at) => at,
        None => walk(file, first)?,
    };
    let footer = header_at(file, at)?;
    if footer.magic_number != SPARSE_MAGIC {
        return Err(malformed("footer", at, "has no magic number"));
    }
    footer.check(at)?;
    if footer.gd_offset == GD_AT_END {
        let problem = "says that the grain directory is at the end, as the header does";
        return Err(SparseExtentHeader::malformed(at, "gd_offset", problem));
    }
    Ok(footer)
}

/// Host offset of the footer in a file that ends with its stream.
pub(super) fn at_end(file: &dyn BlockSource) -> Result<Option<u64>> {
    let Some(at) = file.size().checked_sub(3 * SECTOR) else {
        return Ok(None);
    };
    if at % SECTOR != 0 {
        return Ok(None);
    }
    let footer = marker_at(file, at)?;
    let end = marker_at(file, at + 2 * SECTOR)?;
    let is_footer = footer.size == 0 && footer.kind == MARKER_FOOTER;
    let is_end = end.val == 0 && end.size == 0 && end.kind == MARKER_EOS;
    let magic = header_at(file, at + SECTOR)?.magic_number == SPARSE_MAGIC;
    Ok((is_footer && is_end && magic).then_some(at + SECTOR))
}

/// The part of a stream that begins with a marker.
pub(super) enum Part {
    /// A grain of the guest's sector, so many bytes long with its marker.
    Grain { sector: u64, len: u64 },
    /// A table, a directory, a footer or a note of progress: its kind, the byte where it begins and its sectors.
    Metadata { kind: u32, start: u64, sectors: u64 },
    /// The end of the stream.
    End,
}

/// The part whose marker is at byte `at`, and the place of the next marker.
pub(super) fn part_at(file: &dyn BlockSource, at: u64) -> Result<(Part, u64)> {
    let marker = marker_at(file, at)?;
    let (part, sectors) = match (marker.size, marker.kind) {
        (0, MARKER_EOS) => (Part::End, Some(1)),
        (0, kind @ (MARKER_GT | MARKER_GD | MARKER_PROGRESS | MARKER_FOOTER)) => {
            let part = Part::Metadata {
                kind,
                start: at.saturating_add(SECTOR),
                sectors: marker.val,
            };
            (part, marker.val.checked_add(1))
        }
        (0, kind) => {
            let problem = format!("is {kind}, which is not known");
            return Err(Marker::malformed(at, "kind", problem));
        }
        (size, _) => {
            let len = u64::from(size) + GRAIN_MARKER_LEN as u64;
            let sector = marker.val;
            (Part::Grain { sector, len }, Some(len.div_ceil(SECTOR)))
        }
    };
    let next = sectors
        .and_then(|sectors| sectors.checked_mul(SECTOR))
        .and_then(|len| at.checked_add(len));
    Ok((part, next.ok_or_else(|| missing(at))?))
}

/// Host offset of the footer, found by following the markers from the first grain on. Every step goes on by a
/// sector or more.
fn walk(file: &dyn BlockSource, first: &SparseExtentHeader) -> Result<u64> {
    let mut footer = None;
    let mut at = first.over_head.max(1).saturating_mul(SECTOR);
    while at.checked_add(SECTOR).is_some_and(|end| end <= file.size()) {
        let (part, next) = part_at(file, at)?;
        match part {
            Part::End => return footer.ok_or_else(|| missing(at)),
            Part::Metadata { kind, start, .. } if kind == MARKER_FOOTER => footer = Some(start),
            Part::Metadata { .. } | Part::Grain { .. } => {}
        }
        at = next;
    }
    Err(missing(at))
}

/// End of the data of the grain whose marker is at byte `at`.
pub(super) fn grain_end(at: u64, marker: &Marker) -> Option<u64> {
    at.checked_add(GRAIN_MARKER_LEN as u64)?
        .checked_add(marker.size.into())
}

/// The error of a stream that ends at `at` without a footer.
pub(super) fn missing(at: u64) -> crate::Error {
    malformed("stream", at, "has no footer: the file is cut short")
}

/// The marker at byte `at`.
pub(super) fn marker_at(file: &dyn BlockSource, at: u64) -> Result<Marker> {
    let mut bytes = [0; Marker::LEN];
    let n = file.read_at(&mut bytes, at)?;
    Marker::parse(bytes.get(..n).unwrap_or_default(), at)
}
