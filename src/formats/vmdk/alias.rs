//! Who owns which bytes of an extent file: metadata overlaps nothing, and no two grains share any.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

/// Ranges of the file that hold metadata, in order and apart.
#[derive(Debug, Clone, Default)]
pub(super) struct Regions(Vec<(u64, u64)>);

impl Regions {
    /// The ranges, each a start and an end in bytes, without those that are empty.
    ///
    /// # Errors
    /// The start of a range that overlaps another.
    pub(super) fn new(mut ranges: Vec<(u64, u64)>) -> Result<Self, u64> {
        ranges.retain(|(start, end)| start < end);
        ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (start, end) in ranges {
            match merged.last_mut() {
                Some((_, last)) if *last > start => return Err(start),
                Some((_, last)) if *last == start => *last = end,
                _ => merged.push((start, end)),
            }
        }
        merged.shrink_to_fit();
        Ok(Regions(merged))
    }

    /// The same of ranges that may overlap.
    pub(super) fn of_any(mut ranges: Vec<(u64, u64)>) -> Self {
        ranges.retain(|(start, end)| start < end);
        ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (start, end) in ranges {
            match merged.last_mut() {
                Some((_, last)) if *last >= start => *last = end.max(*last),
                _ => merged.push((start, end)),
            }
        }
        Regions(merged)
    }

    /// Whether a byte from `start` to `end` is metadata.
    pub(super) fn overlap(&self, start: u64, end: u64) -> bool {
        let next = self
            .0
            .partition_point(|(_, region_end)| *region_end <= start);
        self.0
            .get(next)
            .is_some_and(|(region_start, _)| *region_start < end)
    }
}

/// The grains seen so far, table by table, so that one that is in two tables is found.
///
/// The memory that this takes is bounded: past the bound grains are only counted, and more of them
/// than the file can hold are as sure a sign.
#[derive(Debug)]
pub(super) struct Seen {
    grain: u64,
    /// The most grains that the file can hold.
    most: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tables: HashSet<u64>,
    grains: u64,
    pages: HashMap<u64, Box<[u64; PAGE_WORDS]>>,
}

const PAGE_WORDS: usize = 64;
const PAGE_BITS: u64 = PAGE_WORDS as u64 * 64;
/// 8 MiB of pages: a terabyte of grains of 64 KiB that lie close together takes a quarter of it.
const MAX_PAGES: usize = 16 << 10;

impl Seen {
    /// For grains of `grain` bytes in a file of `file_size`.
    pub(super) fn new(grain: u64, file_size: u64) -> Self {
        Seen {
            grain,
            most: file_size.div_ceil(grain),
            state: Mutex::default(),
        }
    }

    /// Notes the grains of a table, by their host offsets, if it was not noted before.
    ///
    /// # Errors
    /// The host offset of a grain that was there already, or that is one too many.
    pub(super) fn note(&self, table: u64, grains: &[u64]) -> Result<(), u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.tables.insert(table) {
            return Ok(());
        }
        for host in grains {
            state.grains += 1;
            if state.grains > self.most || !state.mark(host / self.grain) {
                state.tables.remove(&table);
                return Err(*host);
            }
        }
        Ok(())
    }
}

impl State {
    /// Marks a number; `false` if it was marked before.
    fn mark(&mut self, number: u64) -> bool {
        let (page, bit) = (number / PAGE_BITS, number % PAGE_BITS);
        if !self.pages.contains_key(&page) {
            if self.pages.len() >= MAX_PAGES {
                return true;
            }
            self.pages.insert(page, Box::new([0; PAGE_WORDS]));
        }
        let words = self.pages.get_mut(&page);
        let at = usize::try_from(bit / 64).unwrap_or(usize::MAX);
        let Some(word) = words.and_then(|words| words.get_mut(at)) else {
            return true;
        };
        let mask = 1 << (bit % 64);
        let new = *word & mask == 0;
        *word |= mask;
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_apart() {
        let regions = Regions::new(vec![(10, 20), (0, 5), (20, 30), (7, 7)]).unwrap();
        assert_eq!(regions.0, [(0, 5), (10, 30)]);
        for (start, end, overlaps) in [
            (5, 10, false),
            (4, 5, true),
            (29, 40, true),
            (30, 40, false),
        ] {
            assert_eq!(regions.overlap(start, end), overlaps, "{start}");
        }
        assert_eq!(Regions::new(vec![(0, 5), (4, 6)]).unwrap_err(), 4);
    }

    #[test]
    fn a_grain_belongs_to_one_table() {
        let seen = Seen::new(512, 1 << 20);
        assert_eq!(seen.note(1, &[1024, 512]), Ok(()));
        assert_eq!(seen.note(1, &[1024, 512]), Ok(()));
        assert_eq!(seen.note(2, &[2048, 512]), Err(512));
        let small = Seen::new(512, 1024);
        assert_eq!(small.note(1, &[0, 512, 1 << 40]), Err(1 << 40));
    }
}
