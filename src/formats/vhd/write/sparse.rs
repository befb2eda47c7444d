//! Dynamic and differencing disks.

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::formats::vhd::SECTOR;
use crate::formats::vhd::footer::{DiskType, Footer, NO_OFFSET};
use crate::formats::vhd::header::{BatEntry, COOKIE, Header, LOCATORS_LEN, VERSION, bitmap_len};
use crate::image::{Finish, ImageWriter, Payload, Placed, Write, WriteRun, WriteShape};
use crate::ondisk::TableEntry;

use super::options::{Parent, Plan};
use super::{PAGE, bytes, footer};

/// Host offset of the parent's name, or of the table if there is no parent.
const AFTER_HEADER: u64 = SECTOR + Header::LEN as u64;

/// Lays a dynamic or differencing disk out.
#[derive(Debug)]
pub(super) struct SparseWriter {
    plan: Plan,
    parent: Option<Parent>,
    block_size: u64,
    table_offset: u64,
    bat: Vec<BatEntry>,
    /// First offset at which the next block may start.
    end: u64,
    open: Option<OpenBlock>,
}

/// The block that was placed last.
#[derive(Debug)]
struct OpenBlock {
    index: u64,
    host: u64,
    bitmap: Vec<u8>,
}

impl SparseWriter {
    /// A writer for a disk whose table was found to be small enough.
    pub(super) fn new(plan: Plan, block_size: u64, parent: Option<Parent>) -> Self {
        let blocks = plan.size.div_ceil(block_size);
        let table_offset = AFTER_HEADER + parent.as_ref().map_or(0, |parent| parent.name.space());
        SparseWriter {
            bat: vec![BatEntry::UNUSED; usize::try_from(blocks).unwrap_or(0)],
            end: table_offset + (blocks * 4).next_multiple_of(SECTOR),
            plan,
            parent,
            block_size,
            table_offset,
            open: None,
        }
    }

    fn is_differencing(&self) -> bool {
        self.plan.kind == DiskType::Differencing
    }

    /// Makes the block of a guest offset the open one; returns where its data starts in the file.
    fn enter(&mut self, guest: u64, tables: &mut Vec<Write>) -> Result<u64> {
        let index = guest / self.block_size;
        let bitmap_len = bitmap_len(self.block_size);
        if let Some(open) = self.open.as_ref().filter(|open| open.index == index) {
            return Ok(open.host + bitmap_len);
        }
        self.leave(tables);
        let entry = usize::try_from(index)
            .ok()
            .and_then(|at| self.bat.get_mut(at));
        let Some(entry) = entry.filter(|entry| **entry == BatEntry::UNUSED) else {
            return Err(Error::invalid(format!(
                "guest offset {guest} is outside of the disk, or its block was left"
            )));
        };
        let data = (self.end + bitmap_len).next_multiple_of(PAGE);
        let host = data - bitmap_len;
        match u32::try_from(host / SECTOR).map(BatEntry::from_raw) {
            Ok(new) if new != BatEntry::UNUSED => *entry = new,
            _ => {
                return Err(Error::invalid(
                    "the image is larger than the 2 TiB that a VHD can have",
                ));
            }
        }
        self.end = data + self.block_size;
        tables.push(Write::new(0, data, Payload::Zeroes(self.block_size)));
        let fill = if self.is_differencing() { 0 } else { 0xff };
        self.open = Some(OpenBlock {
            index,
            host,
            bitmap: vec![fill; usize::try_from(bitmap_len).unwrap_or(0)],
        });
        Ok(data)
    }

    /// Writes the bitmap of the open block, to which nothing will be added.
    fn leave(&mut self, tables: &mut Vec<Write>) {
        if let Some(open) = self.open.take() {
            tables.push(bytes(open.host, open.bitmap));
        }
    }

    fn place_in_block(&mut self, guest: u64, len: u64, tables: &mut Vec<Write>) -> Result<Placed> {
        let end = guest.checked_add(len).filter(|end| *end <= self.plan.size);
        if end.is_none() || len == 0 || guest % SECTOR != 0 {
            return Err(Error::invalid(format!(
                "{len} bytes at {guest} are no sectors of the disk"
            )));
        }
        let data = self.enter(guest, tables)?;
        let into = guest % self.block_size;
        let taken = len.min(self.block_size - into);
        if self.is_differencing() {
            if let Some(open) = &mut self.open {
                set_bits(
                    &mut open.bitmap,
                    into / SECTOR,
                    (into + taken).div_ceil(SECTOR),
                );
            }
        }
        Ok(Placed::new(0, data + into, taken))
    }

