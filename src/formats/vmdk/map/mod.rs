//! Where a guest range lives in a sparse extent: the walk through grain directory and grain table.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::codec::{UnpackError, ZlibUnpacker};
use crate::error::{Error, Result};
use crate::extent::ExtentKind;
use crate::image::Request;
use crate::limits::Limits;
use crate::map::{BlockMap, Claims, Run, Span, TableCache, Unread};
use crate::packed::Codec;
use crate::source::BlockSource;

use super::VMDK;
use super::alias::{Regions, Seen};
use super::header::{GRAIN_MARKER_LEN, Marker, SECTOR};

mod copies;

/// What a grain table entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grain {
    /// Not in this extent: the parent's, or zeros.
    Unallocated,
    /// Zeros.
    Zero,
    /// At this byte of the file.
    At(u64),
}

/// What tells one kind of sparse extent from another: how its tables are found and read.
pub(super) trait Tables: std::fmt::Debug + Send + Sync {
    /// Bytes of an entry of a grain table.
    fn entry_len(&self) -> usize;
    /// Where the grain table number `index` is in the file, if there is one.
    fn table(&self, index: u64) -> Result<Option<u64>>;
    /// Where a copy of that table is, for when it is damaged.
    fn second_table(&self, _index: u64) -> Option<u64> {
        None
    }
    /// Where all grain tables are that the directory tells of.
    fn all(&self) -> Vec<u64> {
        Vec::new()
    }
    /// What an entry of a grain table says.
    fn entry(&self, raw: &[u8]) -> Result<Grain>;
}

/// How the grains of an extent are stored.
#[derive(Debug)]
pub(super) enum Storage {
    /// As they are.
    Plain,
    /// Each as a zlib stream, after a marker where there are any.
    Packed {
        markers: bool,
        unpacker: ZlibUnpacker,
    },
}

/// The tables of one sparse extent.
#[derive(Debug)]
pub(super) struct GrainMap<T> {
    pub(super) file: Arc<dyn BlockSource>,
    pub(super) tables: T,
    pub(super) storage: Storage,
    /// Bytes of a grain.
    pub(super) grain: u64,
    /// Entries of a grain table.
    pub(super) entries: u64,
    /// Bytes of the guest that the extent holds.
    pub(super) size: u64,
    pub(super) regions: Regions,
    /// Where the first grain can be, in bytes: before that is metadata.
    pub(super) first_grain: u64,
    /// Whether a marker comes before each table.
    pub(super) marked_tables: bool,
    /// Whether a table is compared with its copy.
    pub(super) compares: bool,
    pub(super) seen: Seen,
    pub(super) cache: TableCache,
    /// What is kept if what can be is to be salvaged.
    pub(super) salvage: Option<Salvaging>,
}

/// What it takes to tell of each grain alone whether it can be had, and not of a table.
#[derive(Debug)]
pub(super) struct Salvaging {
    limits: Limits,
    /// Units of the file that several entries refer to, once that was asked for.
    contested: OnceLock<Claims>,
    /// Entries that can be read in no copy of their table, by where they are in the first.
    unread: Unread,
}

impl Salvaging {
    /// What is kept, if the request asks for it.
    pub(super) fn asked_by(request: &Request<'_>) -> Option<Self> {
        request.salvages.then(|| Salvaging {
            limits: request.limits.clone(),
            contested: OnceLock::new(),
            unread: Unread::default(),
        })
    }
}

impl<T: Tables> GrainMap<T> {
    /// Guest bytes for which one grain table answers.
    fn table_span(&self) -> u64 {
        self.entries * self.grain
    }

    /// The grain table number `index`, checked, if there is one.
    fn load(&self, index: u64) -> Result<Option<Arc<Vec<u8>>>> {
        let second = || self.tables.second_table(index);
        let host = match self.tables.table(index) {
            Ok(None) => return Ok(None),
            Ok(Some(host)) => host,
            Err(error) if self.salvage.is_some() => second().ok_or(error)?,
            Err(error) => return Err(error),
        };
        let read = || {
            let first = self.read_table(index, host);
            match (first, second()) {
                (Ok(table), Some(second)) if self.compares => {
                    self.compare(index, &table, second).map(|()| table)
                }
                (Err(error @ Error::Malformed { .. }), Some(second)) => self
                    .read_table(index, second)
                    .or_else(|_| self.read_both(index, host, second).ok_or(error)),
                (Err(error), Some(second)) if self.salvage.is_some() => self
                    .read_table(index, second)
                    .or_else(|_| self.read_both(index, host, second).ok_or(error)),
                (Err(error), None) => self.read_both(index, host, host).ok_or(error),
                (result, _) => result,
            }
        };
        self.cache.table(host, read).map(Some)
    }

