//! The journal of a conversion that can be resumed.
//!
//! The place of a run follows from the runs before it, so the journal holds the steps of each segment that is on
//! stable storage, and nothing else. A resumed conversion asks a new writer to place them again, without writing
//! them, and continues behind them. Bytes that were written after the last entry are written again, to the same
//! places.
//!
//! ```text
//!   header   magic, identity of the conversion                  ┐ each: length u32, bytes, CRC-32C u32,
//!   entry    number, position, compressed units, parts, steps   …   ┘ little-endian; a torn one is the end
//! ```

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::convert::segment::{Segment, Step, Work};
use crate::error::{Error, Result};
use crate::image::Part;
use crate::name::quoted_path;
use crate::ondisk::le;
use crate::packed::PackedUnit;
use crate::storage::{try_lock, without_following};

const MAGIC: &[u8] = b"blockform conversion journal 1\n";
/// The longest entry that is read: a segment has some thousand pieces at most.
const MAX_ENTRY: usize = 1 << 20;
/// Stored bytes after which the result is synced and the journal is continued.
pub(super) const CHECKPOINT: u64 = 256 << 20;
const CHECKPOINT_TIME: Duration = Duration::from_secs(10);

/// A journal that is being written.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    /// Entries since the last checkpoint, and the bytes of the guest that they store.
    entries: Vec<u8>,
    stored: u64,
    position: u64,
    since: Instant,
    every: u64,
}

impl Journal {
    /// Opens the journal at `path`. Returns true if it was begun; it has to belong to the conversion that
    /// `identity` describes then.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if it belongs to another one, or another process uses it; [`Error::Io`].
    pub(super) fn open(path: &Path, identity: &[u8], every: u64) -> Result<(Self, bool)> {
        let failed = |e| Error::io_path("open the journal", path, e);
        let mut options = File::options();
        let mut file = without_following(&mut options)
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            let name = quoted_path(path);
            return Err(Error::invalid(format!("{name} is not a journal")));
        }
        lock(&file, path)?;
        let header = read_record(&mut file).map_err(failed)?;
        if let Some(header) = &header {
            if header.strip_prefix(MAGIC) != Some(identity) {
                return Err(Error::invalid(format!(
                    "the journal {} is of another conversion; remove it and the unfinished file to \
                     start anew",
                    quoted_path(path)
                )));
            }
        }
        let journal = Journal {
            file,
            path: path.to_owned(),
            entries: Vec::new(),
            stored: 0,
            position: 0,
            since: Instant::now(),
            every: every.max(1),
        };
        Ok((journal, header.is_some()))
    }

    /// Calls `again` with each segment of a journal that was just opened, and cuts off an entry that is not whole.
    /// Returns the number of the next segment, and its place on the disk.
    pub(super) fn replay(
        &mut self,
        again: &mut dyn FnMut(&Segment, &mut Work) -> Result<()>,
    ) -> Result<(u64, u64)> {
        let path = self.path.clone();
        let failed = |e| Error::io_path("read the journal", &path, e);
        let mut end = self.file.stream_position().map_err(failed)?;
        let mut reader = std::io::BufReader::new(&mut self.file);
        let (mut segment, mut work) = (Segment::new(0), Work::default());
        let mut next = (0, 0);
        while let Some(record) = read_record(&mut reader).map_err(failed)? {
            segment.clear();
            work.clear();
            if decode(&record, next, &mut segment, &mut work).is_none() {
                break;
            }
            again(&segment, &mut work)?;
            next = (segment.number + 1, segment.done);
            end += record.len() as u64 + 8;
        }
        self.file.set_len(end).map_err(failed)?;
        self.file.seek(SeekFrom::Start(end)).map_err(failed)?;
        self.position = next.1;
        Ok(next)
    }

    /// Begins the journal, once everything that comes before the first segment is on stable storage.
    pub(super) fn begin(&mut self, identity: &[u8]) -> Result<()> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .map_err(|e| Error::io_path("write the journal", &self.path, e))?;
        let mut record = Vec::new();
        push_record(&mut record, &[MAGIC, identity].concat());
        self.entries = record;
        self.flush()
    }

    /// Notes that a segment is stored. Returns true if it is time to bring it to stable storage and to
    /// [`flush`](Self::flush).
    pub(super) fn note(&mut self, segment: &Segment, work: &Work) -> bool {
        push_record(&mut self.entries, &encode(segment, work));
        self.stored += segment.done.saturating_sub(self.position);
        self.position = segment.done;
        self.stored >= self.every || self.since.elapsed() >= CHECKPOINT_TIME
    }

    /// Writes the notes about segments, all of which are on stable storage.
    pub(super) fn flush(&mut self) -> Result<()> {
        let entries = std::mem::take(&mut self.entries);
        self.stored = 0;
        self.since = Instant::now();
        self.file
            .write_all(&entries)
            .and_then(|()| self.file.sync_data())
            .map_err(|e| Error::io_path("write the journal", &self.path, e))
    }

    /// Removes the journal: the conversion is over.
    pub(super) fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path)
            .map_err(|e| Error::io_path("remove the journal", &self.path, e))
    }
}

