//! Laying a new image out, in memory that does not grow with it.
//!
//! ```text
//!   identifier, headers, region tables │ log │ metadata │ BAT │ blocks and sector bitmaps, in turn
//! ```
//!
//! Blocks are handed out from front to back as the guest's data comes; a fixed image has all of them,
//! in order. A block is done, and its entry known, when the guest position leaves it; a chunk's sector
//! bitmap when the position leaves the chunk. The header comes last.

mod bitmap;
mod options;
mod sections;
mod table;

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::formats::identity::Digest;
use crate::formats::vhdx::bat::{BITMAP_BLOCK, BatEntry, Geometry};
use crate::formats::vhdx::header::MIB;
use crate::formats::vhdx::region::Region;
use crate::image::{Finish, ImageWriter, Payload, Placed, Write, WriteRun, WriteShape};

use bitmap::Bitmap;
use table::Table;

pub use options::{Guids, Subformat, VhdxOptions};

/// Bytes of the smallest piece of the guest that is placed on its own: the block of nearly every file
/// system, and no less than a sector.
const UNIT: u64 = 4096;

/// Lays a VHDX image out.
#[derive(Debug)]
pub(super) struct Writer {
    options: VhdxOptions,
    geometry: Geometry,
    log: Region,
    metadata: Region,
    bat: Region,
    /// Host offset of the next block.
    next: u64,
    /// First guest offset at which the next run may start.
    position: u64,
    table: Table,
    block: Option<Block>,
    /// Sectors of the current chunk that are in a differencing image.
    bitmap: Bitmap,
    /// True if a block of the current chunk needs the bitmap.
    is_partial: bool,
    seed: Vec<u8>,
    /// Of all that was placed.
    digest: Digest,
    /// Start of the run that ends at `position`, and true if it is zeros.
    run: (u64, bool),
}

/// The block that the guest position is in. Lengths are in bytes from its start.
#[derive(Debug, Clone, Copy)]
struct Block {
    index: u64,
    /// Host offset, once a part of it is in the file.
    host: Option<u64>,
    /// Up to where the bytes in the file are decided.
    filled: u64,
    /// Bytes that are recorded, as data or as zeros.
    recorded: u64,
    /// Up to where it has nothing but recorded zeros, while it is not in the file.
    zeroes: u64,
}

impl Writer {
    fn new(options: VhdxOptions, geometry: Geometry) -> Result<Self> {
        let log = Region {
            offset: MIB,
            len: u64::from(options.log_size),
        };
        let metadata = Region {
            offset: log.offset + log.len,
            len: MIB,
        };
        let entries = match geometry.entries() {
            // QEMU counts the sector bitmaps of a disk without blocks down from 2^32.
            0 => u64::from(u32::MAX) / geometry.chunk_ratio(),
            entries => entries,
        };
        let bat = Region {
            offset: metadata.offset + metadata.len,
            len: (entries * 8).next_multiple_of(MIB),
        };
        // Metadata that does not fit is refused before anything is written.
        sections::metadata(&options, &geometry, Uuid::nil())?;
        sections::region_tables(bat, metadata)?;
        let seed = options.seed(&geometry);
        // Over a parent what is absent is the parent's.
        let mark_zeroes = options.block_state_zero && !geometry.has_parent;
        Ok(Writer {
            log,
            metadata,
            bat,
            next: bat.offset + bat.len,
            position: 0,
            table: Table::new(geometry, bat.offset, mark_zeroes),
            block: None,
            bitmap: Bitmap::default(),
            is_partial: false,
            digest: Digest::of(&seed),
            run: (0, false),
            seed,
            geometry,
            options,
        })
    }

    fn is_fixed(&self) -> bool {
        self.options.subformat == Subformat::Fixed
    }

    fn data_start(&self) -> u64 {
        self.bat.offset + self.bat.len
    }

    fn allocate(&mut self, len: u64) -> u64 {
        let host = self.next;
        self.next += len;
        host
    }

