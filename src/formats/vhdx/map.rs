//! Lookup of guest ranges in the block allocation table and the sector bitmaps, read as needed.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

use crate::error::{Error, Result};
use crate::lock::lock;
use crate::map::{BlockMap, Claim, Claims, Held, Regions, Run, Table, TableReader};
use crate::ondisk::TableEntry;
use crate::source::BlockSource;

use super::VHDX;
use super::bat::{BITMAP_BLOCK, BatEntry, CHUNK_SECTORS, Geometry, State};
use super::header::{MIB, read};
use super::region::Region;

/// Bytes of the table, or of a sector bitmap, that are read and kept at once.
const PAGE: u64 = 64 << 10;
const PAGE_ENTRIES: u64 = PAGE / 8;

/// The table of an image. It is read in pages: that of a large disk has half a gigabyte.
#[derive(Debug)]
pub(super) struct VhdxMap {
    file: Arc<dyn BlockSource>,
    geometry: Geometry,
    bat: Region,
    reader: TableReader,
    /// Metadata that no block may share bytes with.
    taken: Regions,
    claims: Mutex<Claims>,
    /// The blocks of the whole table, once that was asked for, if the image is salvaged.
    all_claims: OnceLock<Claims>,
}

impl VhdxMap {
    pub(super) fn new(
        file: Arc<dyn BlockSource>,
        geometry: Geometry,
        bat: Region,
        taken: Regions,
        reader: TableReader,
    ) -> Result<Self> {
        let entries = geometry.entries();
        if entries > bat.len / 8 {
            let problem = format!(
                "has room for {} entries, and a disk of {} bytes needs {entries}",
                bat.len / 8,
                geometry.virtual_size
            );
            return Err(Error::malformed(VHDX, "BAT", bat.offset, problem));
        }
        Ok(VhdxMap {
            file,
            geometry,
            bat,
            reader,
            taken,
            claims: Mutex::default(),
            all_claims: OnceLock::new(),
        })
    }

    fn malformed(&self, entry: u64, problem: String) -> Error {
        let at = self.bat.offset + entry * 8;
        Error::malformed(VHDX, "BAT", at, format!("entry {entry} {problem}"))
    }

    /// The entry `index` of the table.
    fn entry(&self, index: u64) -> Result<BatEntry> {
        let number = index / PAGE_ENTRIES;
        let at = self.bat.offset + number * PAGE;
        let page = self.reader.table(at, || self.read_page(at, number))?;
        self.entry_of(&page, index)
    }

    /// The entry `index`, which is in this page.
    fn entry_of(&self, page: &[u8], index: u64) -> Result<BatEntry> {
        self.reader.check("BAT", self.bat.offset + index * 8, 8)?;
        Ok(BatEntry::decode(page, index % PAGE_ENTRIES).unwrap_or_default())
    }

    /// The page of the table that answers for `guest`.
    fn page(&self, guest: u64) -> Result<Option<Table>> {
        let block_size = self.geometry.block_size;
        let number = self.geometry.payload_entry(guest / block_size) / PAGE_ENTRIES;
        let first_guest = |number: u64| {
            let blocks = self.geometry.blocks_before(number * PAGE_ENTRIES);
            blocks.saturating_mul(block_size)
        };
        let host = self.bat.offset + number * PAGE;
        Ok(Some(Table {
            guest: first_guest(number)..first_guest(number + 1),
            host,
            entries: self.reader.table(host, || self.read_page(host, number))?,
        }))
    }

    fn read_page(&self, at: u64, number: u64) -> Result<Vec<u8>> {
        let len = usize::try_from(PAGE).unwrap_or(usize::MAX);
        let page = match read(&*self.file, at, len, "BAT") {
            Err(Error::Io { .. }) if self.reader.salvages() => {
                let mut page = vec![0; len];
                self.reader.read(&*self.file, &mut page, at)?;
                page
            }
            page => page?,
        };
        if !self.reader.salvages() {
            self.claim_page(&page, number)?;
        }
        Ok(page)
    }

