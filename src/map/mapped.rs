//! A source behind a table.

use std::sync::{Arc, Mutex};

use crate::error::{Error, Result};
use crate::extent::{Extent, ExtentKind};
use crate::image::{Disk, Parent};
use crate::lock::lock;
use crate::map::{BlockMap, Held, Packing, Run, walk};
use crate::packed::{Codec, PackedSource, PackedUnit};
use crate::reference::Reference;
use crate::source::{
    BlockSource, BlockSourceExt, FileIdentity, Place, Salvageable, Stored, check_extent,
    read_padded, readable,
};

/// The content of ranges that a table does not record.
#[derive(Debug, Clone)]
pub(crate) enum Below {
    /// Zeros.
    Nothing,
    /// Another image; zeros past its end.
    Image(Arc<dyn BlockSource>),
    /// An image that was left closed.
    Detached(Box<Reference>),
}

impl From<&Parent> for Below {
    fn from(parent: &Parent) -> Self {
        match (&parent.image, &parent.reference) {
            (Some(image), _) => Below::Image(Arc::new(Arc::clone(image))),
            (None, Some(reference)) => Below::Detached(Box::new(reference.clone())),
            (None, None) => Below::Nothing,
        }
    }
}

/// A source whose guest bytes a [`BlockMap`] finds in a file.
#[derive(Debug)]
pub(crate) struct Mapped<M> {
    map: M,
    /// The file that host offsets are in.
    host: Arc<dyn BlockSource>,
    below: Below,
    size: u64,
    /// The unit that was unpacked last, so that reading one in small pieces unpacks it once.
    last_unit: Mutex<Option<(u64, Arc<[u8]>)>>,
}

/// Compressed units that lie close together in the file are fetched in one read of at most this many
/// bytes: some dozen units, and still within the caches of a processor.
const MAX_FETCH: u64 = 1 << 20;

impl<M: BlockMap> Mapped<M> {
    pub(crate) fn new(map: M, host: Arc<dyn BlockSource>, below: Below, size: u64) -> Self {
        Mapped {
            map,
            host,
            below,
            size,
            last_unit: Mutex::new(None),
        }
    }

    /// Reads what is below a range that is not recorded here.
    fn read_below(&self, buf: &mut [u8], guest: u64) -> Result<()> {
        match &self.below {
            Below::Nothing => buf.fill(0),
            Below::Detached(reference) => {
                return Err(Error::Detached {
                    reference: reference.clone(),
                });
            }
            Below::Image(image) => {
                // Past its end a shorter image reads as zero.
                read_padded(image, buf, guest)?;
            }
        }
        Ok(())
    }

    fn read_stored(&self, buf: &mut [u8], guest: u64, host: u64) -> Result<()> {
        let n = read_padded(&self.host, buf, host)?;
        let missing = buf.len() - n;
        if missing == 0 {
            return Ok(());
        }
        // A file may end inside of its last unit, which old tools did not write whole. A unit that
        // begins past the end is lost.
        let (file_size, unit) = (self.host.size(), self.map.unit());
        let last_needed = host + n as u64 + missing as u64 - 1;
        if file_size == 0 || (file_size - 1) / unit != last_needed / unit {
            return Err(self
                .map
                .past_end(guest + n as u64, host + n as u64, file_size));
        }
        Ok(())
    }

    /// Reads a range that begins in a compressed unit: as many units as lie close together in the file
    /// and are asked for whole, or a part of one. Returns how many bytes that was.
    fn read_packed(&self, buf: &mut [u8], guest: u64, first: PackedPlace) -> Result<usize> {
        let unit = usize::try_from(self.map.unit()).unwrap_or(usize::MAX);
        let into = guest % self.map.unit();
        if into != 0 || buf.len() < unit {
            return self.read_part(buf, guest, first);
        }
        let mut packed = Vec::new();
        let units = self.fetch(guest, buf.len() / unit, first, &mut packed)?;
        for (packed_unit, out) in units.iter().zip(buf.chunks_exact_mut(unit)) {
            self.unpack_unit(packed_unit, &packed, out)?;
        }
        Ok(units.len() * unit)
    }