    /// Where the copy of a table is by which its entries are known.
    fn place_of_table(&self, index: u64) -> Option<u64> {
        match self.tables.table(index) {
            Ok(host) => host,
            Err(_) => self.tables.second_table(index),
        }
    }

    fn is_marked(&self) -> bool {
        matches!(self.storage, Storage::Packed { markers: true, .. })
    }

    /// What an entry says of the grain at `guest`, checked: it has to be in the file, and not in metadata.
    fn decode(&self, raw: &[u8], guest: u64) -> Result<Grain> {
        // Where the metadata ends may be what is damaged.
        let first_grain = match self.salvage {
            Some(_) => 0,
            None => self.first_grain,
        };
        self.decode_in(raw, guest, None, first_grain)
    }

    /// The same for a table at `host` and grains from `first_grain` on.
    fn decode_in(
        &self,
        raw: &[u8],
        guest: u64,
        host: Option<u64>,
        first_grain: u64,
    ) -> Result<Grain> {
        let grain = self.tables.entry(raw)?;
        let Grain::At(at) = grain else {
            return Ok(grain);
        };
        let file_size = self.file.size();
        let len = match self.storage {
            Storage::Plain => self.grain.min(self.size.saturating_sub(guest)),
            // All that is known of it is that it begins there.
            Storage::Packed { .. } => SECTOR.min(self.grain),
        };
        let end = at.saturating_add(len);
        let in_file = match self.storage {
            Storage::Plain => end <= file_size,
            Storage::Packed { .. } => at < file_size,
        };
        let problem = if !in_file {
            format!("refers to byte {at}, and the file ends at {file_size}")
        } else if at < first_grain || self.regions.overlap(at, end) {
            format!("refers to byte {at}, which is metadata")
        } else {
            return Ok(grain);
        };
        let problem = format!("{problem} (guest offset {guest})");
        Err(Error::malformed(VMDK, "grain table", host, problem))
    }

    /// The entry for the grain at `guest` of its table.
    fn grain_in(&self, table: &[u8], guest: u64) -> Result<Grain> {
        let number = guest % self.table_span() / self.grain;
        let len = self.tables.entry_len();
        let at = usize::try_from(number)
            .unwrap_or(usize::MAX)
            .saturating_mul(len);
        let raw = table.get(at..).and_then(|rest| rest.get(..len));
        match (raw, &self.salvage) {
            (None, _) => Ok(Grain::Unallocated),
            (Some(raw), None) => self.tables.entry(raw),
            (Some(raw), Some(salvage)) => {
                if let Some(host) = self.place_of_table(guest / self.table_span()) {
                    let place = host.saturating_add(at as u64);
                    let unread = &salvage.unread;
                    unread.check(VMDK, "grain table", place, len as u64)?;
                }
                let grain = self.decode(raw, guest - guest % self.grain)?;
                match grain {
                    Grain::At(at) if self.is_contested(salvage, at)? => {
                        let problem = format!(
                            "refers to byte {at}, and so does another entry (guest offset {guest})"
                        );
                        Err(Error::malformed(VMDK, "grain table", None, problem))
                    }
                    grain => Ok(grain),
                }
            }
        }
    }

    /// Whether several entries of the tables refer to the grain at byte `at` of the file. All tables are read
    /// for the first answer.
    fn is_contested(&self, salvage: &Salvaging, at: u64) -> Result<bool> {
        if self.is_marked() {
            return Ok(false);
        }
        let unit = match self.storage {
            Storage::Plain => self.grain,
            Storage::Packed { .. } => SECTOR,
        };
        if let Some(contested) = salvage.contested.get() {
            return Ok(contested.has(at / unit));
        }
        let (mut grains, mut contested) = (Claims::default(), Claims::default());
        for index in 0..self.size.div_ceil(self.table_span()) {
            let Ok(Some(table)) = self.load(index) else {
                continue;
            };
            let guests = (index * self.table_span()..self.size)
                .step_by(usize::try_from(self.grain).unwrap_or(usize::MAX));
            for (raw, guest) in table.chunks_exact(self.tables.entry_len()).zip(guests) {
                let Ok(Grain::At(at)) = self.decode(raw, guest) else {
                    continue;
                };
                if !grains.claim(at / unit, &salvage.limits)? {
                    contested.claim(at / unit, &salvage.limits)?;
                }
            }
        }
        let contested = salvage.contested.get_or_init(|| contested);
        Ok(contested.has(at / unit))
    }

