//! Which clusters of a file have an owner, so that none gets two.

use std::collections::HashMap;

use crate::error::Result;
use crate::limits::Limits;

/// Clusters that entries were found to have for themselves: a bit for each, in pieces that are made
/// when they are needed.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    pieces: HashMap<u64, [u64; PIECE_WORDS]>,
}

/// Small, so that entries scattered over a sparse file cost no more than some times their own size.
const PIECE_WORDS: usize = 8;
const PIECE_BITS: u64 = PIECE_WORDS as u64 * 64;
const PIECE_BYTES: u64 = PIECE_BITS / 8 + 8;

impl Claims {
    /// Marks a cluster, by its number; `false` if it was marked already.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`](crate::Error::LimitExceeded) if the marks take up more than one
    /// structure of an image may.
    pub(crate) fn claim(&mut self, cluster: u64, limits: &Limits) -> Result<bool> {
        let known = self.pieces.len() as u64;
        if !self.pieces.contains_key(&(cluster / PIECE_BITS)) {
            limits.check_metadata("the record of clusters in use", (known + 1) * PIECE_BYTES)?;
        }
        let piece = self.pieces.entry(cluster / PIECE_BITS).or_default();
        let bit = cluster % PIECE_BITS;
        let word = usize::try_from(bit / 64).ok();
        let Some(word) = word.and_then(|word| piece.get_mut(word)) else {
            return Ok(true);
        };
        let mask = 1 << (bit % 64);
        let free = *word & mask == 0;
        *word |= mask;
        Ok(free)
    }

    /// Whether a cluster is marked.
    pub(crate) fn has(&self, cluster: u64) -> bool {
        let piece = self.pieces.get(&(cluster / PIECE_BITS));
        let bit = cluster % PIECE_BITS;
        let word = usize::try_from(bit / 64).ok();
        let word = piece.zip(word).and_then(|(piece, word)| piece.get(word));
        word.is_some_and(|word| word & (1 << (bit % 64)) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_claimed_once() {
        let (mut claims, limits) = (Claims::default(), Limits::default());
        for cluster in [0, 63, 64, 511, 512, u64::MAX] {
            assert!(!claims.has(cluster));
            assert!(claims.claim(cluster, &limits).unwrap(), "{cluster}");
            assert!(!claims.claim(cluster, &limits).unwrap(), "{cluster}");
            assert!(claims.has(cluster));
        }
        assert!(!claims.has(1) && !claims.has(65));
    }

    #[test]
    fn the_marks_have_a_limit() {
        let (mut claims, mut limits) = (Claims::default(), Limits::default());
        limits.metadata_bytes = 2 * PIECE_BYTES;
        assert!(claims.claim(0, &limits).unwrap());
        assert!(claims.claim(PIECE_BITS, &limits).unwrap());
        assert!(claims.claim(1, &limits).unwrap());
        assert!(claims.claim(2 * PIECE_BITS, &limits).is_err());
    }
}
