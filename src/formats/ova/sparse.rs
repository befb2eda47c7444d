//! Files of which an archive has the parts that are not holes.

use std::sync::Arc;

use crate::error::Result;
use crate::extent::{Extent, ExtentKind};
use crate::source::{BlockSource, BlockSourceExt, FileIdentity, Stored, check_extent, readable};

/// A part of a file that is in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// Offset in the file.
    start: u64,
    len: u64,
    /// Offset among the stored bytes.
    stored: u64,
}

/// The parts that a map of offsets and lengths in turn describes; `None` if they are not in order,
/// overlap, or are not as many bytes as are stored.
pub(super) fn pieces(map: &[u64], stored: u64, size: u64) -> Option<Arc<[Piece]>> {
    let mut pieces = Vec::new();
    let (mut end, mut taken) = (0_u64, 0_u64);
    let mut pairs = map.chunks_exact(2);
    for pair in &mut pairs {
        let [start, len] = pair else { return None };
        let next = start.checked_add(*len).filter(|next| *next <= size)?;
        if *start < end {
            return None;
        }
        // An entry of no length tells where the file ends.
        if *len > 0 {
            pieces.push(Piece {
                start: *start,
                len: *len,
                stored: taken,
            });
        }
        taken = taken.checked_add(*len)?;
        end = next;
    }
    (pairs.remainder().is_empty() && taken == stored).then(|| pieces.into())
}

/// A file with holes.
#[derive(Debug)]
pub(super) struct SparseMember<S> {
    stored: S,
    pieces: Arc<[Piece]>,
    size: u64,
}

impl<S: BlockSource> SparseMember<S> {
    pub(super) fn new(stored: S, pieces: Arc<[Piece]>, size: u64) -> Self {
        SparseMember {
            stored,
            pieces,
            size,
        }
    }

    /// Offset among the stored bytes of the byte at `offset`, if it is stored, and the length of that run.
    fn at(&self, offset: u64) -> (Option<u64>, u64) {
        let next = self
            .pieces
            .partition_point(|piece| piece.start + piece.len <= offset);
        match self.pieces.get(next) {
            Some(piece) if piece.start <= offset => {
                let into = offset - piece.start;
                (Some(piece.stored + into), piece.len - into)
            }
            Some(piece) => (None, piece.start - offset),
            None => (None, self.size - offset),
        }
    }
}

impl<S: BlockSource> BlockSource for SparseMember<S> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let want = readable(buf.len(), offset, self.size);
        let mut done = 0;
        while done < want {
            let (stored, len) = self.at(offset + done as u64);
            let n = readable(want - done, 0, len);
            let Some(piece) = buf.get_mut(done..done + n) else {
                break;
            };
            match stored {
                Some(stored) => self.stored.read_exact_at(piece, stored)?,
                None => piece.fill(0),
            }
            done += n;
        }
        Ok(done)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let limit = check_extent(offset, limit, self.size)?;
        let (stored, len) = self.at(offset);
        let limit = limit.min(len);
        match stored {
            Some(stored) => {
                let run = self.stored.extent_at(stored, limit)?;
                Ok(Extent {
                    start: offset,
                    ..run
                })
            }
            None => Ok(Extent::new(offset, limit, ExtentKind::Hole)),
        }
    }

    fn stored(&self) -> Option<&dyn Stored> {
        Some(self)
    }
}

impl<S: BlockSource> Stored for SparseMember<S> {
    fn uses_file(&self, file: FileIdentity) -> bool {
        self.stored.uses_file(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Memory;

    #[test]
    fn holes_read_as_zero() {
        let pieces = pieces(&[2, 3, 8, 1, 10, 0], 4, 10).unwrap();
        let file = SparseMember::new(Memory::new(&b"abcd"[..]), pieces, 10);
        let mut all = [9; 12];
        assert_eq!(file.read_at(&mut all, 0).unwrap(), 10);
        assert_eq!(&all[..10], b"\0\0abc\0\0\0d\0");
        assert_eq!(file.read_at(&mut all[..2], 4).unwrap(), 2);
        assert_eq!(&all[..2], b"c\0");
        let runs: Vec<_> = file.extents().map(|run| run.unwrap()).collect();
        let runs: Vec<_> = runs.iter().map(|run| (run.len, run.kind)).collect();
        let (hole, data) = (ExtentKind::Hole, ExtentKind::Data);
        assert_eq!(
            runs,
            [(2, hole), (3, data), (3, hole), (1, data), (1, hole)]
        );
    }

    #[test]
    fn maps_without_sense_are_refused() {
        for (map, stored, size) in [
            (&[0, 5, 4, 1][..], 6, 10),
            (&[5, 1, 0, 1], 2, 10),
            (&[0, 4], 5, 10),
            (&[8, 4], 4, 10),
            (&[u64::MAX, 2], 2, u64::MAX),
            (&[0], 0, 10),
        ] {
            assert!(pieces(map, stored, size).is_none(), "{map:?}");
        }
    }
}
