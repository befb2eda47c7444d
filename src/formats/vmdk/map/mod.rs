//! The walk through grain directory and grain table of a sparse extent.

use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::image::Request;
use crate::map::{BlockMap, Claim, Claims, Held, Packing, Regions, Run, Table, TableReader};
use crate::source::BlockSource;

use super::alias::Seen;
use super::entry::Grain;
use super::header::SECTOR;
use super::layout::Layout;
use super::{VMDK, malformed};

mod copies;
mod packing;

pub(super) use packing::GrainPacking;

/// The tables of one kind of sparse extent: their places and entries.
pub(super) trait Tables: std::fmt::Debug + Send + Sync {
    /// Bytes of an entry of a grain table.
    fn entry_len(&self) -> usize;
    /// Host offset of the grain table number `index`, if there is one.
    fn table(&self, index: u64) -> Result<Option<u64>>;
    /// Host offset of a copy of that table, to use if the table is damaged.
    fn second_table(&self, _index: u64) -> Option<u64> {
        None
    }
    /// Host offsets of all grain tables that the directory names.
    fn all(&self) -> Vec<u64> {
        Vec::new()
    }
    /// The meaning of an entry of a grain table.
    fn entry(&self, raw: &[u8]) -> Result<Grain>;
}

/// The tables of one sparse extent.
#[derive(Debug)]
pub(super) struct GrainMap<T> {
    pub(super) file: Arc<dyn BlockSource>,
    pub(super) tables: T,
    /// The compression of the grains, if they are compressed.
    pub(super) packing: Option<GrainPacking>,
    /// Bytes of a grain.
    pub(super) grain: u64,
    /// Entries of a grain table.
    pub(super) entries: u64,
    /// Bytes of the guest that the extent holds.
    pub(super) size: u64,
    pub(super) regions: Regions,
    /// The least host offset of a grain: before that is metadata.
    pub(super) first_grain: u64,
    /// Set if a marker comes before each table.
    pub(super) marked_tables: bool,
    /// Set if a table is compared with its copy.
    pub(super) compares: bool,
    pub(super) seen: Seen,
    pub(super) reader: TableReader,
    /// The grains of all tables, once that was asked for, if the extent is salvaged.
    pub(super) all_claims: OnceLock<Claims>,
}

impl<T: Tables> GrainMap<T> {
    /// The map of an extent whose grains are stored as they are, each table once. The guest sees `size` bytes
    /// of it, or all.
    pub(super) fn new(
        file: Arc<dyn BlockSource>,
        tables: T,
        layout: &Layout,
        regions: Regions,
        size: Option<u64>,
        request: &Request<'_>,
    ) -> Self {
        GrainMap {
            seen: Seen::new(layout.grain, file.size(), request.limits),
            file,
            tables,
            packing: None,
            grain: layout.grain,
            entries: layout.entries,
            size: size.unwrap_or(layout.capacity),
            regions,
            first_grain: 0,
            marked_tables: false,
            compares: false,
            reader: TableReader::of(VMDK, request),
            all_claims: OnceLock::new(),
        }
    }

    /// The guest offset of each grain of a table.
    fn guests(&self, index: u64) -> impl Iterator<Item = u64> + use<T> {
        let grain = usize::try_from(self.grain).unwrap_or(usize::MAX);
        (index * self.table_span()..self.size).step_by(grain)
    }

    /// Guest bytes for which one grain table answers.
    fn table_span(&self) -> u64 {
        self.entries * self.grain
    }

    /// The grain table number `index`, checked, if there is one.
    fn load(&self, index: u64) -> Result<Option<Table>> {
        let second = || self.tables.second_table(index);
        let host = match self.tables.table(index) {
            Ok(None) => return Ok(None),
            Ok(Some(host)) => host,
            Err(error) if self.reader.salvages() => second().ok_or(error)?,
            Err(error) => return Err(error),
        };
        let read = || {
            let first = self.read_table(index, host);
            match (first, second()) {
                (Ok(table), Some(second)) if self.compares => {
                    self.compare(index, &table, second).map(|()| table)
                }
                (Err(error), Some(second))
                    if self.reader.salvages() || matches!(error, Error::Malformed { .. }) =>
                {
                    self.read_table(index, second)
                        .or_else(|_| self.read_both(index, host, second).ok_or(error))
                }
                (Err(error), None) => self.read_both(index, host, host).ok_or(error),
                (result, _) => result,
            }
        };
        let entries = self.reader.table(host, read)?;
        let start = index * self.table_span();
        Ok(Some(Table {
            guest: start..start.saturating_add(self.table_span()),
            host,
            entries,
        }))
    }

    /// Host offset of the copy of a table by which its entries are known.
    fn place_of_table(&self, index: u64) -> Option<u64> {
        match self.tables.table(index) {
            Ok(host) => host,
            Err(_) => self.tables.second_table(index),
        }
    }

    fn is_marked(&self) -> bool {
        self.packing.as_ref().is_some_and(|packing| packing.markers)
    }