    /// Claims the blocks of a page of the table that is read for the first time.
    fn claim_page(&self, page: &[u8], number: u64) -> Result<()> {
        let mut claims = lock(&self.claims);
        if claims.is_counted(number) {
            return Ok(());
        }
        for (index, start) in self.blocks_of(page, number) {
            let block = self.mebibytes(index, start);
            if !claims.claim(block, Claim::Own, self.reader.limits())? {
                let problem = format!("is at byte {start}, where another block is, too");
                return Err(self.malformed(index, problem));
            }
        }
        claims.set_counted(number);
        Ok(())
    }

    /// The entries of a page whose blocks are in the file, and where these begin.
    fn blocks_of(&self, page: &[u8], number: u64) -> impl Iterator<Item = (u64, u64)> {
        let first = number * PAGE_ENTRIES;
        let count = self.geometry.entries().saturating_sub(first);
        let indices = (first..).take(usize::try_from(count.min(PAGE_ENTRIES)).unwrap_or(0));
        indices.filter_map(move |index| {
            let entry = BatEntry::decode(page, index - first).unwrap_or_default();
            let in_file = match entry.state() {
                Some(State::FullyPresent | State::PartiallyPresent) => true,
                Some(State::NotPresent | State::Zero) | None => false,
            };
            let start = entry.host();
            // QEMU once left rubbish in the unused entries of sector bitmaps. What does not begin in the
            // file is an error of its own, in its turn.
            let unused = self.geometry.is_bitmap(index) && !self.geometry.has_parent;
            (in_file && !unused && start < self.file.size()).then_some((index, start))
        })
    }

    /// Fails if the block of an entry shares bytes with another one, for which the whole table is read once.
    fn check_alone(&self, index: u64, start: u64) -> Result<()> {
        let claims = match self.all_claims.get() {
            Some(claims) => claims,
            None => {
                let found = self.claim_all()?;
                self.all_claims.get_or_init(|| found)
            }
        };
        match self
            .mebibytes(index, start)
            .any(|at| claims.is_contested(at))
        {
            false => Ok(()),
            true => Err(self.malformed(index, "has bytes that are another block's, too".into())),
        }
    }

    fn claim_all(&self) -> Result<Claims> {
        let mut claims = Claims::default();
        for number in 0..self.geometry.entries().div_ceil(PAGE_ENTRIES) {
            // A page that cannot be read has no blocks.
            let Ok(page) = self.read_page(self.bat.offset + number * PAGE, number) else {
                continue;
            };
            for (index, start) in self.blocks_of(&page, number) {
                let (block, len) = (self.mebibytes(index, start), self.block_len(index));
                if self.taken.overlapping(start, len).is_none() {
                    claims.claim(block, Claim::Own, self.reader.limits())?;
                }
            }
        }
        Ok(claims)
    }

    /// The mebibytes of the file that the block of an entry takes up.
    fn mebibytes(&self, index: u64, start: u64) -> Range<u64> {
        start / MIB..(start + self.block_len(index)) / MIB
    }

    /// Bytes of the block that an entry is about.
    fn block_len(&self, index: u64) -> u64 {
        if self.geometry.is_bitmap(index) {
            BITMAP_BLOCK
        } else {
            self.geometry.block_size
        }
    }

    /// Returns the host offset of a stored block, of which `used` bytes are needed.
    fn place(&self, index: u64, entry: BatEntry, used: u64) -> Result<u64> {
        let start = entry.host();
        if let Some(other) = self.taken.overlapping(start, self.block_len(index)) {
            return Err(self.malformed(index, format!("is at byte {start}, in the {other}")));
        }
        let file_size = self.file.size();
        if start.checked_add(used).is_none_or(|end| end > file_size) {
            let problem = format!(
                "is at byte {start}, and {used} bytes from there reach past the end of the file at \
                 {file_size}: it was cut short"
            );
            return Err(self.malformed(index, problem));
        }
        Ok(start)
    }

