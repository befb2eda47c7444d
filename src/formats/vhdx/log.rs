//! The log: its entries, which of them are to be replayed, and their replay in memory (MS-VHDX 2.3).
//!
//! The log is a ring of 4 KiB sectors. An entry is a header and its descriptors, in one sector or
//! more, and one data sector for each data descriptor. Nothing is ever written to the file.

use std::sync::Arc;

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::map::edit::{Changes, Overlay, Rank};
use crate::ondisk::on_disk;
use crate::source::BlockSource;

use super::VHDX;
use super::header::{Header, MIB, checksum, read};
use super::region::REGION_TABLES;

on_disk! {
    /// The header of a log entry.
    struct LogEntryHeader in VHDX, "log entry", Little, 64 bytes {
        signature: [u8; 4] = 0,
        checksum: u32 = 4,
        entry_length: u32 = 8,
        tail: u32 = 12,
        sequence_number: u64 = 16,
        descriptor_count: u32 = 24,
        log_guid: Uuid = 32,
        flushed_file_offset: u64 = 48,
        last_file_offset: u64 = 56,
    }
}

on_disk! {
    /// A descriptor of a write: a sector of data, or zeros, whose length stands where data has leading bytes.
    struct Descriptor in VHDX, "log descriptor", Little, 32 bytes {
        signature: [u8; 4] = 0,
        trailing_bytes: [u8; 4] = 4,
        leading_bytes: [u8; 8] = 8,
        file_offset: u64 = 16,
        sequence_number: u64 = 24,
    }
}

on_disk! {
    /// A sector of data. Its first 8 and last 4 bytes are in its descriptor.
    struct DataSector in VHDX, "log data sector", Little, 4096 bytes {
        signature: [u8; 4] = 0,
        sequence_high: u32 = 4,
        sequence_low: u32 = 4092,
    }
}

const ENTRY: [u8; 4] = *b"loge";
const DATA: [u8; 4] = *b"desc";
const ZERO: [u8; 4] = *b"zero";
const DATA_SECTOR: [u8; 4] = *b"data";
/// The unit of everything that a log writes, in bytes.
const SECTOR: u64 = 4096;
const SECTOR_LEN: usize = 4096;
/// Most bytes of memory that one write of a log takes up.
const WRITE_COST: u64 = 96;

/// A log whose entries are looked at in memory.
struct Log {
    bytes: Vec<u8>,
    guid: Uuid,
    /// Host offset.
    offset: u64,
}

/// An entry whose every part is right.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Sector of the log where it begins.
    first: usize,
    sectors: usize,
    header: LogEntryHeader,
}

/// The file as it is after the writes in its log; `None` if its log is empty.
pub(super) fn replay(
    header: &Header,
    header_at: u64,
    file: &Arc<dyn BlockSource>,
    limits: &Limits,
) -> Result<Option<Overlay>> {
    if header.log_guid == Uuid::nil() {
        return Ok(None);
    }
    if header.log_version != 0 {
        return Err(Error::unsupported(
            VHDX,
            format!("a log of version {}", header.log_version),
            None,
        ));
    }
    let len = u64::from(header.log_length);
    let offset = header.log_offset;
    if len == 0 || len % MIB != 0 || offset < MIB || offset % MIB != 0 {
        let problem = format!("the log at byte {offset}, {len} bytes long, is not in whole MiB");
        return Err(Header::malformed(header_at, "log_length", problem));
    }
    limits.check_metadata("the log", len)?;
    let log = Log {
        bytes: read(
            &**file,
            offset,
            usize::try_from(len).unwrap_or(usize::MAX),
            "log",
        )?,
        guid: header.log_guid,
        offset,
    };
    let sequence = log.active_sequence()?;
    log.apply(&sequence, file, limits).map(Some)
}

impl Log {
    fn sectors(&self) -> usize {
        self.bytes.len() / SECTOR_LEN
    }

    /// A sector, counted around the ring.
    fn sector(&self, index: usize) -> &[u8] {
        let start = index % self.sectors().max(1) * SECTOR_LEN;
        self.bytes
            .get(start..start + SECTOR_LEN)
            .unwrap_or_default()
    }

    fn malformed(&self, entry: &Entry, field: &'static str, problem: String) -> Error {
        let at = self.offset + (entry.first * SECTOR_LEN) as u64;
        LogEntryHeader::malformed(at, field, problem)
    }