    /// The most bytes of the file that the packed grain at `guest` can take up: up to the next one, if
    /// that comes next.
    fn packed_len(&self, table: &[u8], guest: u64, host: u64) -> u64 {
        let mut next = guest - guest % self.grain + self.grain;
        let end = (guest / self.table_span() + 1) * self.table_span();
        // The longest that zlib gets what it cannot shorten, and its marker.
        let most = 2 * self.grain + SECTOR;
        while next < end.min(self.size) {
            match self.grain_in(table, next) {
                Ok(Grain::At(after)) if after > host => return most.min(after - host),
                Ok(Grain::At(_)) => break,
                // What is wrong with a later entry is told when it is its turn.
                Ok(_) | Err(_) => next += self.grain,
            }
        }
        most
    }

    /// How far the table that answers for `guest` goes, from there.
    fn left_in_table(&self, guest: u64) -> u64 {
        self.table_span() - guest % self.table_span()
    }

    fn unpack_grain(
        &self,
        unpacker: &ZlibUnpacker,
        packed: &[u8],
        guest: u64,
        host: u64,
        unit: &mut [u8],
    ) -> Result<()> {
        let about = |problem: String| {
            let problem = format!("{problem} (guest offset {guest})");
            malformed("compressed grain", host, problem)
        };
        let made = unpacker.unpack(packed, unit).map_err(|error| match error {
            UnpackError::Damaged(problem) => about(problem.into_owned()),
            UnpackError::NotBuilt(feature) => Error::Unsupported {
                format: VMDK,
                feature: "reading compressed grains".to_owned(),
                hint: match feature {
                    "zlib" => "build with the feature zlib",
                    _ => "",
                },
            },
        })?;
        // Writers pack of the disk's last grain only what there is.
        let wanted = self.grain.min(self.size.saturating_sub(guest));
        if (made as u64) < wanted {
            return Err(about(format!("holds {made} of {wanted} bytes")));
        }
        unit.get_mut(made..).unwrap_or_default().fill(0);
        Ok(())
    }
}

impl<T: Tables> BlockMap for GrainMap<T> {
    fn unit(&self) -> u64 {
        self.grain
    }

    fn lookup(&self, guest: u64, limit: u64) -> Result<(Run, u64)> {
        let limit = limit.min(self.left_in_table(guest));
        let Some(table) = self.load(guest / self.table_span())? else {
            return Ok((Run::Unallocated, limit));
        };
        let into = guest % self.grain;
        let first = self.grain_in(&table, guest)?;
        let mut len = self.grain - into;
        if let (Grain::At(host), Storage::Packed { .. }) = (first, &self.storage) {
            let max_len = self.packed_len(&table, guest, host);
            return Ok((Run::Packed { host, max_len }, len.min(limit)));
        }
        while len < limit {
            let expected = match first {
                Grain::At(host) => Grain::At(host + into + len),
                other => other,
            };
            if self.grain_in(&table, guest + len).ok() != Some(expected) {
                break;
            }
            len += self.grain;
        }
        let run = match first {
            Grain::At(host) => Run::Stored { host: host + into },
            Grain::Zero => Run::Zero,
            Grain::Unallocated => Run::Unallocated,
        };
        Ok((run, len.min(limit)))
    }