    /// Reads a part of a compressed unit, by way of the whole.
    fn read_part(&self, buf: &mut [u8], guest: u64, at: PackedPlace) -> Result<usize> {
        let unit = self.map.unit();
        let start = guest - guest % unit;
        let whole = self.unpacked(start, at)?;
        let into = usize::try_from(guest - start).unwrap_or(usize::MAX);
        let from = whole.get(into..).unwrap_or_default();
        let n = from.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..n), from.get(..n)) {
            to.copy_from_slice(from);
        }
        Ok(n)
    }

    fn unpacked(&self, start: u64, at: PackedPlace) -> Result<Arc<[u8]>> {
        if let Some((_, whole)) = lock(&self.last_unit)
            .as_ref()
            .filter(|(cached, _)| *cached == start)
        {
            return Ok(Arc::clone(whole));
        }
        let mut packed = Vec::new();
        let mut whole = vec![0; usize::try_from(self.map.unit()).unwrap_or(usize::MAX)];
        for unit in self.fetch(start, 1, at, &mut packed)? {
            self.unpack_unit(&unit, &packed, &mut whole)?;
        }
        let whole: Arc<[u8]> = whole.into();
        *lock(&self.last_unit) = Some((start, Arc::clone(&whole)));
        Ok(whole)
    }

    fn packing(&self) -> Result<&dyn Packing> {
        let packing = self.map.packing();
        packing.ok_or_else(|| Error::invalid("the format has no compressed units"))
    }

    /// Decompresses a unit that was fetched into `buf`.
    fn unpack_unit(&self, unit: &PackedUnit, buf: &[u8], out: &mut [u8]) -> Result<()> {
        let packed = buf.get(unit.at..).and_then(|rest| rest.get(..unit.len));
        PackedSource::unpack(self, unit, packed.unwrap_or_default(), out)
    }

    /// The packed units from `guest` on, up to `count`, whose bytes follow `first` closely.
    fn gather(&self, guest: u64, count: usize, first: PackedPlace) -> Result<Vec<PackedPlace>> {
        let unit = self.map.unit();
        let mut units = vec![first];
        let mut end = first.end();
        let mut held = Held::default();
        while units.len() < count {
            let next = guest + unit * units.len() as u64;
            let (run, _) = self.map.step(next, &mut held)?;
            let Run::Packed { host, max_len } = run else {
                break;
            };
            let next = PackedPlace { host, max_len };
            // A unit's last sector is often the next one's first.
            let follows = host >= first.host && host <= end.saturating_add(unit);
            if !follows || next.end().saturating_sub(first.host) > MAX_FETCH {
                break;
            }
            end = end.max(next.end());
            units.push(next);
        }
        Ok(units)
    }

    /// Appends to `buf` the bytes of these units, from the first one's start to the last one's end, or the
    /// file's.
    fn fetch(
        &self,
        guest: u64,
        count: usize,
        first: PackedPlace,
        buf: &mut Vec<u8>,
    ) -> Result<Vec<PackedUnit>> {
        let packing = self.packing()?;
        let places = self.gather(guest, count, first)?;
        let file_size = self.host.size();
        if let Some(place) = places.iter().find(|place| place.host >= file_size) {
            return Err(self.map.past_end(guest, place.host, file_size));
        }
        let end = places.iter().map(PackedPlace::end).max().unwrap_or(0);
        let len = end.min(file_size).saturating_sub(first.host);
        let start = buf.len();
        buf.resize(start + usize::try_from(len).unwrap_or(0), 0);
        let read = buf.get_mut(start..).unwrap_or_default();
        read_padded(&self.host, read, first.host)?;
        let unit = |(place, number): (&PackedPlace, u64)| {
            let guest = guest + number * self.map.unit();
            let into = usize::try_from(place.host - first.host).unwrap_or(usize::MAX);
            let packed = read.get(into..).unwrap_or_default();
            let max_len = usize::try_from(place.max_len).unwrap_or(usize::MAX);
            let packed = packed.get(..max_len).unwrap_or(packed);
            let payload = packing.payload(packed, guest, place.host)?;
            Ok(PackedUnit {
                guest,
                host: place.host + payload.start as u64,
                at: start + into + payload.start,
                len: payload.len(),
            })
        };
        places.iter().zip(0..).map(unit).collect()
    }
}

/// The place of a compressed unit.
#[derive(Debug, Clone, Copy)]
struct PackedPlace {
    host: u64,
    max_len: u64,
}

impl PackedPlace {
    fn end(&self) -> u64 {
        self.host.saturating_add(self.max_len)
    }
}

impl<M: BlockMap> Disk for Mapped<M> {
    fn tables(&self) -> Vec<(u64, u64)> {
        self.map.tables()
    }
}

impl<M: BlockMap> PackedSource for Mapped<M> {
    fn codec(&self) -> Codec {
        // A map without a codec is not handed out as a source of compressed units.
        let codec = self.map.packing().and_then(Packing::codec);
        codec.unwrap_or(Codec::Zlib)
    }

    fn unit(&self) -> u64 {
        self.map.unit()
    }

    fn read_packed(
        &self,
        guest: u64,
        limit: u64,
        buf: &mut Vec<u8>,
        units: &mut Vec<PackedUnit>,
    ) -> Result<usize> {
        let unit = self.map.unit();
        check_extent(guest, limit, self.size)?;
        let count = limit.min(self.size - guest).div_ceil(unit);
        let (run, _) = self.map.step(guest, &mut Held::default())?;
        let (Run::Packed { host, max_len }, 0) = (run, guest % unit) else {
            return Ok(0);
        };
        let first = PackedPlace { host, max_len };
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let fetched = self.fetch(guest, count, first, buf)?;
        units.extend(&fetched);
        Ok(fetched.len())
    }