    /// The status of the guest byte at `guest`, and for how many bytes of its block it holds.
    fn status(&self, page: &Table, guest: u64) -> Result<(Run, u64)> {
        let (block, into) = (
            guest / self.geometry.block_size,
            guest % self.geometry.block_size,
        );
        let rest = self.geometry.block_size - into;
        let index = self.geometry.payload_entry(block);
        let entry = self.entry_of(&page.entries, index)?;
        if entry.has_reserved_bits() {
            let problem = format!("is {entry:#x}, and has reserved bits set");
            return Err(self.malformed(index, problem));
        }
        // Of what is salvaged only the byte itself has to be there.
        let used = match self.reader.salvages() {
            true => into + 1,
            false => self.geometry.used(block),
        };
        let in_file = matches!(
            entry.state(),
            Some(State::FullyPresent | State::PartiallyPresent)
        );
        if self.reader.salvages() && in_file {
            self.check_alone(index, entry.host())?;
        }
        match entry.state() {
            None => Err(self.malformed(index, format!("is {entry:#x}, in a state that is none"))),
            Some(State::NotPresent) => Ok((Run::Unallocated, rest)),
            Some(State::Zero) => Ok((Run::Zero, rest)),
            Some(State::FullyPresent) => {
                let host = self.place(index, entry, used)? + into;
                Ok((Run::Stored { host }, rest.min(self.file.size() - host)))
            }
            Some(State::PartiallyPresent) if !self.geometry.has_parent => {
                let problem = format!("is {entry:#x}, partially present, and there is no parent");
                Err(self.malformed(index, problem))
            }
            Some(State::PartiallyPresent) => {
                let host = self.place(index, entry, used)? + into;
                let rest = rest.min(self.file.size() - host);
                let (here, len) = self.sectors(page, guest, rest)?;
                let run = if here {
                    Run::Stored { host }
                } else {
                    Run::Unallocated
                };
                Ok((run, len))
            }
        }
    }

    /// Returns whether the byte at `guest` is in this image by the sector bitmap, and for how many bytes, up
    /// to `limit`, that goes on.
    fn sectors(&self, page: &Table, guest: u64, limit: u64) -> Result<(bool, u64)> {
        let sector_size = self.geometry.sector_size;
        let sector = guest / sector_size;
        let index = self.geometry.bitmap_entry(sector / CHUNK_SECTORS);
        let own_page = (page.host - self.bat.offset) / PAGE == index / PAGE_ENTRIES;
        let entry = match own_page {
            true => self.entry_of(&page.entries, index)?,
            false => self.entry(index)?,
        };
        if entry.state() != Some(State::FullyPresent) || entry.has_reserved_bits() {
            let problem = format!("is {entry:#x}, and there has to be a sector bitmap");
            return Err(self.malformed(index, problem));
        }
        let start = self.place(index, entry, BITMAP_BLOCK)?;
        let bit = sector % CHUNK_SECTORS;
        let at = start + bit / 8 / PAGE * PAGE;
        let bitmap = self.reader.table(at, || {
            let len = usize::try_from(PAGE).unwrap_or(usize::MAX);
            read(&*self.file, at, len, "sector bitmap")
        })?;
        let most = (guest % sector_size + limit).div_ceil(sector_size);
        let (set, count) = same_bits(&bitmap, bit % (PAGE * 8), most);
        Ok((set, (count * sector_size - guest % sector_size).min(limit)))
    }