/// Keeps other processes from resuming the same conversion at the same time.
fn lock(file: &File, path: &Path) -> Result<()> {
    match try_lock(file) {
        Ok(true) => Ok(()),
        Ok(false) => {
            let name = quoted_path(path);
            Err(Error::invalid(format!(
                "another process is using the journal {name}"
            )))
        }
        Err(e) => Err(Error::io_path("lock the journal", path, e)),
    }
}

fn push_record(out: &mut Vec<u8>, record: &[u8]) {
    out.extend_from_slice(
        &u32::try_from(record.len())
            .unwrap_or(u32::MAX)
            .to_le_bytes(),
    );
    out.extend_from_slice(record);
    out.extend_from_slice(&crc32fast::hash(record).to_le_bytes());
}

/// The next record, if it is there whole.
fn read_record(reader: &mut impl Read) -> std::io::Result<Option<Vec<u8>>> {
    let mut exactly = |len: usize| -> std::io::Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; len];
        match reader.read_exact(&mut bytes) {
            Ok(()) => Ok(Some(bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            Err(e) => Err(e),
        }
    };
    let number = |bytes: Vec<u8>| le::<u32>(&bytes, 0);
    let Some(len) = exactly(4)?.and_then(number) else {
        return Ok(None);
    };
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if len > MAX_ENTRY {
        return Ok(None);
    }
    let Some(record) = exactly(len)? else {
        return Ok(None);
    };
    let sum = exactly(4)?.and_then(number);
    Ok(Some(record).filter(|record| sum == Some(crc32fast::hash(record))))
}

fn encode(segment: &Segment, work: &Work) -> Vec<u8> {
    let mut out = Vec::new();
    let mut put = |number: u64| put_varint(&mut out, number);
    let copied = work
        .steps
        .iter()
        .any(|step| matches!(step, Step::Copied { .. }));
    let units = match copied {
        true => segment.units.as_slice(),
        false => &[],
    };
    put(segment.number);
    put(segment.done);
    put(units.len() as u64);
    for unit in units {
        let numbers = [unit.guest, unit.host, unit.at as u64, unit.len as u64];
        numbers.into_iter().for_each(&mut put);
    }
    put(work.parts.len() as u64);
    for part in &work.parts {
        put(part.guest);
        put(part.len.into());
    }
    put(work.steps.len() as u64);
    for step in &work.steps {
        let numbers = match *step {
            Step::Verbatim { guest, len, at } => [0, guest, len, at as u64],
            Step::Packed { first, count, at } => [1, first as u64, count as u64, at as u64],
            Step::Copied { first, count } => [2, first as u64, count as u64, 0],
            Step::Zero { guest, len } => [3, guest, len, 0],
        };
        numbers.into_iter().for_each(&mut put);
    }
    out
}

