//! Hosted sparse extents: header, descriptor, both grain directories with room for all of their
//! tables, then the grains in the order in which they come.

use crate::error::{Error, Result};
use crate::formats::vmdk::entry::{GrainDirectoryEntry, GrainEntry};
use crate::formats::vmdk::header::{
    END_LINE_CHARS, Flags, SECTOR, SPARSE_MAGIC, SparseExtentHeader,
};
use crate::image::{Finish, ImageWriter, Payload, Placed, Write, WriteRun, WriteShape};
use crate::ondisk::TableEntry;

use super::options::{Subformat, VmdkOptions};
use super::text::{self, Line};
use super::{
    DESCRIPTOR_OFFSET, DESCRIPTOR_SECTORS, GRAIN, GRAIN_SECTORS, Names, SPLIT, TABLE_ENTRIES,
    TABLE_SECTORS, TABLE_SPAN, entry, files_of, zeroed,
};

#[derive(Debug)]
pub(super) struct SparseWriter {
    size: u64,
    /// Bytes of every extent but the last.
    split: u64,
    zeroed_grain: bool,
    /// The text, and whether it is within the one extent.
    descriptor: Vec<u8>,
    embedded: bool,
    lines: Vec<Line>,
    extents: Vec<Extent>,
}

impl SparseWriter {
    pub(super) fn new(options: &VmdkOptions, size: u64, names: &Names) -> Result<Self> {
        let embedded = options.subformat == Subformat::MonolithicSparse;
        let split = if embedded { size } else { SPLIT };
        let mut lines = Vec::new();
        let mut extents = Vec::new();
        let mut start = 0;
        while start < size {
            let name = match embedded {
                true => names.own(),
                false => names.with(&format!("-s{:03}", extents.len() + 1))?,
            };
            let len = split.min(size - start);
            let file = if embedded { 0 } else { extents.len() + 1 };
            lines.push(Line {
                access: "RW",
                size: len,
                kind: "SPARSE",
                name,
                offset: false,
            });
            extents.push(Extent::new(file, len)?);
            start += len;
        }
        let descriptor = text::descriptor(options, size, names, &lines);
        if embedded && descriptor.len() as u64 > DESCRIPTOR_SECTORS * SECTOR {
            return Err(Error::invalid("the names make the descriptor too long"));
        }
        Ok(SparseWriter {
            size,
            split,
            zeroed_grain: options.zeroed_grain,
            descriptor,
            embedded,
            lines,
            extents,
        })
    }
}

impl ImageWriter for SparseWriter {
    fn shape(&self) -> WriteShape {
        let mut shape = WriteShape::new(self.size, GRAIN);
        if !self.embedded {
            let names: Vec<_> = self.lines.iter().map(|line| line.name.clone()).collect();
            shape.files = files_of(&names);
        }
        // Tables that nothing is said in are never written.
        shape.preallocation = self
            .extents
            .iter()
            .map(|extent| {
                Write::new(
                    extent.file,
                    0,
                    Payload::Zeroes(extent.layout.over_head * SECTOR),
                )
            })
            .collect();
        shape
    }

    fn place(&mut self, run: WriteRun<'_>, tables: &mut Vec<Write>) -> Result<Placed> {
        let (WriteRun::Verbatim { guest, len } | WriteRun::Zero { guest, len }) = run else {
            return Err(Error::invalid(
                "only a VMDK with subformat=streamOptimized can be compressed",
            ));
        };
        let index = usize::try_from(guest / self.split).unwrap_or(usize::MAX);
        let Some(extent) = self.extents.get_mut(index) else {
            return Err(Error::invalid("a run begins past the end of the disk"));
        };
        let guest = guest % self.split;
        let taken = len.min(self.split - guest);
        match run {
            WriteRun::Zero { .. } if self.zeroed_grain => extent.zero(guest, taken, tables),
            WriteRun::Zero { .. } => {
                let placed = extent.place(guest, taken, tables)?;
                tables.push(Write::new(
                    extent.file,
                    placed.host,
                    Payload::Zeroes(placed.taken),
                ));
                Ok(placed)
            }
            _ => extent.place(guest, taken, tables),
        }
    }

    fn full_sizes(&self) -> Option<Vec<u64>> {
        let text = (!self.embedded).then_some(self.descriptor.len() as u64);
        let extents = self.extents.iter().map(|extent| extent.layout.full_size());
        Some(text.into_iter().chain(extents).collect())
    }

    fn finish(self: Box<Self>) -> Result<Finish> {
        let mut tables = Vec::new();
        let mut seal = Vec::new();
        let mut sizes = Vec::new();
        if !self.embedded {
            sizes.push(self.descriptor.len() as u64);
        }
        for mut extent in self.extents {
            extent.leave(&mut tables);
            extent.directories(&mut tables)?;
            let header = extent.layout.header(self.zeroed_grain, self.embedded);
            seal.push(Write::new(extent.file, 0, header.encode().to_vec()));
            sizes.push(extent.next * SECTOR);
        }
        let at = if self.embedded {
            DESCRIPTOR_OFFSET * SECTOR
        } else {
            0
        };
        seal.push(Write::new(0, at, self.descriptor));
        Ok(Finish::new(tables, seal, sizes))
    }
}

/// Places of the structures of an extent, in sectors.
#[derive(Debug, Clone, Copy)]
struct Layout {
    capacity: u64,
    tables: u64,
    directory_sectors: u64,
    rgd_offset: u64,
    gd_offset: u64,
    over_head: u64,
}

