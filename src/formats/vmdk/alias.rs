//! The owners of the bytes of an extent file: metadata overlaps nothing, and no two grains share any.

use std::sync::Mutex;

use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::lock::lock;
use crate::map::{Claim, Claims, Regions};

/// The ranges of metadata, each a start and an end in bytes, and where the first one begins that overlaps
/// another.
pub(super) fn metadata(ranges: Vec<(u64, u64)>) -> (Regions, Option<u64>) {
    let mut first = None;
    let ranges = ranges
        .into_iter()
        .map(|(start, end)| (start, end, "metadata"));
    let regions = Regions::merged(ranges.collect(), |start, _, _| {
        first.get_or_insert(start);
    });
    (regions, first)
}

/// The grains seen so far, table by table, so that one that is in two tables is found.
///
/// The memory that this takes is bounded: past the limit grains are only counted, and more of them
/// than the file can hold are as sure a sign.
#[derive(Debug)]
pub(super) struct Seen {
    grain: u64,
    /// The most grains that the file can hold.
    most: u64,
    limits: Limits,
    /// The number of grains, and which.
    state: Mutex<(u64, Claims)>,
}

impl Seen {
    /// For grains of `grain` bytes in a file of `file_size`.
    pub(super) fn new(grain: u64, file_size: u64, limits: &Limits) -> Self {
        Seen {
            grain,
            most: file_size.div_ceil(grain),
            limits: limits.clone(),
            state: Mutex::default(),
        }
    }

    /// Notes the grains of a table, by their host offsets, if it was not noted before. Returns one that was
    /// there already, or that is one too many.
    pub(super) fn note(&self, table: u64, grains: &[u64]) -> Result<Option<u64>> {
        let mut state = lock(&self.state);
        let (count, claims) = &mut *state;
        if claims.is_counted(table) {
            return Ok(None);
        }
        for host in grains {
            *count += 1;
            let number = host / self.grain;
            let alone = match claims.claim(number..number + 1, Claim::Own, &self.limits) {
                Err(Error::LimitExceeded { .. }) => true,
                claimed => claimed?,
            };
            if *count > self.most || !alone {
                return Ok(Some(*host));
            }
        }
        claims.set_counted(table);
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grain_belongs_to_one_table() {
        let limits = Limits::default();
        let seen = Seen::new(512, 1 << 20, &limits);
        assert_eq!(seen.note(1, &[1024, 512]).unwrap(), None);
        assert_eq!(seen.note(1, &[1024, 512]).unwrap(), None);
        assert_eq!(seen.note(2, &[2048, 512]).unwrap(), Some(512));
        let small = Seen::new(512, 1024, &limits);
        assert_eq!(small.note(1, &[0, 512, 1 << 40]).unwrap(), Some(1 << 40));
    }

    #[test]
    fn past_the_limit_grains_are_counted() {
        let limits = Limits {
            metadata_bytes: 0,
            ..Limits::default()
        };
        let seen = Seen::new(512, 2048, &limits);
        assert_eq!(seen.note(1, &[1024, 512]).unwrap(), None);
        assert_eq!(seen.note(2, &[2048, 512, 0]).unwrap(), Some(0));
    }
}
