//! Which mebibytes of a file are in use by blocks, so that no two blocks share one.

use std::collections::{HashMap, HashSet};

use crate::error::Result;
use crate::limits::Limits;

/// Mebibytes that one word of a page is about.
const WORD: u64 = 64;
/// Words of a page, which is about 4 GiB.
const PAGE_WORDS: usize = 64;
const PAGE: u64 = WORD * PAGE_WORDS as u64;
/// What a page takes up in memory, in bytes.
const PAGE_COST: u64 = 640;

/// The blocks of those parts of the table that have been read, as a sparse bitmap of the file.
#[derive(Debug, Default)]
pub(super) struct Claims {
    pages: HashMap<u64, Box<[u64; PAGE_WORDS]>>,
    /// Parts of the table whose blocks are claimed.
    done: HashSet<u64>,
}

impl Claims {
    /// Whether the blocks of a part of the table are claimed already.
    pub(super) fn is_done(&self, part: u64) -> bool {
        self.done.contains(&part)
    }

    /// Notes that the blocks of a part of the table are claimed.
    pub(super) fn set_done(&mut self, part: u64) {
        self.done.insert(part);
    }

    /// Claims `count` mebibytes from the `first` on; `false` if one of them was claimed before.
    pub(super) fn claim(&mut self, first: u64, count: u64, limits: &Limits) -> Result<bool> {
        let (mut at, end) = (first, first.saturating_add(count));
        let mut alone = true;
        while at < end {
            let number = at / PAGE;
            if !self.pages.contains_key(&number) {
                let cost = (self.pages.len() as u64 + 1) * PAGE_COST;
                limits.check_metadata("the map of the blocks in use", cost)?;
            }
            let page = self
                .pages
                .entry(number)
                .or_insert_with(|| Box::new([0; PAGE_WORDS]));
            let bit = at % WORD;
            let len = (WORD - bit).min(end - at);
            let mask = (u64::MAX >> (WORD - len)) << bit;
            let index = usize::try_from(at % PAGE / WORD).unwrap_or(usize::MAX);
            if let Some(word) = page.get_mut(index) {
                alone &= *word & mask == 0;
                *word |= mask;
            }
            at += len;
        }
        Ok(alone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_mebibyte_is_claimed_twice() {
        let mut claims = Claims::default();
        let limits = Limits::default();
        let mut claim = |first, count| claims.claim(first, count, &limits).unwrap();
        assert!(claim(4000, 256));
        assert!(claim(3999, 1) && claim(4256, 1));
        assert!(!claim(4255, 1) && !claim(4000, 1) && !claim(0, 10_000));
        assert!(claim(1 << 44, 1));
    }

    #[test]
    fn blocks_all_over_a_giant_file_are_over_the_limit() {
        let mut claims = Claims::default();
        let limits = Limits {
            metadata_bytes: 10 * PAGE_COST,
            ..Limits::default()
        };
        let results: Vec<_> = (0..11)
            .map(|i| claims.claim(i * PAGE, 1, &limits))
            .collect();
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 10);
    }
}
