//! Streams, from front to back: header, descriptor, grains with each table after its own, grain
//! directory, footer, end (section "Stream-Optimized Compressed Sparse Extents").

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::formats::vmdk::entry::{GrainDirectoryEntry, GrainEntry};
use crate::formats::vmdk::header::{
    COMPRESSION_DEFLATE, END_LINE_CHARS, Flags, GD_AT_END, MARKER_EOS, MARKER_FOOTER, MARKER_GD,
    MARKER_GT, Marker, SECTOR, SECTOR_LEN, SPARSE_MAGIC, SparseExtentHeader,
};
use crate::image::{Encoder, Finish, ImageWriter, Part, Placed, Write, WriteRun, WriteShape};
use crate::ondisk::TableEntry;

use super::encoder::GrainEncoder;
use super::options::VmdkOptions;
use super::text::{self, Line};
use super::{
    DESCRIPTOR_OFFSET, DESCRIPTOR_SECTORS, GRAIN, GRAIN_SECTORS, Names, TABLE_ENTRIES,
    TABLE_SECTORS, TABLE_SPAN, entry, zeroed,
};

/// Sectors before the first grain.
const OVER_HEAD: u64 = 128;

#[derive(Debug)]
pub(super) struct StreamWriter {
    size: u64,
    descriptor: Vec<u8>,
    encoder: Arc<GrainEncoder>,
    /// The first free sector.
    next: u64,
    directory: Vec<u8>,
    /// The grain table number `current`, and whether it says anything.
    table: Vec<u8>,
    current: u64,
    used: bool,
}

impl StreamWriter {
    pub(super) fn new(options: &VmdkOptions, size: u64, names: &Names) -> Result<Self> {
        let line = Line {
            access: "RDONLY",
            size,
            kind: "SPARSE",
            name: names.own(),
            offset: false,
        };
        let descriptor = text::descriptor(options, size, names, &[line]);
        if descriptor.len() as u64 > DESCRIPTOR_SECTORS * SECTOR {
            return Err(Error::invalid("the names make the descriptor too long"));
        }
        let directory_len = size.div_ceil(TABLE_SPAN) * 4;
        const MOST: u64 = 32 << 20;
        if directory_len > MOST {
            return Err(Error::invalid("the disk is too large for a stream"));
        }
        Ok(StreamWriter {
            size,
            descriptor,
            encoder: Arc::new(GrainEncoder::new(options.compression_level)?),
            next: OVER_HEAD,
            directory: zeroed(directory_len.next_multiple_of(SECTOR)),
            table: zeroed(TABLE_SECTORS * SECTOR),
            current: 0,
            used: false,
        })
    }

    fn header(&self, gd_offset: u64) -> SparseExtentHeader {
        let flags = Flags::NEWLINE_TEST | Flags::COMPRESSED | Flags::MARKERS;
        SparseExtentHeader {
            magic_number: SPARSE_MAGIC,
            version: 3,
            flags: flags.bits(),
            capacity: self.size / SECTOR,
            grain_size: GRAIN_SECTORS,
            descriptor_offset: DESCRIPTOR_OFFSET,
            descriptor_size: DESCRIPTOR_SECTORS,
            num_gtes_per_gt: 512,
            rgd_offset: 0,
            gd_offset,
            over_head: OVER_HEAD,
            unclean_shutdown: 0,
            end_line_chars: END_LINE_CHARS,
            compress_algorithm: COMPRESSION_DEFLATE,
        }
    }

    /// Makes the table that answers for `guest` the current one.
    fn enter(&mut self, guest: u64, tables: &mut Vec<Write>) -> Result<()> {
        let index = guest / TABLE_SPAN;
        if index != self.current {
            self.leave(tables)?;
            self.current = index;
        }
        Ok(())
    }

