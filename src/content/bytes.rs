//! Bytes to recognise things in: a window that was read before, or a disk that is read as needed.

use std::cell::RefCell;
use std::collections::VecDeque;

use crate::error::Error;
use crate::extent::ExtentKind;
use crate::image::Probe;
use crate::source::BlockSource;

/// Bytes by their offset. Bytes that do not exist or cannot be read are `None`, as if they were not found.
pub(crate) trait Bytes {
    /// Number of bytes.
    fn size(&self) -> u64;

    /// The `len` bytes at `offset`, all of them or none.
    fn bytes(&self, offset: u64, len: usize) -> Option<Vec<u8>>;

    /// Returns whether the bytes at `offset` are `magic`.
    fn has(&self, offset: u64, magic: &[u8]) -> bool {
        self.bytes(offset, magic.len())
            .is_some_and(|found| found == magic)
    }
}

impl Bytes for Probe<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn bytes(&self, offset: u64, len: usize) -> Option<Vec<u8>> {
        let from_start = usize::try_from(offset).ok().and_then(|at| self.at(at, len));
        let from_end = || {
            let distance = usize::try_from(self.size.checked_sub(offset)?).ok()?;
            self.from_end(distance, len)
        };
        from_start.or_else(from_end).map(<[u8]>::to_vec)
    }
}

/// The unit of reading: what most filesystems have in one piece.
const PAGE: usize = 4096;
/// Bytes kept so as not to be read twice.
const MOST_KEPT: usize = 4 << 20;
/// Bytes read of one disk at most.
pub(super) const MOST_READ: u64 = 640 << 10;
/// Cost of a compressed unit at most. It is read and decompressed whole, for the sake of a few bytes;
/// most compress to three eighths of their length.
const MOST_PACKED: u64 = 64 << 10;
/// Longest compressed unit that is read whole.
const LONGEST_UNIT: u64 = 2 << 20;

/// A disk that is read page by page, and not much of it.
#[derive(Debug)]
pub(super) struct Disk<'a> {
    source: &'a dyn BlockSource,
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    /// Bytes that may still be read.
    left: u64,
    pages: VecDeque<(u64, Vec<u8>)>,
    failure: Option<Error>,
    exhausted: bool,
}

impl<'a> Disk<'a> {
    pub(super) fn new(source: &'a dyn BlockSource) -> Self {
        Disk {
            source,
            state: RefCell::new(State {
                left: MOST_READ,
                pages: VecDeque::new(),
                failure: None,
                exhausted: false,
            }),
        }
    }

    /// All of it.
    pub(super) fn whole(&'a self) -> Part<'a> {
        Part {
            disk: self,
            start: 0,
            len: self.source.size(),
        }
    }

    /// The first error that reading failed with.
    pub(super) fn failure(&self) -> Option<Error> {
        self.state.borrow_mut().failure.take()
    }

    /// Returns whether something was left out because the budget was spent.
    pub(super) fn is_exhausted(&self) -> bool {
        self.state.borrow().exhausted
    }

    fn read(&self, offset: u64, len: usize) -> Option<Vec<u8>> {
        let end = offset.checked_add(len as u64)?;
        if end > self.source.size() || len as u64 > MOST_READ {
            return None;
        }
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).ok()?;
        let mut at = offset;
        while at < end {
            let want = usize::try_from(end - at).ok()?;
            at += self.copy(at, want, &mut bytes)? as u64;
        }
        Some(bytes)
    }

    /// Appends up to `want` bytes of the page that has the byte at `at`: at least one.
    fn copy(&self, at: u64, want: usize, to: &mut Vec<u8>) -> Option<usize> {
        let mut state = self.state.borrow_mut();
        let has = |(start, page): &(u64, Vec<u8>)| {
            at.checked_sub(*start)
                .is_some_and(|into| into < page.len() as u64)
        };
        if !state.pages.iter().any(has) {
            self.load(at, &mut state)?;
        }
        let (start, page) = state.pages.iter().find(|page| has(page))?;
        let part = page.get(usize::try_from(at - start).ok()?..)?;
        let part = part.get(..want).unwrap_or(part);
        to.extend_from_slice(part);
        Some(part.len())
    }

    /// Reads the page, or the compressed unit, that has the byte at `at`.
    fn load(&self, at: u64, state: &mut State) -> Option<()> {
        let (unit, cost) = self.unit(at);
        let start = at - at % unit;
        let len = unit.min(self.source.size().saturating_sub(start));
        let Some(left) = state.left.checked_sub(cost.min(len)) else {
            state.exhausted = true;
            return None;
        };
        state.left = left;
        let mut page = vec![0; usize::try_from(len).ok()?];
        match self.source.read_at(&mut page, start) {
            Ok(n) => page.truncate(n),
            Err(error) => {
                state.failure.get_or_insert(error);
                return None;
            }
        }
        let mut kept: usize = state.pages.iter().map(|(_, page)| page.len()).sum();
        while kept + page.len() > MOST_KEPT {
            let Some((_, oldest)) = state.pages.pop_front() else {
                break;
            };
            kept -= oldest.len();
        }
        state.pages.push_back((start, page));
        Some(())
    }

    /// Bytes to read at once, and their cost.
    fn unit(&self, at: u64) -> (u64, u64) {
        let page = (PAGE as u64, PAGE as u64);
        let block = self.source.block_size();
        if !(PAGE as u64 + 1..=LONGEST_UNIT).contains(&block) {
            return page;
        }
        match self.source.extent_at(at, 1) {
            Ok(run) if run.kind == ExtentKind::Compressed => {
                (block, (block / 8 * 3).min(MOST_PACKED))
            }
            _ => page,
        }
    }
}

/// A part of a disk: a partition, the boot image on a CD.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    disk: &'a Disk<'a>,
    start: u64,
    len: u64,
}

impl Part<'_> {
    /// As many of the `len` bytes at `start` as there are.
    pub(super) fn part(&self, start: u64, len: u64) -> Self {
        let start = start.min(self.len);
        Part {
            disk: self.disk,
            start: self.start + start,
            len: len.min(self.len - start),
        }
    }
}

impl Bytes for Part<'_> {
    fn size(&self) -> u64 {
        self.len
    }

    fn bytes(&self, offset: u64, len: usize) -> Option<Vec<u8>> {
        if offset.checked_add(len as u64)? > self.len {
            return None;
        }
        self.disk.read(self.start.checked_add(offset)?, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Memory;

    #[test]
    fn a_part_ends_where_it_ends() {
        let bytes: Vec<u8> = (0..10_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let memory = Memory::new(bytes.clone());
        let disk = Disk::new(&memory);
        let part = disk.whole().part(4000, 200);
        assert_eq!(part.bytes(90, 110).unwrap(), bytes[4090..4200]);
        assert_eq!(part.bytes(90, 111), None);
        assert_eq!(part.bytes(u64::MAX, 2), None);
        assert_eq!(disk.whole().part(9_999, 500).size(), 1);
        assert_eq!(disk.whole().part(u64::MAX, 500).size(), 0);
    }

    #[test]
    fn reading_has_an_end() {
        let memory = Memory::new(vec![1; 2 << 20]);
        let disk = Disk::new(&memory);
        let pages = (0..512_u64).filter(|page| disk.whole().bytes(page * 4096, 1).is_some());
        assert_eq!(pages.count(), 160);
        assert!(disk.is_exhausted());
        assert!(disk.failure().is_none());
    }
}
