//! Tables of which a part cannot be read, as happens on a disk that fails.
//!
//! The rest of them still gives the place of most of the guest's data: a bad sector costs only what its entries
//! map. This is for [salvage](crate::salvage) alone; other readers need the whole table.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::source::{BlockSource, BlockSourceExt};

/// Bytes that a disk reads at once, and bytes of a sector.
const PIECES: [u64; 2] = [4096, 512];

/// Fills `buf` with the bytes at `at`, and returns the ranges that cannot be read: they are zeros.
///
/// # Errors
/// The error of reading, if nothing can be read or the environment is not to blame.
pub(crate) fn read_what_is_left(
    source: &dyn BlockSource,
    buf: &mut [u8],
    at: u64,
) -> Result<Vec<Range<u64>>> {
    let error = match source.read_exact_at(buf, at) {
        Err(error @ Error::Io { .. }) => error,
        read => return read.map(|()| Vec::new()),
    };
    let mut bad: Vec<Range<u64>> = Vec::new();
    read_pieces(source, buf, at, &PIECES, &mut bad)?;
    let whole = at..at.saturating_add(buf.len() as u64);
    match bad.as_slice() {
        [all] if *all == whole => Err(error),
        _ => Ok(bad),
    }
}

fn read_pieces(
    source: &dyn BlockSource,
    buf: &mut [u8],
    at: u64,
    pieces: &[u64],
    bad: &mut Vec<Range<u64>>,
) -> Result<()> {
    let Some((piece, smaller)) = pieces.split_first() else {
        buf.fill(0);
        let end = at.saturating_add(buf.len() as u64);
        match bad.last_mut() {
            Some(last) if last.end == at => last.end = end,
            _ => bad.push(at..end),
        }
        return Ok(());
    };
    let mut rest = buf;
    let mut at = at;
    while !rest.is_empty() {
        let len = usize::try_from(piece - at % piece).unwrap_or(rest.len());
        let (now, later) = rest.split_at_mut(len.min(rest.len()));
        match source.read_exact_at(now, at) {
            Err(Error::Io { .. }) => read_pieces(source, now, at, smaller, bad)?,
            read => read?,
        }
        at = at.saturating_add(now.len() as u64);
        rest = later;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::Extent;
    use crate::format_id::FormatId;
    use crate::limits::Limits;
    use crate::map::TableReader;
    use crate::storage::Memory;

    #[derive(Debug)]
    struct Bad(Memory, Vec<Range<u64>>);

    impl BlockSource for Bad {
        fn size(&self) -> u64 {
            self.0.size()
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
            let end = offset + buf.len() as u64;
            match self.1.iter().any(|bad| bad.start < end && offset < bad.end) {
                true => Err(Error::io("read", std::io::Error::from_raw_os_error(5))),
                false => self.0.read_at(buf, offset),
            }
        }

        fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
            self.0.extent_at(offset, limit)
        }
    }

    #[test]
    fn a_bad_byte_costs_its_sector() {
        let disk = vec![7; 20_000];
        let bad = Bad(Memory::new(disk), vec![5000..5001, 9727..9729]);
        let mut buf = vec![1; 12_000];
        let ranges = read_what_is_left(&bad, &mut buf, 300).unwrap();
        assert_eq!(ranges, [4608..5120, 9216..10_240]);
        for (at, byte) in (300..).zip(&buf) {
            let lost = ranges.iter().any(|range| range.contains(&at));
            assert_eq!(*byte, if lost { 0 } else { 7 }, "{at}");
        }
        let mut all = vec![1; 100];
        assert!(read_what_is_left(&bad, &mut all, 4950).is_err());
        let reader = TableReader::new(FormatId::new("test"), &Limits::default(), true);
        reader.read(&bad, &mut buf, 300).unwrap();
        for (at, len, has) in [
            (4600, 8, false),
            (4600, 9, true),
            (5112, 8, true),
            (5120, 8, false),
            (9000, 4000, true),
            (0, 300, false),
        ] {
            assert_eq!(reader.is_unread(at, len), has, "{at}");
        }
        let mut past = vec![1; 100];
        let missing = read_what_is_left(&bad, &mut past, 19_950);
        assert!(!matches!(missing, Ok(_) | Err(Error::Io { .. })));
    }
}
