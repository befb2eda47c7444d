//! Streams while they arrive: the marker of each grain gives its place, so that the tables, which come after
//! the grains, need not be there.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::limits::Limits;
use crate::lock::lock;
use crate::map::{self, BlockMap, Packing, Run};
use crate::source::{BlockSource, BlockSourceExt, readable};

use super::header::{MARKER_FOOTER, MARKER_PROGRESS, Marker, SECTOR, SparseExtentHeader};
use super::malformed;
use super::map::{GrainPacking, grain_past_end};
use super::stream::{self, Part};

/// The most grains that are remembered: the data of a segment is read after all of it was
/// claimed.
const MOST_REMEMBERED: usize = 64 << 10;

/// The grains of a stream, as they come.
#[derive(Debug, Clone)]
pub(super) struct Walk(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    file: Arc<dyn BlockSource>,
    packing: GrainPacking,
    progress: Mutex<Progress>,
}

#[derive(Debug)]
struct Progress {
    /// Host offset of the next marker.
    at: u64,
    /// The last grains: guest offset, host offset and length.
    grains: VecDeque<(u64, u64, u64)>,
    /// Guest offset of the first grain that is remembered, if some are not.
    forgotten: u64,
    /// The tables that went by.
    tables: BTreeMap<u64, Vec<u8>>,
    /// Bytes of memory that these may take yet.
    room: u64,
    footer: Option<u64>,
    /// End of the stream.
    end: Option<u64>,
}

impl Walk {
    /// The grains of the stream in `file` whose header is `header`; the guest sees `size` bytes.
    pub(super) fn new(
        file: Arc<dyn BlockSource>,
        header: &SparseExtentHeader,
        size: u64,
        limits: &Limits,
    ) -> Result<Self> {
        let grain = header.grain_size * SECTOR;
        limits.check_metadata("a compressed grain", grain)?;
        let packing = GrainPacking {
            markers: true,
            grain,
            size,
            unpacker: Default::default(),
        };
        let progress = Progress {
            at: header.over_head.max(1).saturating_mul(SECTOR),
            grains: VecDeque::new(),
            forgotten: 0,
            tables: BTreeMap::new(),
            room: limits.stream_bytes,
            footer: None,
            end: None,
        };
        Ok(Walk(Arc::new(Shared {
            file,
            packing,
            progress: Mutex::new(progress),
        })))
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        lock(&self.0.progress)
    }

    /// The whole file, with the tables at hand that went by.
    pub(super) fn arrived(&self, file: Arc<dyn BlockSource>) -> Result<Arc<dyn BlockSource>> {
        let mut progress = self.progress();
        while progress.end.is_none() {
            self.0.step(&mut progress)?;
        }
        let mut size = file.size();
        match (stream::at_end(&file)?, progress.footer) {
            (Some(at), Some(found)) if at == found => {}
            // Bytes follow the stream.
            (None, Some(_)) => size = progress.end.unwrap_or(size),
            _ => {
                let problem = "is not the one at the end of the file";
                return Err(malformed("footer", progress.footer.unwrap_or(0), problem));
            }
        }
        let tables = std::mem::take(&mut progress.tables);
        let held = Held { file, size, tables };
        Ok(Arc::new(held))
    }
}

impl Shared {
    /// Goes on by one marker.
    fn step(&self, progress: &mut Progress) -> Result<()> {
        let at = progress.at;
        let (part, next) = stream::part_at(&self.file, at)?;
        match part {
            Part::End if progress.footer.is_none() => return Err(stream::missing(at)),
            Part::End => progress.end = Some(next),
            Part::Metadata {
                kind,
                start,
                sectors,
            } => {
                if kind == MARKER_FOOTER {
                    progress.footer = Some(start);
                }
                if kind != MARKER_PROGRESS {
                    self.keep(progress, start, sectors)?;
                }
            }
            Part::Grain { sector, len } => self.remember(progress, sector, at, len)?,
        }
        progress.at = next;
        Ok(())
    }