    fn span(&self, guest: u64, limit: u64) -> Result<(Span, u64)> {
        let status = |grain: Grain| match (grain, &self.storage) {
            (Grain::Unallocated, _) => None,
            (Grain::Zero, _) => Some(ExtentKind::Zero),
            (Grain::At(_), Storage::Plain) => Some(ExtentKind::Data),
            (Grain::At(_), Storage::Packed { .. }) => Some(ExtentKind::Compressed),
        };
        let mut first = None;
        let mut len = 0;
        // A table of another status ends the run, and so does the end of one that is there and not
        // empty: the next would have to be read.
        while len < limit {
            let at = guest + len;
            let stop = limit.min(len + self.left_in_table(at));
            let table = match self.load(at / self.table_span()) {
                Err(_) if first.is_some() => break,
                table => table?,
            };
            let Some(table) = table else {
                match first {
                    None | Some(Grain::Unallocated) => first = Some(Grain::Unallocated),
                    Some(_) => break,
                }
                len = stop;
                continue;
            };
            let begin = match first {
                Some(begin) => begin,
                None => *first.insert(self.grain_in(&table, at)?),
            };
            let like_begin = |at| self.grain_in(&table, at).map(status).ok() == Some(status(begin));
            while len < stop && like_begin(guest + len) {
                len += self.grain - (guest + len) % self.grain;
            }
            if len < stop || begin != Grain::Unallocated {
                break;
            }
        }
        let into = guest % self.grain;
        let span = match first.unwrap_or(Grain::Unallocated) {
            Grain::Unallocated => Span::Unallocated,
            Grain::Zero => Span::Recorded(ExtentKind::Zero, None),
            Grain::At(host) => match self.storage {
                // The grains of the run may be anywhere: only where it begins is known.
                Storage::Plain if len <= self.grain - into => {
                    Span::Recorded(ExtentKind::Data, Some(host + into))
                }
                Storage::Plain => Span::Recorded(ExtentKind::Data, None),
                Storage::Packed { .. } => Span::Recorded(ExtentKind::Compressed, None),
            },
        };
        Ok((span, len.min(limit)))
    }

    fn lost_with(&self, guest: u64) -> u64 {
        match self.load(guest / self.table_span()) {
            Ok(_) => self.grain - guest % self.grain,
            Err(_) => self.left_in_table(guest),
        }
    }

    fn tables(&self) -> Vec<(u64, u64)> {
        let len = self.entries * self.tables.entry_len() as u64;
        let tables = self.tables.all().into_iter();
        tables.map(|at| (at, at.saturating_add(len))).collect()
    }

    fn unpack(&self, packed: &[u8], host: u64, unit: &mut [u8]) -> Result<()> {
        self.unpack_at(packed, 0, host, unit)
    }

    fn unpack_at(&self, packed: &[u8], guest: u64, host: u64, unit: &mut [u8]) -> Result<()> {
        let payload = self.payload(packed, guest, host)?;
        let payload = packed.get(payload).unwrap_or_default();
        self.unpack_payload(payload, guest, host, unit)
    }

    fn unpack_payload(&self, payload: &[u8], guest: u64, host: u64, unit: &mut [u8]) -> Result<()> {
        let Storage::Packed { unpacker, .. } = &self.storage else {
            return Err(malformed("grain", host, "is not compressed"));
        };
        self.unpack_grain(unpacker, payload, guest, host, unit)
    }

    fn packing(&self) -> Option<Codec> {
        matches!(self.storage, Storage::Packed { .. }).then_some(Codec::Zlib)
    }

    fn payload(&self, packed: &[u8], guest: u64, host: u64) -> Result<Range<usize>> {
        if !matches!(self.storage, Storage::Packed { markers: true, .. }) {
            return Ok(0..packed.len());
        }
        let marker = Marker::parse(packed, host)?;
        if marker.size == 0 {
            return Err(Marker::malformed(host, "size", "is 0: no grain is here"));
        }
        if marker.val.checked_mul(SECTOR) != Some(guest) {
            let problem = format!(
                "is {}, and the grain of sector {} is expected here",
                marker.val,
                guest / SECTOR
            );
            return Err(Marker::malformed(host, "val", problem));
        }
        let there = packed.len().saturating_sub(GRAIN_MARKER_LEN);
        let size = usize::try_from(marker.size).unwrap_or(usize::MAX);
        if size > there {
            let problem = format!("is {size}, and {there} bytes are there");
            return Err(Marker::malformed(host, "size", problem));
        }
        Ok(GRAIN_MARKER_LEN..GRAIN_MARKER_LEN + size)
    }

    fn past_end(&self, guest: u64, host: u64, file_size: u64) -> Error {
        let problem =
            format!("needs byte {host} for guest offset {guest} of a file of {file_size}");
        malformed("grain", host, problem)
    }
}

/// An error about a structure that starts at byte `at` of the extent file.
pub(super) fn malformed(
    structure: &'static str,
    at: u64,
    problem: impl Into<std::borrow::Cow<'static, str>>,
) -> Error {
    Error::malformed(VMDK, structure, at, problem)
}