    /// Goes to where a run starts, which is behind the last one.
    fn advance(&mut self, guest: u64, len: u64) -> Result<()> {
        let size = self.geometry.virtual_size;
        if guest.checked_add(len).is_none_or(|end| end > size) {
            return Err(Error::out_of_range(guest, len, size));
        }
        let aligned = guest % UNIT == 0 && (len % UNIT == 0 || guest + len == size);
        if len == 0 || !aligned || guest < self.position {
            return Err(Error::invalid(format!(
                "{len} bytes at {guest} are no run that can be placed behind {} in units of {UNIT}",
                self.position
            )));
        }
        Ok(())
    }

    fn place_run(
        &mut self,
        guest: u64,
        len: u64,
        is_zero: bool,
        tables: &mut Vec<Write>,
    ) -> Result<Placed> {
        self.advance(guest, len)?;
        if self.is_fixed() {
            return Ok(self.place_fixed(guest, len, is_zero, tables));
        }
        let index = guest / self.geometry.block_size;
        if self.block.is_none_or(|block| block.index != index) {
            self.leave(Some(index), tables);
        }
        let into = guest % self.geometry.block_size;
        let taken = len.min(self.geometry.block_size - into);
        let mut block = self.block.unwrap_or(Block::new(index));
        let host = if is_zero {
            self.place_zero(&mut block, into, taken, tables);
            0
        } else {
            let host = self.open(&mut block, tables);
            self.record(&mut block, into, taken);
            fill_gap(&mut block, host, into, tables);
            block.filled = into + taken;
            host + into
        };
        self.block = Some(block);
        self.note(guest, taken, is_zero);
        Ok(Placed::new(0, host, taken))
    }

    fn place_fixed(
        &mut self,
        guest: u64,
        len: u64,
        is_zero: bool,
        tables: &mut Vec<Write>,
    ) -> Placed {
        let host = self.data_start() + guest;
        push_zeroes(
            tables,
            host - (guest - self.position),
            guest - self.position,
        );
        if is_zero {
            push_zeroes(tables, host, len);
        }
        self.note(guest, len, is_zero);
        Placed::new(0, host, len)
    }

    /// Adds a run to the digest that tells images apart.
    fn note(&mut self, guest: u64, len: u64, is_zero: bool) {
        // However the run was cut on its way here.
        if self.position != guest || self.run.1 != is_zero {
            self.note_run();
            self.run = (guest, is_zero);
        }
        self.position = guest + len;
    }

    fn note_run(&mut self) {
        let (start, is_zero) = self.run;
        for number in [start, self.position, u64::from(is_zero)] {
            self.digest.add(&number.to_le_bytes());
        }
    }

    fn place_zero(&mut self, block: &mut Block, into: u64, len: u64, tables: &mut Vec<Write>) {
        if !self.geometry.has_parent {
            // Unwritten parts of a block read as zero, in the file or not.
            return;
        }
        if block.host.is_none() && into == block.zeroes {
            block.zeroes += len;
            return;
        }
        let host = self.open(block, tables);
        self.record(block, into, len);
        fill_gap(block, host, into + len, tables);
    }

    /// Gives a block its place in the file, if it has none yet.
    fn open(&mut self, block: &mut Block, tables: &mut Vec<Write>) -> u64 {
        if let Some(host) = block.host {
            return host;
        }
        let host = self.allocate(self.geometry.block_size);
        block.host = Some(host);
        let zeroes = std::mem::take(&mut block.zeroes);
        if zeroes > 0 {
            self.record(block, 0, zeroes);
            fill_gap(block, host, zeroes, tables);
        }
        host
    }

    /// Marks a part of a block as recorded here.
    fn record(&mut self, block: &mut Block, into: u64, len: u64) {
        block.recorded += len;
        if self.geometry.has_parent {
            let sector_size = self.geometry.sector_size;
            let chunk_block = block.index % self.geometry.chunk_ratio();
            let first = (chunk_block * self.geometry.block_size + into) / sector_size;
            self.bitmap.set(first, len.div_ceil(sector_size));
        }
    }