    /// The entry that begins at a sector, if there is a valid one.
    ///
    /// Every sector of a valid entry has a signature that says what it is, so that no two valid entries
    /// share a sector, and each sector's checksum is computed once at most.
    fn entry(&self, first: usize) -> Option<Entry> {
        let header = LogEntryHeader::parse(self.sector(first), 0).ok()?;
        let (len, log_len) = (header.entry_length as usize, self.bytes.len());
        let sound = header.signature == ENTRY
            && header.log_guid == self.guid
            && header.sequence_number > 0
            && len > 0
            && len <= log_len
            && len % SECTOR_LEN == 0
            && header.tail as usize % SECTOR_LEN == 0
            && (header.tail as usize) < log_len;
        let entry = Entry {
            first,
            sectors: len / SECTOR_LEN,
            header,
        };
        (sound && self.parts_are_sound(&entry) && self.checksum(&entry) == header.checksum)
            .then_some(entry)
    }

    fn parts_are_sound(&self, entry: &Entry) -> bool {
        let sequence = entry.header.sequence_number;
        let mut data = descriptor_sectors(entry);
        if data > entry.sectors {
            return false;
        }
        for descriptor in self.descriptors(entry) {
            let known = matches!(descriptor.signature, DATA | ZERO);
            if !known
                || descriptor.sequence_number != sequence
                || descriptor.file_offset % SECTOR != 0
                || descriptor.len() % SECTOR != 0
            {
                return false;
            }
            if descriptor.signature == DATA {
                let sector = DataSector::parse(self.sector(entry.first + data), 0).ok();
                let [high, low] = [sequence >> 32, sequence & 0xffff_ffff];
                let right = sector.is_some_and(|sector| {
                    sector.signature == DATA_SECTOR
                        && u64::from(sector.sequence_high) == high
                        && u64::from(sector.sequence_low) == low
                });
                data += 1;
                if !right || data > entry.sectors {
                    return false;
                }
            }
        }
        data == entry.sectors
    }

    fn descriptors(&self, entry: &Entry) -> impl Iterator<Item = Descriptor> {
        let sectors = (0..descriptor_sectors(entry)).map(|i| self.sector(entry.first + i));
        // The entry's header takes the room of two.
        let all = sectors.flat_map(|sector| sector.chunks_exact(Descriptor::LEN));
        let all = all.skip(2).take(entry.header.descriptor_count as usize);
        all.filter_map(|bytes| Descriptor::parse(bytes, 0).ok())
    }

    fn checksum(&self, entry: &Entry) -> u32 {
        // The field itself, which counts as zero, is in the first sector.
        let first = checksum(self.sector(entry.first));
        (1..entry.sectors).fold(first, |crc, i| {
            crc32c::crc32c_append(crc, self.sector(entry.first + i))
        })
    }

    /// The entries to be replayed, the last one first.
    ///
    /// A sequence is entries one behind the other with numbers one after the other, from the one that the
    /// last of them names as the tail. The one with the highest numbers counts.
    fn active_sequence(&self) -> Result<Vec<Entry>> {
        let count = self.sectors();
        let entries: Vec<Option<Entry>> = (0..count).map(|first| self.entry(first)).collect();
        let at = |index: usize| entries.get(index % count.max(1)).copied().flatten();
        let follows = |entry: &Entry| {
            let next = entry.header.sequence_number.checked_add(1);
            at(entry.first + entry.sectors).filter(|n| Some(n.header.sequence_number) == next)
        };
        let mut before: Vec<Option<Entry>> = vec![None; count];
        for entry in entries.iter().flatten() {
            if let Some(slot) = follows(entry).and_then(|next| before.get_mut(next.first)) {
                *slot = Some(*entry);
            }
        }
        let mut active: Option<Vec<Entry>> = None;
        for head in entries.iter().flatten() {
            if follows(head).is_some() {
                continue;
            }
            let tail = head.header.tail as usize / SECTOR_LEN;
            let back = std::iter::successors(Some(*head), |entry| {
                before.get(entry.first).copied().flatten()
            });
            let mut sequence = Vec::new();
            for entry in back {
                sequence.push(entry);
                if entry.first == tail {
                    break;
                }
            }
            let number = |sequence: &[Entry]| sequence.first().map(|e| e.header.sequence_number);
            let whole = sequence.last().is_some_and(|entry| entry.first == tail);
            if !whole {
                continue;
            }
            match active.as_deref().map(number).cmp(&Some(number(&sequence))) {
                std::cmp::Ordering::Less => active = Some(sequence),
                std::cmp::Ordering::Greater => {}
                std::cmp::Ordering::Equal => {
                    let problem = "is that of another sequence in the log, too".to_owned();
                    return Err(self.malformed(head, "sequence_number", problem));
                }
            }
        }
        active.ok_or_else(|| {
            let problem = "has no whole sequence of entries, and the image was not closed: its last \
                           changes are lost (open it with the tool that wrote it)";
            Error::malformed(VHDX, "log", self.offset, problem)
        })
    }

