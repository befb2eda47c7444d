//! The record of losses.

use std::collections::BTreeMap;
use std::mem::{Discriminant, discriminant};

use crate::error::{Error, Result};
use crate::limits::Limits;

/// Losses that are listed one by one.
const MOST_TOLD: usize = 10_000;
/// Bytes of memory that one range of the record takes up.
const RANGE: u64 = 64;

/// A range of a disk that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loss {
    /// Start in bytes from the start of the disk.
    pub start: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Reason; of several adjoining failures of a kind, that of the first.
    pub error: String,
    /// Place in the file in bytes, if the error has it.
    pub offset: Option<u64>,
}

/// Losses of a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Losses {
    /// The first 10,000 failures in order of the disk, those that adjoin and are of one kind as one.
    pub list: Vec<Loss>,
    /// Bytes that are lost, in the list or not.
    pub bytes: u64,
    /// Ranges that are lost, apart from each other, in the list or not.
    pub ranges: u64,
    /// Bytes that are not in the list.
    pub untold: u64,
}

impl Losses {
    /// Returns true if nothing is lost.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

/// Failures with the same nature count as one: the kind of the error, and of the structure.
type Nature = (Discriminant<Error>, &'static str);

/// One failure.
#[derive(Debug)]
struct Failure {
    length: u64,
    nature: Nature,
    error: String,
    offset: Option<u64>,
}

/// All ranges that are lost, and the first failures.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// The end of each range by its start. No two touch.
    ranges: BTreeMap<u64, u64>,
    /// By their starts. The highest starts are left out, so that the order of threads has no influence.
    failures: BTreeMap<u64, Failure>,
}

impl Lost {
    /// Records a range that was not recorded before.
    pub(super) fn add(
        &mut self,
        start: u64,
        length: u64,
        error: &Error,
        limits: &Limits,
    ) -> Result<()> {
        let bytes = (self.ranges.len() as u64 + 1).saturating_mul(RANGE);
        limits.check_metadata("the record of what is lost", bytes)?;
        self.cover(start, start.saturating_add(length));
        let last = self.failures.last_key_value().map(|(last, _)| *last);
        if self.failures.len() >= MOST_TOLD && last.is_some_and(|last| last < start) {
            return Ok(());
        }
        let (structure, offset) = match error {
            Error::Malformed {
                structure, offset, ..
            } => (*structure, *offset),
            _ => ("", None),
        };
        self.failures.entry(start).or_insert_with(|| Failure {
            length,
            nature: (discriminant(error), structure),
            error: error.chain(),
            offset,
        });
        if self.failures.len() > MOST_TOLD {
            self.failures.pop_last();
        }
        Ok(())
    }

    fn cover(&mut self, start: u64, end: u64) {
        let (mut start, mut end) = (start, end);
        let before = self.ranges.range(..=start).next_back();
        if let Some((&other, &other_end)) = before.filter(|(_, other)| **other >= start) {
            start = other;
            end = end.max(other_end);
        }
        while let Some((&other, &other_end)) = self.ranges.range(start..=end).next() {
            self.ranges.remove(&other);
            end = end.max(other_end);
        }
        self.ranges.insert(start, end);
    }

    /// End of the range with `offset`, if there is one.
    pub(super) fn end_at(&self, offset: u64) -> Option<u64> {
        let (_, end) = self.ranges.range(..=offset).next_back()?;
        (*end > offset).then_some(*end)
    }

    /// The parts of the `len` bytes at `offset` that are not lost, each a start and an end.
    pub(super) fn left_of(&self, offset: u64, len: u64) -> Vec<(u64, u64)> {
        let (mut at, end) = (offset, offset.saturating_add(len));
        let mut left = Vec::new();
        while at < end {
            at = self.end_at(at).unwrap_or(at);
            let next = self.ranges.range(at..).next();
            let stop = next.map_or(end, |(start, _)| *start).min(end);
            if at < stop {
                left.push((at, stop));
            }
            at = at.max(stop);
        }
        left
    }

