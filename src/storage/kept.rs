//! Pieces of a stream that are kept for good.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// What a piece costs besides its bytes.
const PIECE_COST: u64 = 96;

/// Bytes by where they start, no more than a limit allows.
#[derive(Debug)]
pub(super) struct Kept {
    /// They are apart from each other.
    pieces: BTreeMap<u64, Vec<u8>>,
    cost: u64,
    most: u64,
}

impl Kept {
    pub(super) fn new(most: u64) -> Self {
        Kept {
            pieces: BTreeMap::new(),
            cost: 0,
            most,
        }
    }

    /// The end of the piece that holds the byte `at`.
    fn end_of(&self, at: u64) -> Option<u64> {
        let (start, bytes) = self.pieces.range(..=at).next_back()?;
        let end = start + bytes.len() as u64;
        (end > at).then_some(end)
    }

    /// Copies what is kept from `at` on, in one piece.
    pub(super) fn copy(&self, buf: &mut [u8], at: u64) -> usize {
        let Some((start, bytes)) = self.pieces.range(..=at).next_back() else {
            return 0;
        };
        copy_part(buf, bytes, at - start)
    }

    /// Keeps these bytes, as far as they are not kept yet.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] if they are too many.
    pub(super) fn insert(&mut self, start: u64, bytes: &[u8]) -> Result<()> {
        let end = start + bytes.len() as u64;
        let mut at = start;
        while at < end {
            if let Some(known) = self.end_of(at) {
                at = known;
                continue;
            }
            let next = self.pieces.range(at..).next();
            let until = next.map_or(end, |(next, _)| end.min(*next));
            self.cost = self.cost.saturating_add(until - at + PIECE_COST);
            if self.cost > self.most {
                return Err(Error::LimitExceeded {
                    limit: "stream_bytes",
                    what: "what is kept of the tables of an image in a stream",
                    value: self.cost,
                    maximum: self.most,
                });
            }
            let range = usize::try_from(at - start)
                .ok()
                .zip(usize::try_from(until - start).ok());
            let piece = range.and_then(|(from, to)| bytes.get(from..to));
            self.pieces.insert(at, piece.unwrap_or_default().to_vec());
            at = until;
        }
        Ok(())
    }
}

/// Copies the bytes of a piece from `skip` on, and returns how many.
pub(super) fn copy_part(buf: &mut [u8], piece: &[u8], skip: u64) -> usize {
    let skip = usize::try_from(skip).unwrap_or(usize::MAX);
    let held = piece.get(skip..).unwrap_or_default();
    let n = held.len().min(buf.len());
    if let (Some(to), Some(held)) = (buf.get_mut(..n), held.get(..n)) {
        to.copy_from_slice(held);
    }
    n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_that_overlap_are_kept_once() {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut kept = Kept::new(256 + 6 * PIECE_COST);
        for (start, end) in [(10, 20), (30, 40), (0, 60), (15, 35), (50, 256)] {
            kept.insert(start as u64, &bytes[start..end]).unwrap();
        }
        let mut all = vec![0; 256];
        let mut at = 0;
        while at < 256 {
            let n = kept.copy(&mut all[at..], at as u64);
            assert!(n > 0, "{at}");
            at += n;
        }
        assert_eq!(all, bytes);
        assert_eq!(kept.copy(&mut all, 256), 0);
        let error = kept.insert(1000, &bytes).unwrap_err();
        assert!(error.to_string().contains("stream_bytes"), "{error}");
    }
}