    fn unpack(&self, unit: &PackedUnit, packed: &[u8], out: &mut [u8]) -> Result<()> {
        self.packing()?.unpack(packed, unit.guest, unit.host, out)
    }

    fn place_of_unit(&self, guest: u64) -> Result<Option<u64>> {
        check_extent(guest, 1, self.size)?;
        Ok(match self.map.step(guest, &mut Held::default())?.0 {
            Run::Packed { host, .. } => Some(host),
            _ => None,
        })
    }
}

impl<M: BlockMap> BlockSource for Mapped<M> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let want = readable(buf.len(), offset, self.size);
        let mut done = 0;
        let mut held = Held::default();
        while let Some(rest) = buf.get_mut(done..want).filter(|rest| !rest.is_empty()) {
            let guest = offset + done as u64;
            let (run, len) = walk::run(&self.map, &mut held, guest, rest.len() as u64, false)?;
            if let Run::Packed { host, max_len } = run {
                done += self.read_packed(rest, guest, PackedPlace { host, max_len })?;
                continue;
            }
            let len = usize::try_from(len).unwrap_or(usize::MAX).min(rest.len());
            let piece = rest.get_mut(..len).unwrap_or_default();
            match run {
                Run::Stored { host } => self.read_stored(piece, guest, host)?,
                Run::Unallocated => self.read_below(piece, guest)?,
                Run::Zero | Run::Packed { .. } => piece.fill(0),
            }
            done += len;
        }
        Ok(done)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let limit = check_extent(offset, limit, self.size)?;
        let (run, mut len) = walk::run(&self.map, &mut Held::default(), offset, limit, true)?;
        let (kind, host_offset) = match (run, &self.below) {
            (Run::Stored { host }, _) => {
                let mut hole = false;
                if self.map.tells_holes() {
                    let stored = self.host.extent_at(host, len)?;
                    hole = stored.kind.reads_as_zero();
                    len = len.min(stored.len);
                }
                match hole {
                    true => (ExtentKind::Zero, None),
                    false => (ExtentKind::Data, Some(host)),
                }
            }
            (Run::Packed { .. }, _) => (ExtentKind::Compressed, None),
            (Run::Zero, _) => (ExtentKind::Zero, None),
            (Run::Unallocated, Below::Nothing) => (ExtentKind::Hole, None),
            (Run::Unallocated, Below::Detached(reference)) => {
                return Err(Error::Detached {
                    reference: reference.clone(),
                });
            }
            (Run::Unallocated, Below::Image(image)) => {
                // The end of a shorter backing file masks whatever its own backing file holds.
                let below = match offset < image.size() {
                    true => image.extent_at(offset, len)?,
                    false => Extent {
                        start: offset,
                        len,
                        kind: ExtentKind::Zero,
                        depth: 0,
                        host_offset: None,
                    },
                };
                return Ok(Extent {
                    depth: below.depth.saturating_add(1),
                    ..below
                });
            }
        };
        Ok(Extent {
            start: offset,
            len,
            kind,
            depth: 0,
            host_offset,
        })
    }

    fn block_size(&self) -> u64 {
        self.map.unit()
    }

    fn packed(&self) -> Option<&dyn PackedSource> {
        let codec = self.map.packing()?.codec();
        codec.map(|_| self as &dyn PackedSource)
    }

    fn stored(&self) -> Option<&dyn Stored> {
        Some(self)
    }

    fn salvage(&self) -> Option<&dyn Salvageable> {
        Some(self)
    }
}

impl<M: BlockMap> Stored for Mapped<M> {
    fn uses_file(&self, file: FileIdentity) -> bool {
        let below = match &self.below {
            Below::Image(image) => image.uses_file(file),
            Below::Nothing | Below::Detached(_) => false,
        };
        below || self.host.uses_file(file)
    }

    fn place_of(&self, offset: u64, limit: u64) -> Option<Place<'_>> {
        let limit = check_extent(offset, limit, self.size).ok()?;
        // An error of the tables is one of reading, too, which returns it.
        let (run, len) = walk::run(&self.map, &mut Held::default(), offset, limit, false).ok()?;
        match (run, &self.below) {
            (Run::Stored { host }, _) => self.host.place_of(host, len.min(limit)),
            (Run::Unallocated, Below::Image(image)) => image.place_of(offset, len.min(limit)),
            _ => None,
        }
    }
}

impl<M: BlockMap> Salvageable for Mapped<M> {
    fn lost_with(&self, offset: u64) -> u64 {
        let left = self.size.saturating_sub(offset).max(1);
        let run = walk::run(&self.map, &mut Held::default(), offset, left, true);
        match (run, &self.below) {
            (Ok((Run::Unallocated, len)), Below::Image(image)) if offset < image.size() => {
                image.lost_with(offset).min(len)
            }
            (Ok((Run::Unallocated, len)), _) => len,
            _ => self.map.lost_with(offset),
        }
    }
}