    /// For how many bytes from `guest` on, where a page of the table begins, the table is a hole: the
    /// table of a large disk mostly is.
    fn absent(&self, guest: u64) -> Result<u64> {
        let block_size = self.geometry.block_size;
        let (block, entries) = (guest / block_size, self.geometry.entries());
        let index = self.geometry.payload_entry(block);
        // A chunk's first block may come just after a page's first entry, which is then a bitmap's.
        if guest % block_size != 0 || index % PAGE_ENTRIES > 1 || index >= entries {
            return Ok(0);
        }
        let (at, len) = (self.bat.offset + index * 8, (entries - index) * 8);
        let run = self.file.extent_at(at, len)?;
        if !run.kind.reads_as_zero() {
            return Ok(0);
        }
        let absent = self.geometry.blocks_before(index + run.len / 8) - block;
        Ok(absent.saturating_mul(block_size))
    }
}

impl BlockMap for VhdxMap {
    fn unit(&self) -> u64 {
        self.geometry.block_size
    }

    fn step(&self, guest: u64, held: &mut Held) -> Result<(Run, u64)> {
        let absent = self.absent(guest)?;
        if absent > 0 {
            return Ok((Run::Unallocated, absent));
        }
        match held.table(guest, || self.page(guest))? {
            None => Ok((Run::Unallocated, self.unit() - guest % self.unit())),
            Some(page) => self.status(page, guest),
        }
    }

    fn tells_holes(&self) -> bool {
        true
    }

    fn lost_with(&self, guest: u64) -> u64 {
        let block_size = self.geometry.block_size;
        let block = guest / block_size;
        let index = self.geometry.payload_entry(block);
        let blocks = match self.entry(index) {
            Ok(_) => 1,
            Err(_) => {
                let next_page = (index / PAGE_ENTRIES + 1) * PAGE_ENTRIES;
                self.geometry.blocks_before(next_page) - block
            }
        };
        blocks.max(1).saturating_mul(block_size) - guest % block_size
    }

    fn tables(&self) -> Vec<(u64, u64)> {
        let len = self.geometry.entries() * 8;
        vec![(self.bat.offset, self.bat.offset.saturating_add(len))]
    }

    fn past_end(&self, guest: u64, host: u64, file_size: u64) -> Error {
        let problem = format!(
            "the data of guest offset {guest} is missing from byte {host} on, past the end of the \
             file at {file_size}: it was cut short"
        );
        Error::malformed(VHDX, "payload block", host, problem)
    }
}

/// Returns whether the bit at `first` is set, and how many from there on, up to `most`, are the same.
fn same_bits(bitmap: &[u8], first: u64, most: u64) -> (bool, u64) {
    let byte = |index: u64| {
        let index = usize::try_from(index).ok()?;
        bitmap.get(index).copied()
    };
    let set = byte(first / 8).is_some_and(|byte| byte >> (first % 8) & 1 != 0);
    let mut at = first;
    while at - first < most {
        let Some(bits) = byte(at / 8) else {
            break;
        };
        let bits = (if set { !bits } else { bits }) >> (at % 8);
        let same = u64::from(bits.trailing_zeros()).min(8 - at % 8);
        at += same;
        if at % 8 != 0 || same == 0 {
            break;
        }
    }
    (set, (at - first).clamp(1, most.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_of_bits_are_counted_from_the_lowest(
            runs in prop::collection::vec(1_usize..40, 1..12),
            first in 0_usize..100,
            most in 1_usize..90,
        ) {
            let bits: Vec<bool> = runs.iter().enumerate()
                .flat_map(|(i, n)| std::iter::repeat_n(i % 2 == 0, *n))
                .collect();
            let whole = bits.len() / 8 * 8;
            prop_assume!(first < whole);
            let bytes: Vec<u8> = bits[..whole].chunks(8)
                .map(|c| c.iter().enumerate().fold(0, |b, (i, set)| b | (u8::from(*set) << i)))
                .collect();
            let same = bits[first..whole].iter().take_while(|b| **b == bits[first]).count();
            let (set, count) = same_bits(&bytes, first as u64, most as u64);
            prop_assert_eq!((set, count), (bits[first], same.min(most) as u64));
        }
    }
}
