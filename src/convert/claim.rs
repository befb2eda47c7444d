//! Cutting the source into segments: holes are skipped, pieces are rounded to the target's unit.

use std::sync::Arc;

use crate::convert::input::Input;
use crate::convert::segment::{MAX_PIECES, Piece, PieceKind, Segment};
use crate::error::{Error, Result};
use crate::extent::{Extent, ExtentKind};
use crate::image::Image;
use crate::source::BlockSource;

/// The content of a target where nothing is written, which decides what has to be.
#[derive(Debug)]
pub(super) enum Ground {
    /// Zeros.
    Zero,
    /// Unknown bytes: zeros have to be placed, too.
    Unknown,
    /// The bytes of the source's own layer at this depth.
    Layer(u16),
    /// The bytes of this image.
    Image(Arc<dyn Image>),
}

/// Cuts segments in order. Cuts depend on the source and the target alone, never on the number of threads or on
/// memory.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    source: &'a dyn BlockSource,
    /// One for each target.
    grounds: Vec<&'a Ground>,
    /// True if compressed units are copied as they are.
    packed: bool,
    /// Virtual size of the target, and where the work ends.
    size: u64,
    unit: u64,
    /// Bytes of a segment's buffer: a multiple of the unit.
    capacity: u64,
    /// Everything before is dealt with.
    position: u64,
    /// The run that `position` is in, if it is known.
    run: Option<Extent>,
    /// True if the source arrives: no extent is asked for beyond the room of a segment.
    arriving: bool,
    number: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Status {
    Skip,
    Zero,
    Data,
    Packed,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(
        source: Input<'a>,
        grounds: Vec<&'a Ground>,
        packed: bool,
        size: u64,
        unit: u64,
        capacity: u64,
    ) -> Self {
        Cursor {
            source: source.disk,
            grounds,
            packed,
            size,
            unit,
            capacity,
            position: 0,
            run: None,
            arriving: source.arriving.is_some(),
            number: 0,
        }
    }

    /// Everything before is dealt with.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Says where the work ends, where that was not known at first.
    pub(super) fn end_at(&mut self, size: u64) {
        self.size = size;
    }

    /// The same cursor, from where another one stopped: the number of the next segment, and where it
    /// begins.
    pub(super) fn starting_at(mut self, number: u64, position: u64) -> Self {
        (self.number, self.position) = (number, position);
        self
    }

    /// Fills `segment` with the pieces that come next; `false` if there is nothing left to do.
    /// `stopped` is asked now and then, so that endless holes cannot keep the work from ending.
    pub(super) fn claim(
        &mut self,
        segment: &mut Segment,
        stopped: &dyn Fn() -> bool,
    ) -> Result<bool> {
        segment.clear();
        let mut used = 0;
        while self.position < self.size && used < self.capacity && segment.pieces.len() < MAX_PIECES
        {
            if stopped() {
                return Err(Error::Cancelled);
            }
            let (status, end) = match self.status() {
                // What is claimed has to be read before more can be known.
                Err(Error::OutOfOrder { .. }) if !segment.pieces.is_empty() => break,
                other => other?,
            };
            match status {
                Status::Skip => self.position = end,
                Status::Zero => match self.whole_units(end) {
                    Some((guest, len)) => {
                        self.take(segment, PieceKind::Zero, guest, len, &mut 0);
                    }
                    None => self.claim_data(segment, &mut used, end),
                },
                Status::Data => self.claim_data(segment, &mut used, end),
                Status::Packed => self.claim_packed(segment, &mut used, end),
            }
        }
        segment.done = self.position.min(self.size);
        segment.number = self.number;
        let some = !segment.pieces.is_empty();
        self.number += u64::from(some);
        Ok(some)
    }

    /// Takes the units that hold the bytes from the position to `end`, as far as there is room. What
    /// else is in these units is taken with them.
    fn claim_data(&mut self, segment: &mut Segment, used: &mut u64, end: u64) {
        let start = self.position - self.position % self.unit;
        let end = end
            .checked_next_multiple_of(self.unit)
            .unwrap_or(u64::MAX)
            .min(self.size);
        let len = (end - start).min(self.capacity - *used);
        // A piece ends inside a unit only at the end of the disk, so every piece starts at one.
        self.take(segment, PieceKind::Data, start, len, used);
    }

    fn take(
        &mut self,
        segment: &mut Segment,
        kind: PieceKind,
        guest: u64,
        len: u64,
        used: &mut u64,
    ) {
        let at = usize::try_from(*used).unwrap_or(usize::MAX);
        let piece = Piece {
            kind,
            guest,
            len,
            at,
        };
        segment.pieces.push(piece);
        *used += len.next_multiple_of(self.unit);
        self.position = guest + len;
    }

    /// Takes the whole units from the position to `end`, as far as there is room, compressed as they are.
    fn claim_packed(&mut self, segment: &mut Segment, used: &mut u64, end: u64) {
        let Some((guest, len)) = self.whole_units(end) else {
            return self.claim_data(segment, used, end);
        };
        let len = len.min(self.capacity - *used);
        self.take(segment, PieceKind::Packed, guest, len, used);
    }

    /// The whole units in the run from the position to `end`, if the position is at the
    /// start of one.
    fn whole_units(&self, end: u64) -> Option<(u64, u64)> {
        let end = if end >= self.size {
            self.size
        } else {
            end - end % self.unit
        };
        let aligned = self.position % self.unit == 0;
        (aligned && end > self.position).then(|| (self.position, end - self.position))
    }

    /// The status of the run at the position, the highest of those for each target, and its end.
    fn status(&mut self) -> Result<(Status, u64)> {
        let run = self.run_at_position()?;
        let mut found = (Status::Skip, run.end());
        for ground in &self.grounds {
            let (status, end) = self.status_over(ground, run)?;
            found = (found.0.max(status), found.1.min(end));
        }
        if self.packed && found.0 == Status::Data && run.kind == ExtentKind::Compressed {
            // Units of a backing file are read through the image above.
            if run.depth == 0 && self.whole_units(found.1).is_some() {
                found.0 = Status::Packed;
            }
        }
        Ok(found)
    }

    fn status_over(&self, ground: &Ground, run: Extent) -> Result<(Status, u64)> {
        let zero = run.kind.reads_as_zero();
        match ground {
            Ground::Zero if zero => Ok((Status::Skip, run.end())),
            Ground::Unknown if zero => Ok((Status::Zero, run.end())),
            Ground::Zero | Ground::Unknown => Ok((Status::Data, run.end())),
            Ground::Layer(depth) if run.depth >= *depth => Ok((Status::Skip, run.end())),
            Ground::Layer(_) if zero => Ok((Status::Zero, run.end())),
            Ground::Layer(_) => Ok((Status::Data, run.end())),
            Ground::Image(image) if zero => {
                // Zeros are recorded where they mask something.
                if self.position >= image.size() {
                    return Ok((Status::Skip, run.end()));
                }
                let below = image.extent_at(self.position, run.end() - self.position)?;
                let masked = !below.kind.reads_as_zero();
                Ok((
                    if masked { Status::Zero } else { Status::Skip },
                    below.end(),
                ))
            }
            Ground::Image(_) => Ok((Status::Data, run.end())),
        }
    }

    fn run_at_position(&mut self) -> Result<Extent> {
        if let Some(run) = self
            .run
            .filter(|run| (run.start..run.end()).contains(&self.position))
        {
            return Ok(run);
        }
        let left = self.source.size().saturating_sub(self.position);
        let run = if left > 0 && self.arriving {
            return self.arriving_run(left);
        } else if left > 0 {
            self.source.extent_at(self.position, left)?
        } else {
            // The target rounds the size up.
            let len = self.size - self.position;
            Extent::new(self.position, len, ExtentKind::Zero)
        };
        self.run = Some(run);
        Ok(run)
    }

    /// The run at the position, as far as a segment has room for it, so that segments are cut as those of
    /// a file are. Behind a hole nothing is looked at before its end, however long it is.
    fn arriving_run(&mut self, left: u64) -> Result<Extent> {
        let reach = left.min(self.capacity);
        let mut run = self.source.extent_at(self.position, reach)?;
        if run.len < reach || !run.kind.reads_as_zero() {
            return Ok(run);
        }
        run = self.source.extent_at(self.position, left)?;
        self.run = Some(run);
        Ok(run)
    }
}