/// Decodes the record of the segment with that number, from that position on.
fn decode(
    record: &[u8],
    (number, position): (u64, u64),
    segment: &mut Segment,
    work: &mut Work,
) -> Option<()> {
    let mut rest = record;
    let mut next = || take_varint(&mut rest);
    segment.number = next()?;
    segment.done = next()?;
    if segment.number != number || segment.done < position {
        return None;
    }
    for _ in 0..next()? {
        segment.units.push(PackedUnit {
            guest: next()?,
            host: next()?,
            at: usize::try_from(next()?).ok()?,
            len: usize::try_from(next()?).ok()?,
        });
    }
    for _ in 0..next()? {
        work.parts.push(Part {
            guest: next()?,
            len: u32::try_from(next()?).ok()?,
        });
    }
    for _ in 0..next()? {
        let [kind, a, b, c] = [next()?, next()?, next()?, next()?];
        let small = |number: u64| usize::try_from(number).ok();
        work.steps.push(match kind {
            0 => Step::Verbatim {
                guest: a,
                len: b,
                at: small(c)?,
            },
            1 => Step::Packed {
                first: small(a)?,
                count: small(b)?,
                at: small(c)?,
            },
            2 => Step::Copied {
                first: small(a)?,
                count: small(b)?,
            },
            3 => Step::Zero { guest: a, len: b },
            _ => return None,
        });
    }
    Some(())
}

/// LEB128.
fn put_varint(out: &mut Vec<u8>, number: u64) {
    let mut number = number;
    while number > 0x7f {
        out.push(u8::try_from(number & 0x7f).unwrap_or(0) | 0x80);
        number >>= 7;
    }
    out.push(u8::try_from(number).unwrap_or(0));
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64) -> (Segment, Work) {
        let mut segment = Segment::new(0);
        segment.number = number;
        segment.done = (number + 1) << 20;
        segment.units.push(PackedUnit {
            guest: 1 << 40,
            host: 77,
            at: 3,
            len: 900,
        });
        let mut work = Work::default();
        work.parts.push(Part { guest: 5, len: 6 });
        work.steps = vec![
            Step::Verbatim {
                guest: 0,
                len: 4096,
                at: 0,
            },
            Step::Packed {
                first: 0,
                count: 1,
                at: 9,
            },
            Step::Copied { first: 0, count: 1 },
            Step::Zero {
                guest: 1 << 41,
                len: u64::MAX,
            },
        ];
        (segment, work)
    }

    #[test]
    fn what_was_noted_comes_back_up_to_where_it_was_torn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (mut journal, begun) = Journal::open(&path, b"this", 1 << 30).unwrap();
        assert!(!begun);
        journal.begin(b"this").unwrap();
        let mut ends = vec![std::fs::metadata(&path).unwrap().len()];
        for number in 0..3 {
            let (segment, work) = entry(number);
            assert!(!journal.note(&segment, &work));
            journal.flush().unwrap();
            ends.push(std::fs::metadata(&path).unwrap().len());
        }
        if cfg!(unix) {
            assert!(Journal::open(&path, b"this", 1).is_err(), "it is in use");
        }
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        for len in 0..=whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            let (mut journal, begun) = Journal::open(&path, b"this", 1).unwrap();
            let count = ends.iter().filter(|end| **end <= len as u64).count();
            assert_eq!(begun, count > 0, "{len}");
            if !begun {
                continue;
            }
            let mut number = 0;
            let mut again = |got: &Segment, got_work: &mut Work| {
                let (segment, work) = entry(number);
                assert_eq!((got.number, got.done), (segment.number, segment.done));
                assert_eq!(got.units, segment.units);
                assert_eq!(got_work.parts, work.parts);
                assert_eq!(got_work.steps, work.steps);
                number += 1;
                Ok(())
            };
            let next = journal.replay(&mut again).unwrap();
            assert_eq!(next, (number, number << 20));
            assert_eq!(number, count as u64 - 1, "{len}");
            assert_eq!(std::fs::metadata(&path).unwrap().len(), ends[count - 1]);
        }
        std::fs::write(&path, &whole).unwrap();
        assert!(matches!(
            Journal::open(&path, b"other", 1),
            Err(Error::InvalidInput(_))
        ));
    }
}