    /// The meaning of the entry of the grain at `guest`, checked: a grain has to be in the file, and not in metadata.
    fn decode(&self, raw: &[u8], guest: u64) -> Result<Grain> {
        // The end of the metadata may itself be damaged.
        let first_grain = match self.reader.salvages() {
            true => 0,
            false => self.first_grain,
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
        let len = match self.packing {
            None => self.grain.min(self.size.saturating_sub(guest)),
            // All that is known of it is that it begins there.
            Some(_) => SECTOR.min(self.grain),
        };
        let end = at.saturating_add(len);
        let in_file = match self.packing {
            None => end <= file_size,
            Some(_) => at < file_size,
        };
        let problem = if !in_file {
            format!("refers to byte {at}, and the file ends at {file_size}")
        } else if at < first_grain || self.regions.overlapping(at, len).is_some() {
            format!("refers to byte {at}, which is metadata")
        } else {
            return Ok(grain);
        };
        let problem = format!("{problem} (guest offset {guest})");
        Err(Error::malformed(VMDK, "grain table", host, problem))
    }

    /// The entry for the grain at `guest` of its table.
    fn grain_in(&self, table: &Table, guest: u64) -> Result<Grain> {
        let number = (guest - table.guest.start) / self.grain;
        let len = self.tables.entry_len();
        let at = usize::try_from(number)
            .unwrap_or(usize::MAX)
            .saturating_mul(len);
        let raw = table.entries.get(at..).and_then(|rest| rest.get(..len));
        let Some(raw) = raw else {
            return Ok(Grain::Unallocated);
        };
        if !self.reader.salvages() {
            return self.tables.entry(raw);
        }
        if let Some(host) = self.place_of_table(guest / self.table_span()) {
            let place = host.saturating_add(at as u64);
            self.reader.check("grain table", place, len as u64)?;
        }
        match self.decode(raw, guest - guest % self.grain)? {
            Grain::At(at) if self.is_contested(at)? => {
                let problem = format!(
                    "refers to byte {at}, and so does another entry (guest offset {guest})"
                );
                Err(Error::malformed(VMDK, "grain table", None, problem))
            }
            grain => Ok(grain),
        }
    }

    /// Returns `true` if several entries of the tables refer to the grain at byte `at` of the file. The first
    /// answer reads all tables.
    fn is_contested(&self, at: u64) -> Result<bool> {
        if self.is_marked() {
            return Ok(false);
        }
        let unit = match self.packing {
            None => self.grain,
            Some(_) => SECTOR,
        };
        if let Some(claims) = self.all_claims.get() {
            return Ok(claims.is_contested(at / unit));
        }
        let mut claims = Claims::default();
        for index in 0..self.size.div_ceil(self.table_span()) {
            let Ok(Some(table)) = self.load(index) else {
                continue;
            };
            let entries = table.entries.chunks_exact(self.tables.entry_len());
            for (raw, guest) in entries.zip(self.guests(index)) {
                if let Ok(Grain::At(at)) = self.decode(raw, guest) {
                    let units = at / unit..at / unit + 1;
                    claims.claim(units, Claim::Own, self.reader.limits())?;
                }
            }
        }
        let claims = self.all_claims.get_or_init(|| claims);
        Ok(claims.is_contested(at / unit))
    }

    /// The most bytes of the file that the packed grain at `guest` can take up: up to the next one, if
    /// that comes next.
    fn packed_len(&self, table: &Table, guest: u64, host: u64) -> u64 {
        let mut next = guest - guest % self.grain + self.grain;
        let end = table.guest.end;
        // The longest that zlib gets what it cannot shorten, and its marker.
        let most = 2 * self.grain + SECTOR;
        while next < end.min(self.size) {
            match self.grain_in(table, next) {
                Ok(Grain::At(after)) if after > host => return most.min(after - host),
                Ok(Grain::At(_)) => break,
                // An error of a later entry is told when it is asked for.
                Ok(_) | Err(_) => next += self.grain,
            }
        }
        most
    }

    /// Guest bytes from `guest` to the end of its table.
    fn left_in_table(&self, guest: u64) -> u64 {
        self.table_span() - guest % self.table_span()
    }
}

impl<T: Tables> BlockMap for GrainMap<T> {
    fn unit(&self) -> u64 {
        self.grain
    }

    fn step(&self, guest: u64, held: &mut Held) -> Result<(Run, u64)> {
        let Some(table) = held.table(guest, || self.load(guest / self.table_span()))? else {
            return Ok((Run::Unallocated, self.left_in_table(guest)));
        };
        let into = guest % self.grain;
        let run = match (self.grain_in(table, guest)?, &self.packing) {
            (Grain::Unallocated, _) => Run::Unallocated,
            (Grain::Zero, _) => Run::Zero,
            (Grain::At(host), None) => Run::Stored { host: host + into },
            (Grain::At(host), Some(_)) => Run::Packed {
                host,
                max_len: self.packed_len(table, guest, host),
            },
        };
        // Entries that could not be read are zeros, too.
        if run == Run::Unallocated && !self.reader.salvages() {
            let index = (guest - table.guest.start) / self.grain;
            let empty = table.zeros(index, self.tables.entry_len() as u64);
            return Ok((run, empty.max(1) * self.grain - into));
        }
        Ok((run, self.grain - into))
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

    fn packing(&self) -> Option<&dyn Packing> {
        self.packing.as_ref().map(|packing| packing as &dyn Packing)
    }

    fn past_end(&self, guest: u64, host: u64, file_size: u64) -> Error {
        grain_past_end(guest, host, file_size)
    }
}

/// The error about a grain that the file no longer has.
pub(super) fn grain_past_end(guest: u64, host: u64, file_size: u64) -> Error {
    let problem = format!("needs byte {host} for guest offset {guest} of a file of {file_size}");
    malformed("grain", host, problem)
}
