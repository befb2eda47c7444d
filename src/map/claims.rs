//! The owners of the units of a file, so that no unit gets two.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use crate::error::Result;
use crate::limits::Limits;

/// The way in which an entry has a unit. Two ways exclude each other, and [`Own`](Self::Own) itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Alone.
    Own,
    /// With other entries that do not say that it is their own.
    Shared,
    /// With other compressed data.
    Packed,
}

/// The units that entries of tables lay claim to, and those that are claimed against the rule.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    own: Marks,
    shared: Marks,
    packed: Marks,
    contested: Marks,
    /// Tables, or parts of them, whose entries are counted.
    counted: HashSet<u64>,
}

impl Claims {
    /// Returns `true` if the entries of the table `part` are counted.
    pub(crate) fn is_counted(&self, part: u64) -> bool {
        self.counted.contains(&part)
    }

    /// Notes that the entries of the table `part` are counted.
    pub(crate) fn set_counted(&mut self, part: u64) {
        self.counted.insert(part);
    }

    /// Claims units; `false` if one of them is claimed already in a way that excludes this one.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`](crate::Error::LimitExceeded) if the record takes up more than one structure of
    /// an image may.
    pub(crate) fn claim(
        &mut self,
        units: Range<u64>,
        claim: Claim,
        limits: &Limits,
    ) -> Result<bool> {
        let (mut at, mut alone) = (units.start, true);
        while at < units.end {
            let end = units.end.min((at / 64 + 1).saturating_mul(64));
            let mask = u64::MAX >> (64 - (end - at)) << (at % 64);
            let [own, shared, packed] =
                [&self.own, &self.shared, &self.packed].map(|marks| marks.word(at));
            let pieces = self.own.0.len() + self.shared.0.len() + self.packed.0.len();
            let (marks, excluded) = match claim {
                Claim::Own => (&mut self.own, own | shared | packed),
                Claim::Shared => (&mut self.shared, own | packed),
                Claim::Packed => (&mut self.packed, own | shared),
            };
            if !marks.0.contains_key(&(at / PIECE_BITS)) {
                let bytes = (pieces as u64 + 1) * PIECE_BYTES;
                limits.check_metadata("the record of units in use", bytes)?;
            }
            marks.set(at, mask);
            if excluded & mask != 0 {
                self.contested.set(at, excluded & mask);
                alone = false;
            }
            at = end;
        }
        Ok(alone)
    }

    /// Returns `true` if a unit is claimed in this way.
    pub(crate) fn has(&self, unit: u64, claim: Claim) -> bool {
        match claim {
            Claim::Own => self.own.has(unit),
            Claim::Shared => self.shared.has(unit),
            Claim::Packed => self.packed.has(unit),
        }
    }

    /// Returns `true` if a unit is claimed by two entries that exclude each other.
    pub(crate) fn is_contested(&self, unit: u64) -> bool {
        self.contested.has(unit)
    }
}

/// A bit for each unit, in pieces that are made when they are needed.
#[derive(Debug, Default)]
struct Marks(HashMap<u64, [u64; PIECE_WORDS]>);

/// Small, so that entries scattered over a sparse file cost no more than some times their own size.
const PIECE_WORDS: usize = 8;
const PIECE_BITS: u64 = PIECE_WORDS as u64 * 64;
const PIECE_BYTES: u64 = PIECE_BITS / 8 + 8;

impl Marks {
    fn has(&self, unit: u64) -> bool {
        self.word(unit) >> (unit % 64) & 1 != 0
    }

    /// The marks of the 64 units around one.
    fn word(&self, unit: u64) -> u64 {
        let piece = self.0.get(&(unit / PIECE_BITS));
        let word = usize::try_from(unit % PIECE_BITS / 64).ok();
        let word = piece.zip(word).and_then(|(piece, word)| piece.get(word));
        word.copied().unwrap_or(0)
    }

    fn set(&mut self, unit: u64, bits: u64) {
        let piece = self.0.entry(unit / PIECE_BITS).or_default();
        let word = usize::try_from(unit % PIECE_BITS / 64).unwrap_or(usize::MAX);
        if let Some(word) = piece.get_mut(word) {
            *word |= bits;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_claimed_once() {
        let (mut claims, limits) = (Claims::default(), Limits::default());
        for unit in [0, 63, 64, 511, 512, u64::MAX - 1] {
            assert!(!claims.has(unit, Claim::Own));
            for first in [true, false] {
                assert!(!claims.is_contested(unit));
                let alone = claims.claim(unit..unit + 1, Claim::Own, &limits).unwrap();
                assert_eq!(alone, first, "{unit}");
            }
            assert!(claims.has(unit, Claim::Own) && claims.is_contested(unit));
        }
        assert!(!claims.has(1, Claim::Own) && !claims.is_contested(65));
    }

    #[test]
    fn no_unit_of_a_range_is_claimed_twice() {
        let (mut claims, limits) = (Claims::default(), Limits::default());
        let mut claim = |range| claims.claim(range, Claim::Own, &limits).unwrap();
        assert!(claim(4000..4256));
        assert!(claim(3999..4000) && claim(4256..4257));
        assert!(!claim(4255..4256) && !claim(4000..4001) && !claim(0..10_000));
        assert!(claim(1 << 44..(1 << 44) + 1));
        let contested = (0..10_000).filter(|unit| claims.is_contested(*unit));
        assert_eq!(
            contested.collect::<Vec<_>>(),
            (3999..4257).collect::<Vec<_>>()
        );
    }

    #[test]
    fn what_is_shared_is_shared_in_one_way() {
        let limits = Limits::default();
        for (first, second, alone) in [
            (Claim::Shared, Claim::Shared, true),
            (Claim::Packed, Claim::Packed, true),
            (Claim::Shared, Claim::Packed, false),
            (Claim::Packed, Claim::Own, false),
            (Claim::Own, Claim::Shared, false),
        ] {
            let mut claims = Claims::default();
            assert!(claims.claim(0..3, first, &limits).unwrap());
            let second = claims.claim(2..9, second, &limits).unwrap();
            assert_eq!(second, alone, "{first:?}");
            assert_eq!(
                (claims.is_contested(2), claims.is_contested(3)),
                (!alone, false)
            );
        }
    }

    #[test]
    fn the_record_has_a_limit() {
        let (mut claims, mut limits) = (Claims::default(), Limits::default());
        limits.metadata_bytes = 2 * PIECE_BYTES;
        let mut claim = |unit| claims.claim(unit..unit + 1, Claim::Own, &limits);
        assert!(claim(0).unwrap() && claim(PIECE_BITS).unwrap() && claim(1).unwrap());
        let error = claim(2 * PIECE_BITS).unwrap_err();
        assert!(
            error.to_string().contains("the record of units in use"),
            "{error}"
        );
    }
}