    /// Emits the current table after its marker, if it says anything.
    fn leave(&mut self, tables: &mut Vec<Write>) -> Result<()> {
        if !std::mem::take(&mut self.used) {
            return Ok(());
        }
        let table = std::mem::replace(&mut self.table, zeroed(TABLE_SECTORS * SECTOR));
        entry::<GrainDirectoryEntry>(self.next + 1)?.put(&mut self.directory, self.current);
        tables.push(self.marked(MARKER_GT, &table));
        Ok(())
    }

    /// A marker and what it announces, at the end of the stream.
    fn marked(&mut self, kind: u32, content: &[u8]) -> Write {
        let sectors = content.len() as u64 / SECTOR;
        let marker = Marker {
            val: sectors,
            size: 0,
            kind,
        };
        let mut bytes = marker.encode().to_vec();
        bytes.resize(SECTOR_LEN, 0);
        bytes.extend_from_slice(content);
        let at = self.next * SECTOR;
        self.next += 1 + sectors;
        Write::new(0, at, bytes)
    }

    fn place_packed(&mut self, parts: &[Part], tables: &mut Vec<Write>) -> Result<Placed> {
        if let Some(first) = parts.first() {
            self.enter(first.guest, tables)?;
        }
        let mut placed = Placed::new(0, self.next * SECTOR, 0);
        for part in parts {
            if part.guest / TABLE_SPAN != self.current {
                break;
            }
            self.add_grain(part.guest, u64::from(part.len))?;
            placed.taken += 1;
        }
        Ok(placed)
    }

    fn add_grain(&mut self, guest: u64, len: u64) -> Result<()> {
        let index = guest / GRAIN % TABLE_ENTRIES;
        entry::<GrainEntry>(self.next)?.put(&mut self.table, index);
        self.next += len / SECTOR;
        self.used = true;
        Ok(())
    }

    /// Zeros that mask the parent's data: there is no entry for them in a stream, so they are a grain.
    fn place_zeros(&mut self, guest: u64, len: u64, tables: &mut Vec<Write>) -> Result<Placed> {
        self.enter(guest, tables)?;
        let host = self.next * SECTOR;
        let mut grain = Vec::new();
        self.encoder.encode(guest, &zeroed(GRAIN), &mut grain)?;
        self.add_grain(guest, grain.len() as u64)?;
        tables.push(Write::new(0, host, grain));
        let (file, taken) = (0, len.min(GRAIN));
        Ok(Placed { file, host, taken })
    }
}

impl ImageWriter for StreamWriter {
    fn shape(&self) -> WriteShape {
        let mut shape = WriteShape::new(self.size, GRAIN);
        shape.forward = true;
        // A stream is no image before its footer is there, so its header can come first.
        let mut start = self.header(GD_AT_END).encode().to_vec();
        start.extend_from_slice(&self.descriptor);
        start.resize(usize::try_from(OVER_HEAD * SECTOR).unwrap_or(0), 0);
        shape.preallocation.push(Write::new(0, 0, start));
        shape
    }

    fn encoder(&self) -> Option<Arc<dyn Encoder>> {
        Some(Arc::clone(&self.encoder) as Arc<dyn Encoder>)
    }

    fn place(&mut self, run: WriteRun<'_>, tables: &mut Vec<Write>) -> Result<Placed> {
        match run {
            WriteRun::Packed { parts } => self.place_packed(parts, tables),
            WriteRun::Zero { guest, len } => self.place_zeros(guest, len, tables),
            WriteRun::Verbatim { .. } | WriteRun::Copied { .. } => {
                Err(Error::invalid("a stream takes compressed grains only"))
            }
        }
    }

    fn finish(mut self: Box<Self>) -> Result<Finish> {
        let mut tables = Vec::new();
        self.leave(&mut tables)?;
        let directory = std::mem::take(&mut self.directory);
        let gd_offset = self.next + 1;
        tables.push(self.marked(MARKER_GD, &directory));
        let footer = self.header(gd_offset).encode();
        let seal = vec![
            self.marked(MARKER_FOOTER, &footer),
            self.marked(MARKER_EOS, &[]),
        ];
        let size = self.next * SECTOR;
        Ok(Finish::new(tables, seal, vec![size]))
    }
}