    fn header(&self) -> Header {
        let mut header = Header {
            cookie: COOKIE,
            data_offset: NO_OFFSET,
            table_offset: self.table_offset,
            header_version: VERSION,
            max_table_entries: u32::try_from(self.bat.len()).unwrap_or(u32::MAX),
            block_size: u32::try_from(self.block_size).unwrap_or(u32::MAX),
            checksum: 0,
            parent_unique_id: Uuid::nil(),
            parent_time_stamp: 0,
            parent_unicode_name: [0; 512],
            parent_locators: [0; LOCATORS_LEN],
        };
        if let Some(parent) = &self.parent {
            header.parent_unique_id = parent.unique_id;
            header.parent_time_stamp = parent.time_stamp;
            header.parent_unicode_name = parent.name.unicode_name;
            header.parent_locators = parent.name.locators(AFTER_HEADER);
        }
        header
    }
}

/// Sets the bits of the sectors from `from` up to `to`, most significant bit first.
fn set_bits(bitmap: &mut [u8], from: u64, to: u64) {
    for (byte, first) in bitmap.iter_mut().zip((0_u64..).step_by(8)) {
        let start = from.clamp(first, first + 8) - first;
        let end = to.clamp(first, first + 8) - first;
        let mask = (0xff_u16 >> start) & !(0xff_u16 >> end);
        *byte |= u8::try_from(mask & 0xff).unwrap_or(0);
    }
}

impl ImageWriter for SparseWriter {
    fn shape(&self) -> WriteShape {
        // A child takes whole bytes of its bitmaps: libvhdi 20210425 loses the rest of the byte in which
        // a run of own sectors ends.
        let unit = if self.is_differencing() { PAGE } else { SECTOR };
        let mut shape = WriteShape::new(self.plan.size, unit);
        shape.zero_unit = PAGE;
        shape.record_zeroes = self.is_differencing();
        shape
    }

    fn place(&mut self, run: WriteRun<'_>, tables: &mut Vec<Write>) -> Result<Placed> {
        match run {
            WriteRun::Verbatim { guest, len } => self.place_in_block(guest, len, tables),
            WriteRun::Zero { guest, len } if self.is_differencing() => {
                self.place_in_block(guest, len, tables)
            }
            WriteRun::Zero { len, .. } => Ok(Placed::new(0, 0, len)),
            WriteRun::Packed { .. } | WriteRun::Copied { .. } => {
                Err(Error::invalid("a VHD cannot be compressed"))
            }
        }
    }

    fn full_sizes(&self) -> Option<Vec<u64>> {
        let bitmap_len = bitmap_len(self.block_size);
        let first = (self.end + bitmap_len).next_multiple_of(PAGE);
        let step = (bitmap_len + self.block_size).next_multiple_of(PAGE);
        let end = match self.bat.len() as u64 {
            0 => self.end,
            blocks => first + (blocks - 1) * step + self.block_size,
        };
        Some(vec![end + SECTOR])
    }

    fn finish(mut self: Box<Self>) -> Result<Finish> {
        let mut tables = Vec::new();
        self.leave(&mut tables);
        let header = self.header().sealed().to_vec();
        let mut bat: Vec<u8> = self.bat.iter().flat_map(|entry| entry.encode()).collect();
        bat.resize(bat.len().next_multiple_of(Footer::LEN), 0xff);
        let unique_id = self.plan.unique_id(&[&header, &bat]);
        let footer = footer(&self.plan, unique_id).sealed().to_vec();
        tables.push(bytes(SECTOR, header));
        tables.push(bytes(self.table_offset, bat));
        if let Some(parent) = &self.parent {
            tables.push(bytes(AFTER_HEADER, parent.name.data().to_vec()));
        }
        let seal = vec![bytes(self.end, footer.clone()), bytes(0, footer)];
        Ok(Finish::new(tables, seal, vec![self.end + SECTOR]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_set_from_the_most_significant_one() {
        for (from, to, expected) in [
            (0, 0, [0, 0, 0]),
            (0, 1, [0x80, 0, 0]),
            (3, 8, [0x1f, 0, 0]),
            (7, 17, [0x01, 0xff, 0x80]),
            (0, 24, [0xff, 0xff, 0xff]),
        ] {
            let mut bitmap = [0; 3];
            set_bits(&mut bitmap, from, to);
            assert_eq!(bitmap, expected, "{from}..{to}");
        }
    }
}