impl Layout {
    fn new(capacity: u64) -> Self {
        let tables = capacity.div_ceil(TABLE_ENTRIES * GRAIN_SECTORS);
        let directory_sectors = (tables * 4).div_ceil(SECTOR);
        let with_tables = directory_sectors + tables * TABLE_SECTORS;
        let rgd_offset = DESCRIPTOR_OFFSET + DESCRIPTOR_SECTORS;
        let gd_offset = rgd_offset + with_tables;
        Layout {
            capacity,
            tables,
            directory_sectors,
            rgd_offset,
            gd_offset,
            over_head: (gd_offset + with_tables).next_multiple_of(GRAIN_SECTORS),
        }
    }

    /// Bytes of the extent when every grain has its place.
    fn full_size(&self) -> u64 {
        (self.over_head + self.capacity.next_multiple_of(GRAIN_SECTORS)) * SECTOR
    }

    /// Sector of the table number `index` of the directory at `directory`.
    fn table(&self, directory: u64, index: u64) -> u64 {
        directory + self.directory_sectors + index * TABLE_SECTORS
    }

    fn header(&self, zeroed_grain: bool, embedded: bool) -> SparseExtentHeader {
        let mut flags = Flags::NEWLINE_TEST | Flags::REDUNDANT_DIRECTORY;
        flags.set(Flags::ZEROED_GRAINS, zeroed_grain);
        let (descriptor_offset, descriptor_size) = match embedded {
            true => (DESCRIPTOR_OFFSET, DESCRIPTOR_SECTORS),
            false => (0, 0),
        };
        SparseExtentHeader {
            magic_number: SPARSE_MAGIC,
            version: if zeroed_grain { 2 } else { 1 },
            flags: flags.bits(),
            capacity: self.capacity,
            grain_size: GRAIN_SECTORS,
            descriptor_offset,
            descriptor_size,
            num_gtes_per_gt: 512,
            rgd_offset: self.rgd_offset,
            gd_offset: self.gd_offset,
            over_head: self.over_head,
            unclean_shutdown: 0,
            end_line_chars: END_LINE_CHARS,
            compress_algorithm: 0,
        }
    }
}

/// One extent, as far as it is not yet written.
#[derive(Debug)]
struct Extent {
    file: usize,
    layout: Layout,
    /// The first free sector.
    next: u64,
    /// The grain table number `current`, and whether it says anything.
    table: Vec<u8>,
    current: u64,
    used: bool,
}

impl Extent {
    fn new(file: usize, size: u64) -> Result<Self> {
        let layout = Layout::new(size / SECTOR);
        if u32::try_from(layout.over_head).is_err() {
            return Err(Error::invalid("the disk is too large for a sparse VMDK"));
        }
        Ok(Extent {
            file,
            layout,
            next: layout.over_head,
            table: zeroed(TABLE_SECTORS * SECTOR),
            current: 0,
            used: false,
        })
    }

    /// Makes the table that answers for `guest` the current one.
    fn enter(&mut self, guest: u64, tables: &mut Vec<Write>) {
        let index = guest / TABLE_SPAN;
        if index != self.current {
            self.leave(tables);
            self.current = index;
        }
    }

    /// Emits the current table, twice, if it says anything.
    fn leave(&mut self, tables: &mut Vec<Write>) {
        if !std::mem::take(&mut self.used) {
            return;
        }
        let table = std::mem::replace(&mut self.table, zeroed(TABLE_SECTORS * SECTOR));
        for directory in [self.layout.rgd_offset, self.layout.gd_offset] {
            let at = self.layout.table(directory, self.current) * SECTOR;
            tables.push(Write::new(self.file, at, table.clone()));
        }
    }

    /// Gives the grains of a run a place, as many as the current table answers for.
    fn place(&mut self, guest: u64, len: u64, tables: &mut Vec<Write>) -> Result<Placed> {
        self.enter(guest, tables);
        let taken = len.min(TABLE_SPAN - guest % TABLE_SPAN);
        let host = self.next * SECTOR;
        for grain in 0..taken.div_ceil(GRAIN) {
            let index = guest % TABLE_SPAN / GRAIN + grain;
            entry::<GrainEntry>(self.next)?.put(&mut self.table, index);
            self.next += GRAIN_SECTORS;
        }
        self.used = true;
        let rest = self.next * SECTOR - host - taken;
        if rest > 0 {
            tables.push(Write::new(self.file, host + taken, Payload::Zeroes(rest)));
        }
        let file = self.file;
        Ok(Placed { file, host, taken })
    }

    /// Records the grains of a run as zeros.
    fn zero(&mut self, guest: u64, len: u64, tables: &mut Vec<Write>) -> Result<Placed> {
        self.enter(guest, tables);
        let taken = len.min(TABLE_SPAN - guest % TABLE_SPAN);
        for grain in 0..taken.div_ceil(GRAIN) {
            GrainEntry::ZERO.put(&mut self.table, guest % TABLE_SPAN / GRAIN + grain);
        }
        self.used = true;
        let (file, host) = (self.file, 0);
        Ok(Placed { file, host, taken })
    }

    fn directories(&self, tables: &mut Vec<Write>) -> Result<()> {
        for directory in [self.layout.rgd_offset, self.layout.gd_offset] {
            let mut bytes = zeroed(self.layout.directory_sectors * SECTOR);
            for index in 0..self.layout.tables {
                let table = self.layout.table(directory, index);
                entry::<GrainDirectoryEntry>(table)?.put(&mut bytes, index);
            }
            tables.push(Write::new(self.file, directory * SECTOR, bytes));
        }
        Ok(())
    }
}