    /// The file after the writes of a sequence, which begins with the last entry.
    fn apply(
        &self,
        sequence: &[Entry],
        file: &Arc<dyn BlockSource>,
        limits: &Limits,
    ) -> Result<Overlay> {
        let writes = sequence
            .iter()
            .map(|e| u64::from(e.header.descriptor_count));
        let cost = writes.sum::<u64>().saturating_mul(WRITE_COST);
        limits.check_metadata("the writes in the log", cost)?;
        let Some(head) = sequence.first() else {
            return Err(Error::malformed(VHDX, "log", self.offset, "is empty"));
        };
        let (flushed, last) = (
            head.header.flushed_file_offset,
            head.header.last_file_offset,
        );
        let file_size = file.size();
        if file_size < flushed {
            let problem =
                format!("is {flushed}, and the file ends at {file_size}: it was cut short");
            return Err(self.malformed(head, "flushed_file_offset", problem));
        }
        if i64::try_from(last).is_err() {
            let problem = format!("is {last}, more than a file can have");
            return Err(self.malformed(head, "last_file_offset", problem));
        }
        let mut changes = Changes::default();
        changes.grow(last);
        for entry in sequence.iter().rev() {
            let mut data = entry.first + descriptor_sectors(entry);
            for descriptor in self.descriptors(entry) {
                self.check_place(entry, &descriptor)?;
                let start = descriptor.file_offset;
                if descriptor.signature == ZERO {
                    let end = start.saturating_add(descriptor.len());
                    changes.zero(Rank::Data, start, end);
                    continue;
                }
                let (leading, trailing) = (descriptor.leading_bytes, descriptor.trailing_bytes);
                let middle = self
                    .sector(data)
                    .get(leading.len()..SECTOR_LEN - trailing.len());
                let parts = [&leading[..], middle.unwrap_or_default(), &trailing];
                changes.write(Rank::Data, start, parts.concat());
                data += 1;
            }
        }
        Ok(Overlay::new(Arc::clone(file), changes))
    }

    /// Fails if a write is to where no log may write: the file type identifier, the headers, the log.
    fn check_place(&self, entry: &Entry, descriptor: &Descriptor) -> Result<()> {
        let (start, len) = (descriptor.file_offset, descriptor.len());
        let end = start
            .checked_add(len)
            .filter(|end| i64::try_from(*end).is_ok());
        let log_end = self.offset + self.bytes.len() as u64;
        let [region_tables, _] = REGION_TABLES;
        let problem = match end {
            None => "reaches past what a file can have",
            Some(_) if len > 0 && start < region_tables => "is in the headers",
            Some(end) if start < log_end && end > self.offset => "is in the log itself",
            Some(_) => return Ok(()),
        };
        let problem = format!("has a write of {len} bytes at byte {start}, which {problem}");
        Err(self.malformed(entry, "descriptor_count", problem))
    }
}

/// Number of sectors of the header and the descriptors of an entry.
fn descriptor_sectors(entry: &Entry) -> usize {
    let descriptors = u64::from(entry.header.descriptor_count);
    let bytes = LogEntryHeader::LEN as u64 + descriptors * Descriptor::LEN as u64;
    usize::try_from(bytes.div_ceil(SECTOR)).unwrap_or(usize::MAX)
}

impl Descriptor {
    /// Bytes of the write.
    fn len(&self) -> u64 {
        match self.signature {
            ZERO => u64::from_le_bytes(self.leading_bytes),
            _ => SECTOR,
        }
    }
}