    /// Closes the current block, and its chunk unless the next block is in it.
    fn leave(&mut self, next: Option<u64>, tables: &mut Vec<Write>) {
        let Some(mut block) = self.block.take() else {
            return;
        };
        let used = self.geometry.used(block.index);
        if block.zeroes > 0 && block.zeroes < used {
            self.open(&mut block, tables);
        }
        let entry = match block.host {
            Some(host) => {
                fill_gap(&mut block, host, self.geometry.block_size, tables);
                if self.geometry.has_parent && block.recorded < used {
                    self.is_partial = true;
                    BatEntry::partial(host)
                } else {
                    BatEntry::present(host)
                }
            }
            None if block.zeroes > 0 => BatEntry::ZERO,
            None => BatEntry::default(),
        };
        if entry != BatEntry::default() {
            let index = self.geometry.payload_entry(block.index);
            self.table.set(index, entry, tables);
        }
        let chunk = block.index / self.geometry.chunk_ratio();
        if next.is_some_and(|next| next / self.geometry.chunk_ratio() == chunk) {
            return;
        }
        let bitmap = self.bitmap.take();
        if std::mem::take(&mut self.is_partial) {
            let host = self.allocate(BITMAP_BLOCK);
            tables.push(Write::new(0, host, bitmap));
            let index = self.geometry.bitmap_entry(chunk);
            self.table.set(index, BatEntry::present(host), tables);
        }
    }

    fn finish_fixed(&mut self, tables: &mut Vec<Write>) {
        let start = self.data_start();
        let len = self.geometry.blocks() * self.geometry.block_size;
        push_zeroes(tables, start + self.position, len - self.position);
        for block in 0..self.geometry.blocks() {
            let host = self.allocate(self.geometry.block_size);
            let index = self.geometry.payload_entry(block);
            self.table.set(index, BatEntry::present(host), tables);
        }
    }
}

impl Block {
    fn new(index: u64) -> Self {
        Block {
            index,
            host: None,
            filled: 0,
            recorded: 0,
            zeroes: 0,
        }
    }
}

/// Makes what of a block is not written up to `to` read as zero.
fn fill_gap(block: &mut Block, host: u64, to: u64, tables: &mut Vec<Write>) {
    if to > block.filled {
        push_zeroes(tables, host + block.filled, to - block.filled);
        block.filled = to;
    }
}

fn push_zeroes(tables: &mut Vec<Write>, offset: u64, len: u64) {
    if len > 0 {
        tables.push(Write::new(0, offset, Payload::Zeroes(len)));
    }
}

impl ImageWriter for Writer {
    fn shape(&self) -> WriteShape {
        let mut shape = WriteShape::new(self.geometry.virtual_size, UNIT);
        shape.record_zeroes = self.geometry.has_parent;
        // Tables are written where they say something.
        push_zeroes(&mut shape.preallocation, 0, self.data_start());
        shape
    }

    fn place(&mut self, run: WriteRun<'_>, tables: &mut Vec<Write>) -> Result<Placed> {
        match run {
            WriteRun::Verbatim { guest, len } => self.place_run(guest, len, false, tables),
            WriteRun::Zero { guest, len } => self.place_run(guest, len, true, tables),
            WriteRun::Packed { .. } | WriteRun::Copied { .. } => {
                Err(Error::invalid("a VHDX image cannot be compressed"))
            }
        }
    }

    /// A chunk whose blocks are all recorded whole needs no sector bitmap.
    fn full_sizes(&self) -> Option<Vec<u64>> {
        let blocks = self.geometry.blocks() * self.geometry.block_size;
        Some(vec![self.data_start() + blocks])
    }

    fn finish(mut self: Box<Self>) -> Result<Finish> {
        let mut tables = Vec::new();
        if self.is_fixed() {
            self.finish_fixed(&mut tables);
        } else {
            self.leave(None, &mut tables);
        }
        self.table.finish(&mut tables);
        let own = Digest::of(&self.seed);
        let disk_id = match self.options.guids {
            Guids::Given(guid) => guid,
            Guids::Derived | Guids::Fresh => own.uuid("disk"),
        };
        let metadata = sections::metadata(&self.options, &self.geometry, disk_id)?;
        tables.push(Write::new(0, self.metadata.offset, metadata));
        tables.extend(sections::region_tables(self.bat, self.metadata)?);
        self.note_run();
        let seal = sections::seal(self.log, self.digest.uuid("file"), self.digest.uuid("data"))?;
        Ok(Finish::new(tables, seal, vec![self.next]))
    }
}