    /// Keeps a table that goes by.
    fn keep(&self, progress: &mut Progress, start: u64, sectors: u64) -> Result<()> {
        let len = sectors.saturating_mul(SECTOR);
        let left = progress.room.checked_sub(len);
        progress.room = left.ok_or(Error::LimitExceeded {
            limit: "stream_bytes",
            what: "what is kept of the tables of an image in a stream",
            value: len,
            maximum: progress.room,
        })?;
        let mut table = vec![0; usize::try_from(len).unwrap_or(0)];
        self.file.read_exact_at(&mut table, start)?;
        progress.tables.insert(start, table);
        Ok(())
    }

    /// Notes a grain.
    fn remember(&self, progress: &mut Progress, sector: u64, at: u64, len: u64) -> Result<()> {
        let grain = self.packing.grain;
        let guest = sector.checked_mul(SECTOR);
        let guest = guest.filter(|guest| guest % grain == 0 && *guest < self.packing.size);
        let Some(guest) = guest else {
            let problem = format!("is {sector}, where no grain of the disk begins");
            return Err(Marker::malformed(at, "val", problem));
        };
        if len > 2 * grain + SECTOR {
            let problem = format!("has {len} bytes, more than a grain can need");
            return Err(malformed("compressed grain", at, problem));
        }
        let next = progress
            .grains
            .back()
            .map_or(0, |(last, _, _)| last + grain);
        if guest < next.max(progress.forgotten) {
            return Err(Error::OutOfOrder {
                offset: at,
                position: at + len,
            });
        }
        if progress.grains.len() >= MOST_REMEMBERED {
            if let Some((old, _, _)) = progress.grains.pop_front() {
                progress.forgotten = old + grain;
            }
        }
        progress.grains.push_back((guest, at, len));
        Ok(())
    }

    /// The first grain that ends behind `guest`.
    fn grain_from(&self, progress: &mut Progress, guest: u64) -> Result<Option<(u64, u64, u64)>> {
        if guest < progress.forgotten {
            return Err(Error::OutOfOrder {
                offset: 0,
                position: progress.at,
            });
        }
        loop {
            let after = progress
                .grains
                .partition_point(|(start, _, _)| start + self.packing.grain <= guest);
            match progress.grains.get(after) {
                Some(found) => return Ok(Some(*found)),
                None if progress.end.is_some() => return Ok(None),
                None => self.step(progress)?,
            }
        }
    }
}

impl BlockMap for Walk {
    fn unit(&self) -> u64 {
        self.0.packing.grain
    }

    fn step(&self, guest: u64, _: &mut map::Held) -> Result<(Run, u64)> {
        let found = self.0.grain_from(&mut self.progress(), guest)?;
        Ok(match found {
            None => (Run::Unallocated, u64::MAX - guest),
            Some((start, _, _)) if start > guest => (Run::Unallocated, start - guest),
            Some((start, host, max_len)) => {
                let left = start + self.0.packing.grain - guest;
                (Run::Packed { host, max_len }, left)
            }
        })
    }

    fn packing(&self) -> Option<&dyn Packing> {
        Some(&self.0.packing)
    }

    fn past_end(&self, guest: u64, host: u64, file_size: u64) -> Error {
        grain_past_end(guest, host, file_size)
    }
}

/// A stream that went by, with its tables at hand, up to its own end.
#[derive(Debug)]
struct Held {
    file: Arc<dyn BlockSource>,
    size: u64,
    tables: BTreeMap<u64, Vec<u8>>,
}

impl BlockSource for Held {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let want = readable(buf.len(), offset, self.size);
        let buf = buf.get_mut(..want).unwrap_or_default();
        if let Some((start, table)) = self.tables.range(..=offset).next_back() {
            let skip = usize::try_from(offset - start).unwrap_or(usize::MAX);
            let held = table.get(skip..).and_then(|rest| rest.get(..want));
            if let Some(held) = held {
                buf.copy_from_slice(held);
                return Ok(want);
            }
        }
        self.file.read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let limit = crate::source::check_extent(offset, limit, self.size)?;
        self.file.extent_at(offset, limit)
    }
}
