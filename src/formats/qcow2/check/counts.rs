//! Numbers of references to clusters, a byte for most of them.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use crate::error::Result;
use crate::limits::Limits;

/// Clusters of a piece. No refcount block counts fewer.
pub(super) const PIECE: u64 = 64;
const PIECE_LEN: usize = 64;
/// Bytes of memory for a piece and its place in the index.
const PIECE_BYTES: u64 = 96;
/// Bytes of memory for a count that a byte is too small for.
const LARGE_BYTES: u64 = 48;
/// In a piece: the count is among the large ones.
const LARGE: u8 = u8::MAX;

/// Memory of a check, measured against the limit.
#[derive(Debug)]
pub(super) struct Budget {
    limits: Limits,
    kept: u64,
}

impl Budget {
    pub(super) fn new(limits: &Limits) -> Self {
        Budget {
            limits: limits.clone(),
            kept: 0,
        }
    }

    /// Asks for so many bytes more.
    pub(super) fn take(&mut self, bytes: u64) -> Result<()> {
        self.kept = self.kept.saturating_add(bytes);
        self.limits.check_kept(self.kept)
    }

    /// Gives so many bytes back.
    pub(super) fn give_back(&mut self, bytes: u64) {
        self.kept = self.kept.saturating_sub(bytes);
    }
}

/// References to clusters, counted.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pieces: Vec<[u8; PIECE_LEN]>,
    /// Index of the piece for each range of clusters.
    index: BTreeMap<u64, usize>,
    large: HashMap<u64, u64>,
    /// The piece that was used last.
    last: Option<(u64, usize)>,
}

impl Counts {
    /// Adds references to a cluster until it has `most`, and returns how many were added.
    pub(super) fn add(
        &mut self,
        cluster: u64,
        more: u64,
        most: u64,
        budget: &mut Budget,
    ) -> Result<u64> {
        let number = cluster / PIECE;
        let at = match self.last {
            Some((kept, at)) if kept == number => at,
            _ => {
                let at = match self.index.get(&number) {
                    Some(at) => *at,
                    None => {
                        budget.take(PIECE_BYTES)?;
                        self.pieces.push([0; PIECE_LEN]);
                        let at = self.pieces.len() - 1;
                        self.index.insert(number, at);
                        at
                    }
                };
                self.last = Some((number, at));
                at
            }
        };
        let within = usize::try_from(cluster % PIECE).unwrap_or(0);
        let Some(count) = self.pieces.get_mut(at).and_then(|p| p.get_mut(within)) else {
            return Ok(0);
        };
        let before = match *count {
            LARGE => self.large.get(&cluster).copied().unwrap_or(0),
            small => u64::from(small),
        };
        let after = before.saturating_add(more).min(most);
        match u8::try_from(after) {
            Ok(small) if small != LARGE => *count = small,
            _ => {
                if *count != LARGE {
                    budget.take(LARGE_BYTES)?;
                    *count = LARGE;
                }
                self.large.insert(cluster, after);
            }
        }
        Ok(after.saturating_sub(before))
    }

    /// References to a cluster.
    pub(super) fn of(&self, cluster: u64) -> u64 {
        let piece = self.piece(cluster / PIECE);
        self.in_piece(piece, cluster)
    }

    /// The counts of [`PIECE`] clusters, if one of them is not 0.
    pub(super) fn piece(&self, number: u64) -> Option<&[u8; PIECE_LEN]> {
        self.pieces.get(*self.index.get(&number)?)
    }

    /// References to a cluster whose piece is this one.
    pub(super) fn in_piece(&self, piece: Option<&[u8; PIECE_LEN]>, cluster: u64) -> u64 {
        let within = usize::try_from(cluster % PIECE).unwrap_or(0);
        match piece.and_then(|piece| piece.get(within)).copied() {
            None => 0,
            Some(LARGE) => self.large.get(&cluster).copied().unwrap_or(0),
            Some(small) => u64::from(small),
        }
    }

    /// The numbers of the pieces that there are in a range of numbers, in order.
    pub(super) fn pieces_in(&self, numbers: Range<u64>) -> impl Iterator<Item = u64> {
        self.index.range(numbers).map(|(number, _)| *number)
    }

    /// The first piece from this number on.
    pub(super) fn next_piece(&self, number: u64) -> Option<u64> {
        self.index.range(number..).next().map(|(number, _)| *number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_every_size_are_told_apart() {
        let mut counts = Counts::default();
        let mut budget = Budget::new(&Limits::default());
        let most = u64::MAX;
        for (cluster, count) in [(0, 1), (63, 254), (64, 255), (65, 256), (1 << 50, most - 1)] {
            assert_eq!(
                counts.add(cluster, count, most, &mut budget).unwrap(),
                count
            );
            assert_eq!(counts.of(cluster), count);
        }
        assert_eq!(counts.add(63, 1, most, &mut budget).unwrap(), 1);
        assert_eq!(counts.of(63), 255);
        assert_eq!(counts.add(63, 1, most, &mut budget).unwrap(), 1);
        assert_eq!((counts.of(63), counts.of(62), counts.of(66)), (256, 0, 0));
        assert_eq!(counts.add(1 << 50, 9, most, &mut budget).unwrap(), 1);
        assert_eq!(counts.add(0, 9, 3, &mut budget).unwrap(), 2);
        assert_eq!(counts.pieces_in(0..9).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(counts.next_piece(2), Some((1 << 50) / PIECE));
    }

    #[test]
    fn what_is_counted_has_a_limit() {
        let limits = Limits {
            check_bytes: 2 * PIECE_BYTES,
            ..Limits::default()
        };
        let (mut counts, mut budget) = (Counts::default(), Budget::new(&limits));
        assert!(counts.add(0, 1, 9, &mut budget).is_ok());
        assert!(counts.add(PIECE, 1, 9, &mut budget).is_ok());
        let error = counts.add(2 * PIECE, 1, 9, &mut budget).unwrap_err();
        assert!(error.to_string().contains("limit check_bytes"), "{error}");
    }
}
