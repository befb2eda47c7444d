//! The layout of an image for the sake of its size: the writer is asked for places, and its writes are dropped.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::{Encoder, ImageWriter, Part, Write, WriteRun};
use crate::source::{BlockSource, BlockSourceExt};

/// The sizes of the files that hold what `source` stores.
pub(super) fn of(writer: Box<dyn ImageWriter>, source: &dyn BlockSource) -> Result<Vec<u64>> {
    let mut layout = Layout::new(writer);
    for run in source.extents() {
        let run = run?;
        if !run.kind.reads_as_zero() {
            layout.store(run.start, run.end())?;
        }
    }
    layout.finish()
}

/// The sizes of the files that hold a disk of zeros.
pub(super) fn empty(writer: Box<dyn ImageWriter>) -> Result<Vec<u64>> {
    Layout::new(writer).finish()
}

/// The sizes of the files that hold a disk without a hole.
pub(super) fn full(writer: Box<dyn ImageWriter>) -> Result<Vec<u64>> {
    let mut layout = Layout::new(writer);
    layout.store(0, u64::MAX)?;
    layout.finish()
}

struct Layout {
    writer: Box<dyn ImageWriter>,
    /// The longest length of a compressed unit, if every unit is compressed.
    longest: Option<u32>,
    size: u64,
    unit: u64,
    record_zeroes: bool,
    /// Everything before is placed.
    position: u64,
    tables: Vec<Write>,
    parts: Vec<Part>,
}

impl Layout {
    fn new(writer: Box<dyn ImageWriter>) -> Self {
        let shape = writer.shape();
        let encoder: Option<Arc<dyn Encoder>> = writer.encoder();
        Layout {
            // Units that the encoder may leave as they are take no more room when it compresses them.
            longest: encoder.and_then(|encoder| encoder.longest()),
            size: shape.virtual_size,
            unit: shape.unit,
            record_zeroes: shape.record_zeroes,
            writer,
            position: 0,
            tables: Vec::new(),
            parts: Vec::new(),
        }
    }

    /// Places the units that hold the bytes from `start` to `end`, and the zeros before them.
    fn store(&mut self, start: u64, end: u64) -> Result<()> {
        let end = end.checked_next_multiple_of(self.unit);
        let end = end.unwrap_or(u64::MAX).min(self.size);
        // The unit that the last run ended in may be this one's first.
        let start = (start - start % self.unit).max(self.position);
        if start >= end {
            return Ok(());
        }
        self.skip(start)?;
        match self.longest {
            None => self.place_verbatim(end),
            Some(len) => self.place_packed(end, len),
        }
    }

    /// Deals with zeros up to `end`.
    fn skip(&mut self, end: u64) -> Result<()> {
        if !self.record_zeroes {
            self.position = end;
        }
        while self.position < end {
            let (guest, len) = (self.position, end - self.position);
            self.position += self.place(WriteRun::Zero { guest, len })?.min(len);
        }
        Ok(())
    }

    fn place_verbatim(&mut self, end: u64) -> Result<()> {
        while self.position < end {
            let (guest, len) = (self.position, end - self.position);
            self.position += self.place(WriteRun::Verbatim { guest, len })?.min(len);
        }
        Ok(())
    }

    fn place_packed(&mut self, end: u64, len: u32) -> Result<()> {
        /// Parts that are placed at once.
        const BATCH: u64 = 512;
        while self.position < end {
            let count = (end - self.position).div_ceil(self.unit).min(BATCH);
            let guests = (0..count).map(|i| self.position + i * self.unit);
            let mut parts = std::mem::take(&mut self.parts);
            parts.clear();
            parts.extend(guests.map(|guest| Part { guest, len }));
            let taken = self.place(WriteRun::Packed { parts: &parts })?.min(count);
            self.parts = parts;
            self.position += taken * self.unit;
        }
        Ok(())
    }

    /// Returns the length of the run that the writer took.
    fn place(&mut self, run: WriteRun<'_>) -> Result<u64> {
        self.tables.clear();
        match self.writer.place(run, &mut self.tables)?.taken {
            0 => Err(Error::invalid("the image writer placed nothing")),
            taken => Ok(taken),
        }
    }

    fn finish(mut self) -> Result<Vec<u64>> {
        self.skip(self.size)?;
        Ok(self.writer.finish()?.sizes)
    }
}