    pub(super) fn told(&self) -> Losses {
        let mut list: Vec<Loss> = Vec::new();
        let mut last = None;
        for (&start, failure) in &self.failures {
            match list.last_mut() {
                Some(loss)
                    if loss.start.saturating_add(loss.length) == start
                        && last == Some(failure.nature) =>
                {
                    loss.length += failure.length;
                }
                _ => list.push(Loss {
                    start,
                    length: failure.length,
                    error: failure.error.clone(),
                    offset: failure.offset,
                }),
            }
            last = Some(failure.nature);
        }
        let bytes = self.ranges.iter().map(|(start, end)| end - start).sum();
        let told: u64 = list.iter().map(|loss| loss.length).sum();
        Losses {
            list,
            bytes,
            ranges: self.ranges.len() as u64,
            untold: bytes - told.min(bytes),
        }
    }

    /// All that is lost from `start` on, as starts and ends.
    pub(super) fn ranges_from(&self, start: u64) -> Vec<(u64, u64)> {
        let first = self.end_at(start).map(|end| (start, end));
        let rest = self
            .ranges
            .range(start..)
            .map(|(start, end)| (*start, *end));
        let rest = rest.filter(|range| Some(*range) != first);
        first.into_iter().chain(rest).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FormatId;

    fn error(structure: &'static str) -> Error {
        Error::malformed(FormatId::new("raw"), structure, 7, "is lost")
    }

    fn lost(ranges: &[(u64, u64, &'static str)]) -> Lost {
        let mut lost = Lost::default();
        for (start, length, structure) in ranges {
            let limits = Limits::default();
            lost.add(*start, *length, &error(structure), &limits)
                .unwrap();
        }
        lost
    }

    #[test]
    fn the_order_in_which_losses_come_does_not_tell() {
        let parts = [(10, 10, "a"), (20, 5, "a"), (25, 5, "b"), (40, 1, "a")];
        let mut turned = parts;
        turned.reverse();
        let told = lost(&parts).told();
        assert_eq!(told, lost(&turned).told());
        let list: Vec<_> = told.list.iter().map(|l| (l.start, l.length)).collect();
        assert_eq!(list, [(10, 15), (25, 5), (40, 1)]);
        assert_eq!((told.bytes, told.ranges, told.untold), (21, 2, 0));
        assert_eq!(told.list[0].offset, Some(7));
    }

    #[test]
    fn what_is_left_lies_between() {
        let lost = lost(&[(10, 10, "a"), (30, 5, "a")]);
        assert_eq!(lost.left_of(0, 40), [(0, 10), (20, 30), (35, 40)]);
        assert_eq!(lost.left_of(12, 10), [(20, 22)]);
        assert_eq!(lost.left_of(12, 3), []);
        assert_eq!(lost.end_at(19), Some(20));
        assert_eq!(lost.end_at(20), None);
        assert_eq!(lost.ranges_from(15), [(15, 20), (30, 35)]);
        assert_eq!(lost.ranges_from(10), [(10, 20), (30, 35)]);
    }

    #[test]
    fn the_list_ends_and_the_sums_do_not() {
        let all: Vec<_> = (0..MOST_TOLD as u64 + 5).map(|i| (i * 2, 1, "a")).collect();
        let told = lost(&all).told();
        assert_eq!(told.list.len(), MOST_TOLD);
        assert_eq!((told.bytes, told.untold), (all.len() as u64, 5));
        let mut turned = all;
        turned.reverse();
        assert_eq!(lost(&turned).told(), told);
    }

    #[test]
    fn the_record_has_a_limit() {
        let mut lost = Lost::default();
        let limits = Limits {
            metadata_bytes: 2 * RANGE,
            ..Limits::default()
        };
        assert!(lost.add(0, 1, &error("a"), &limits).is_ok());
        assert!(lost.add(2, 1, &error("a"), &limits).is_ok());
        assert!(lost.add(4, 1, &error("a"), &limits).is_err());
    }
}
