//! Preparing a segment: reading it, finding the zeros, encoding the rest. No locks, any thread.

use std::sync::Arc;

use crate::convert::claim::Ground;
use crate::convert::segment::{Piece, Segment, Step};
use crate::error::{Error, Result};
use crate::image::{Encoder, Form, Part};
use crate::source::BlockSource;
use crate::zero::is_zero;

/// What it takes to prepare a segment.
pub(super) struct Preparer<'a> {
    pub(super) source: &'a dyn BlockSource,
    pub(super) ground: &'a Ground,
    pub(super) encoder: Option<Arc<dyn Encoder>>,
    /// Bytes of the target's unit.
    pub(super) unit: usize,
    /// Bytes that are stored or left out as one: what is all zero, or the same as below, is left out.
    pub(super) granule: usize,
    pub(super) find_zeros: bool,
}

impl Preparer<'_> {
    /// Reads the pieces, drops the zeros and encodes the rest. Returns how many bytes were read.
    pub(super) fn prepare(&self, segment: &mut Segment) -> Result<u64> {
        let mut bytes_read = 0;
        let pieces = std::mem::take(&mut segment.pieces);
        for piece in &pieces {
            match *piece {
                Piece::Zero { guest, len } => segment.push_step(Step::Zero { guest, len }),
                Piece::Data { guest, len, at } => {
                    let len_in_memory = usize::try_from(len).unwrap_or(usize::MAX);
                    let buf = segment.data.get_mut(at, len_in_memory);
                    let n = self.source.read_at(buf, guest)?;
                    buf.get_mut(n..).unwrap_or_default().fill(0);
                    bytes_read += n as u64;
                    self.read_below(segment, guest, len_in_memory)?;
                    self.cut(segment, guest, at, len_in_memory)?;
                }
            }
        }
        segment.pieces = pieces;
        Ok(bytes_read)
    }

    /// Reads what an overlay would show at `guest` without being written there.
    fn read_below(&self, segment: &mut Segment, guest: u64, len: usize) -> Result<()> {
        if let Ground::Image(image) = self.ground {
            segment.below.clear();
            segment.below.resize(len, 0);
            image.read_at(&mut segment.below, guest)?;
        }
        Ok(())
    }

    /// Cuts the `len` bytes at `at` into what is stored and what need not be.
    fn cut(&self, segment: &mut Segment, guest: u64, at: usize, len: usize) -> Result<()> {
        let granule = self.granule;
        let mut done = 0;
        while done < len {
            // Granules lie at multiples of their size in the disk.
            let guest = guest + done as u64;
            let into = usize::try_from(guest % granule as u64).unwrap_or(0);
            let n = (granule - into).min(len - done);
            let (from, end) = (at + done, done + n);
            let bytes = segment.data.get(from, n);
            let same = matches!(self.ground, Ground::Image(_))
                && segment
                    .below
                    .get(done..end)
                    .is_some_and(|below| below == bytes);
            let step_len = n as u64;
            if same {
                // It shows through.
            } else if self.find_zeros && is_zero(bytes) {
                if !matches!(self.ground, Ground::Zero) {
                    segment.push_step(Step::Zero {
                        guest,
                        len: step_len,
                    });
                }
            } else {
                self.encode(segment, guest, from, n)?;
            }
            done = end;
        }
        Ok(())
    }

    /// Encodes one granule, or leaves it as it is.
    fn encode(&self, segment: &mut Segment, guest: u64, at: usize, len: usize) -> Result<()> {
        let step = Step::Verbatim {
            guest,
            len: len as u64,
            at,
        };
        let Some(encoder) = &self.encoder else {
            segment.push_step(step);
            return Ok(());
        };
        let unit = self.unit;
        // The buffer is a multiple of the unit, so that the disk's last one can be padded in place.
        segment.data.get_mut(at + len, unit - len).fill(0);
        let start = segment.packed.len();
        let form = encoder.encode(guest, segment.data.get(at, unit), &mut segment.packed)?;
        match form {
            Form::Verbatim => segment.push_step(step),
            Form::Packed => {
                let len = u32::try_from(segment.packed.len() - start)
                    .map_err(|_| Error::invalid("a packed unit is longer than 4 GiB"))?;
                let first = segment.parts.len();
                segment.parts.push(Part { guest, len });
                segment.push_step(Step::Packed {
                    first,
                    count: 1,
                    at: start,
                });
            }
        }
        Ok(())
    }
}
