//! The block allocation table on its way: entries come in order, and full pages go.

use crate::formats::vhdx::bat::{BatEntry, Geometry};
use crate::image::Write;
use crate::ondisk::TableEntry;

/// Entries of a page.
const PAGE: u64 = 8192;

/// The part of the table that is being filled. What is never set stays unwritten, or is marked as zeros.
#[derive(Debug)]
pub(super) struct Table {
    geometry: Geometry,
    /// Host offset of the table.
    offset: u64,
    /// Entry of a payload block that is never set.
    absent: BatEntry,
    /// The entry that comes next.
    next: u64,
    /// The entries of the page of `next` that come before it; empty where all are 0.
    page: Vec<u8>,
}

impl Table {
    pub(super) fn new(geometry: Geometry, offset: u64, mark_zeroes: bool) -> Self {
        Table {
            geometry,
            offset,
            absent: match mark_zeroes {
                true => BatEntry::ZERO,
                false => BatEntry::default(),
            },
            next: 0,
            page: Vec::new(),
        }
    }

    /// Sets an entry that comes after all that were set before.
    pub(super) fn set(&mut self, index: u64, entry: BatEntry, tables: &mut Vec<Write>) {
        self.skip_to(index, tables);
        self.push(entry, tables);
    }

    /// Leaves the rest of the table unset.
    pub(super) fn finish(&mut self, tables: &mut Vec<Write>) {
        self.skip_to(self.geometry.entries(), tables);
        self.flush(tables);
    }

    fn skip_to(&mut self, index: u64, tables: &mut Vec<Write>) {
        if self.absent != BatEntry::default() {
            while self.next < index {
                let entry = match self.geometry.is_bitmap(self.next) {
                    true => BatEntry::default(),
                    false => self.absent,
                };
                self.push(entry, tables);
            }
        } else if self.next < index {
            if self.next / PAGE != index / PAGE {
                self.flush(tables);
            }
            self.next = index;
        }
    }

    fn push(&mut self, entry: BatEntry, tables: &mut Vec<Write>) {
        let before = usize::try_from(self.next % PAGE * 8).unwrap_or(usize::MAX);
        self.page.resize(before, 0);
        self.page.extend(entry.encode());
        self.next += 1;
        if self.next % PAGE == 0 {
            self.flush(tables);
        }
    }

    /// Emits the page of the entry before `next`.
    fn flush(&mut self, tables: &mut Vec<Write>) {
        if self.page.is_empty() {
            return;
        }
        let first = self.next.saturating_sub(1) / PAGE * PAGE;
        tables.push(Write::new(
            0,
            self.offset + first * 8,
            std::mem::take(&mut self.page),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Payload;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn entries_are_where_they_belong(
            steps in prop::collection::vec((0_u64..12_000, 1_u64..9), 0..12),
            mark_zeroes: bool,
        ) {
            let geometry = Geometry {
                virtual_size: 40_000 << 20,
                block_size: 1 << 20,
                sector_size: 512,
                has_parent: false,
            };
            let mut table = Table::new(geometry, 0, mark_zeroes);
            let entries = geometry.entries();
            let mut oracle: Vec<u64> = (0..entries)
                .map(|i| if mark_zeroes && !geometry.is_bitmap(i) { 2 } else { 0 })
                .collect();
            let mut writes = Vec::new();
            let mut at = 0;
            for (gap, entry) in steps {
                at += gap;
                if at >= entries { break; }
                table.set(at, BatEntry::from_raw(entry << 20), &mut writes);
                oracle[usize::try_from(at).unwrap()] = entry << 20;
                at += 1;
            }
            table.finish(&mut writes);
            let mut bytes = vec![0; oracle.len() * 8];
            let mut end = 0;
            for write in writes {
                let Payload::Bytes(page) = write.payload else { panic!() };
                prop_assert!(write.offset >= end, "a page is written twice");
                end = write.offset + page.len() as u64;
                let start = usize::try_from(write.offset).unwrap();
                bytes[start..start + page.len()].copy_from_slice(&page);
            }
            let oracle: Vec<u8> = oracle.into_iter().flat_map(u64::to_le_bytes).collect();
            prop_assert!(bytes == oracle);
        }
    }
}
