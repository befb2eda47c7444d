//! Grain tables as they are read: checked, compared with their copies and, where that is asked for, put together
//! from what is left of both.

use std::ops::Range;

use crate::error::Result;
use crate::map::read_what_is_left;
use crate::source::{BlockSource, BlockSourceExt};
use crate::zero::is_zero;

use super::super::entry::Grain;
use super::super::header::{MARKER_GT, SECTOR};
use super::super::malformed;
use super::super::stream;
use super::{GrainMap, Tables};

/// A copy of a grain table, and where it could not be read.
#[derive(Debug)]
struct TableCopy {
    entries: Vec<u8>,
    host: u64,
    bad: Vec<Range<u64>>,
}

impl TableCopy {
    /// The entry of `len` bytes, `at` bytes from the start, if it could be read.
    fn entry(&self, at: usize, len: usize) -> Option<&[u8]> {
        let place = self.host + at as u64;
        let bad = |bad: &Range<u64>| bad.start < place + len as u64 && place < bad.end;
        let entry = self.entries.get(at..)?.get(..len)?;
        (!self.bad.iter().any(bad)).then_some(entry)
    }
}

impl<T: Tables> GrainMap<T> {
    pub(super) fn read_table(&self, index: u64, host: u64) -> Result<Vec<u8>> {
        // Of what arrives the markers are gone by then, and it was followed by them.
        let marker = self
            .marked_tables
            .then(|| host.checked_sub(SECTOR))
            .flatten();
        if let Some(Ok(marker)) = marker.map(|at| stream::marker_at(&self.file, at)) {
            if marker.size != 0 || marker.kind != MARKER_GT {
                let problem = "has no marker before it that says so";
                return Err(malformed("grain table", host, problem));
            }
        }
        let copy = self.read_copy(host)?;
        if !copy.bad.is_empty() {
            let problem = "cannot be read as a whole";
            return Err(malformed("grain table", host, problem));
        }
        self.check_table(index, host, &copy.entries)?;
        Ok(copy.entries)
    }

    /// Fails where the copy of a table at `second` has another grain than the table: which of them is the right
    /// one nothing tells. A copy that cannot be read, or an entry of it that makes no sense, says nothing.
    ///
    /// QEMU writes the table before its copy, which after a crash may lack what the table has.
    pub(super) fn compare(&self, index: u64, table: &[u8], second: u64) -> Result<()> {
        let Ok(copy) = self.read_copy(second) else {
            return Ok(());
        };
        if copy.entries == table || !copy.bad.is_empty() {
            return Ok(());
        }
        let len = self.tables.entry_len();
        let pairs = table.chunks_exact(len).zip(copy.entries.chunks_exact(len));
        for ((raw, other), guest) in pairs.zip(self.guests(index)) {
            let own = self.tables.entry(raw)?;
            let Ok(Grain::At(at)) = self.decode(other, guest) else {
                continue;
            };
            if own != Grain::Zero && own != Grain::At(at) {
                let problem = format!(
                    "refers to byte {at} for guest offset {guest}, and the grain table does not"
                );
                return Err(malformed("redundant grain table", second, problem));
            }
        }
        Ok(())
    }

    /// Reads a table; if what can be is to be salvaged, as far as that goes.
    fn read_copy(&self, host: u64) -> Result<TableCopy> {
        let len = usize::try_from(self.entries).unwrap_or(0) * self.tables.entry_len();
        let mut entries = vec![0; len];
        let end = host.saturating_add(len as u64);
        let size = self.file.size();
        let salvages = self.reader.salvages() && host < size;
        if end > size && !salvages {
            return Err(malformed(
                "grain table",
                host,
                "lies past the end of the file",
            ));
        }
        let mut bad = Vec::new();
        if salvages {
            let there = usize::try_from(size - host).map_or(len, |there| there.min(len));
            let there = entries.get_mut(..there).unwrap_or_default();
            bad = read_what_is_left(&self.file, there, host)?;
            if end > size {
                bad.push(size..end);
            }
        } else {
            self.file.read_exact_at(&mut entries, host)?;
        }
        Ok(TableCopy { entries, host, bad })
    }

    /// If what can be is to be salvaged, the entries that make sense of both copies of a table that is damaged
    /// in both. Those that make no sense in either are told of when it is their turn, and so are those that
    /// cannot be read.
    pub(super) fn read_both(&self, index: u64, first: u64, second: u64) -> Option<Vec<u8>> {
        if !self.reader.salvages() {
            return None;
        }
        let mut copies = vec![self.read_copy(first).ok()];
        if second != first {
            copies.push(self.read_copy(second).ok());
        }
        let copies: Vec<TableCopy> = copies.into_iter().flatten().collect();
        let mut table = copies.first()?.entries.clone();
        let len = self.tables.entry_len();
        let guests = (index * self.table_span()..)
            .step_by(usize::try_from(self.grain).unwrap_or(usize::MAX));
        let places = (0_usize..).step_by(len);
        for ((to, at), guest) in table.chunks_exact_mut(len).zip(places).zip(guests) {
            let known = copies.iter().filter_map(|copy| copy.entry(at, len));
            let sound = known.clone().find(|raw| self.decode(raw, guest).is_ok());
            match sound.or_else(|| known.clone().next()) {
                Some(entry) => to.copy_from_slice(entry),
                None => {
                    let place = first.saturating_add(at as u64);
                    let bad = place..place.saturating_add(len as u64);
                    self.reader.note_unread(vec![bad]).ok()?;
                }
            }
        }
        Some(table)
    }

    /// Checks that all grains of a table are in the file, and have one owner.
    fn check_table(&self, index: u64, host: u64, table: &[u8]) -> Result<()> {
        if is_zero(table) {
            return Ok(());
        }
        let mut grains = Vec::new();
        let entries = table.chunks_exact(self.tables.entry_len());
        for (raw, guest) in entries.zip(self.guests(index)) {
            if let Grain::At(at) = self.decode_in(raw, guest, Some(host), self.first_grain)? {
                grains.push(at);
            }
        }
        // The marker of a compressed grain gives its place. Salvage decides grain by grain.
        if self.is_marked() || self.reader.salvages() {
            return Ok(());
        }
        match self.seen.note(index, &grains)? {
            None => Ok(()),
            Some(at) => {
                let problem = format!("refers to byte {at}, and so does another entry");
                Err(malformed("grain table", host, problem))
            }
        }
    }
}
