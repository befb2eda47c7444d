//! Signatures: bytes at a place of a file.

use crate::format_id::FormatId;
use crate::image::{Evidence, Probe};

/// Bytes at a distance from the start of a file or from its end.
pub(super) struct Signature {
    pub(super) format: FormatId,
    magic: &'static [u8],
    /// The magic as it is told.
    shown: &'static str,
    place: Place,
}

/// Where a magic stands, in bytes.
pub(super) enum Place {
    Start(usize),
    End(usize),
}

pub(super) const fn signature(
    format: &'static str,
    place: Place,
    magic: &'static [u8],
    shown: &'static str,
) -> Signature {
    Signature {
        format: FormatId::new(format),
        magic,
        shown,
        place,
    }
}

/// The formats of a table that the file shows, each with the first evidence for it.
pub(super) fn matches(table: &[Signature], window: &Probe<'_>) -> Vec<(FormatId, Evidence)> {
    let mut found: Vec<(FormatId, Evidence)> = Vec::new();
    for signature in table {
        let (bytes, offset) = match signature.place {
            Place::Start(at) => (window.at(at, signature.magic.len()), at as u64),
            Place::End(distance) => (
                window.from_end(distance, signature.magic.len()),
                window.size.saturating_sub(distance as u64),
            ),
        };
        let known = found.iter().any(|(format, _)| *format == signature.format);
        if bytes == Some(signature.magic) && !known {
            found.push((
                signature.format,
                Evidence {
                    what: signature.shown,
                    offset,
                },
            ));
        }
    }
    found
}
