//! Preparation of a segment: it is read once for all targets; for each of them zeros are found and the rest is
//! encoded. No locks, any thread.

use std::sync::Arc;

use crate::convert::claim::Ground;
use crate::convert::segment::{Leaf, Piece, PieceKind, Segment, Step, Work};
use crate::digest::{LEAF, Leaves};
use crate::error::{Error, Result};
use crate::extent::ExtentKind;
use crate::image::{Encoder, Form, Part, Take};
use crate::packed::{PackedSource, PackedUnit};
use crate::source::{BlockSource, BlockSourceExt, read_padded};
use crate::zero::is_zero;

/// Blocks of the file systems that share them.
const BLOCK: u64 = 4096;

/// Reads segments.
pub(super) struct Reader<'a> {
    pub(super) source: &'a dyn BlockSource,
    /// Source of compressed units that are copied as they are.
    pub(super) packed: Option<&'a dyn PackedSource>,
    /// Source of units that are read compressed and decompressed later, because the source arrives.
    pub(super) later: Option<&'a dyn PackedSource>,
    /// Decompresses them all the same, since their bytes are needed.
    pub(super) unpack: bool,
    /// The hasher of the content.
    pub(super) leaves: Option<Leaves>,
    /// The device whose blocks all targets can share, if the bytes are not needed.
    pub(super) shares: Option<u64>,
    /// The largest of the targets' units.
    pub(super) unit: usize,
}

impl Reader<'_> {
    /// Reads the pieces of a segment. Returns how many bytes of the guest were read. Of a source that
    /// arrives, compressed units wait: the next may be read meanwhile.
    pub(super) fn read(&self, segment: &mut Segment) -> Result<u64> {
        let mut bytes_read = 0;
        let mut pieces = std::mem::take(&mut segment.pieces);
        for piece in &mut pieces {
            let Piece { guest, len, at, .. } = *piece;
            bytes_read += match (piece.kind, self.later) {
                (PieceKind::Zero | PieceKind::Shared, _) => 0,
                (PieceKind::Data, _) if self.can_be_shared(guest, len) => {
                    piece.kind = PieceKind::Shared;
                    0
                }
                (PieceKind::Data, Some(packed)) => self.fetch(segment, packed, guest, len, at)?,
                (PieceKind::Data, None) => self.data(segment, guest, len, at)?,
                (PieceKind::Packed, _) => self.packed(segment, guest, len, at)?,
            };
        }
        segment.pieces = pieces;
        Ok(bytes_read)
    }

    /// Returns true if the target can share the blocks of all these bytes, so that they need not be read.
    fn can_be_shared(&self, guest: u64, len: u64) -> bool {
        let Some(device) = self.shares else {
            return false;
        };
        let (mut position, end) = (guest, guest.saturating_add(len));
        while position < end {
            let place = self.source.place_of(position, end - position);
            let Some(place) = place.filter(|place| place.handle.is_some()) else {
                return false;
            };
            let on_device = place.file.is_some_and(|file| file.device == device);
            let next = position.saturating_add(place.len.max(1));
            let last = next >= end && end >= self.source.size();
            let whole = [position, place.offset, if last { 0 } else { place.len }];
            if !on_device || whole.iter().any(|at| at % BLOCK != 0) {
                return false;
            }
            position = next;
        }
        true
    }

    /// Decompresses the units that wait, and hashes everything.
    pub(super) fn complete(&self, segment: &mut Segment) -> Result<()> {
        if let Some(packed) = self.later {
            let unit_len = usize::try_from(packed.unit()).unwrap_or(usize::MAX);
            for (unit, at) in std::mem::take(&mut segment.waiting) {
                let bytes = segment.taken.get(unit.at..unit.at.saturating_add(unit.len));
                let out = segment.data.get_mut(at, unit_len);
                packed.unpack(&unit, bytes.unwrap_or_default(), out)?;
            }
        }
        let Some(leaves) = &self.leaves else {
            return Ok(());
        };
        let pieces = std::mem::take(&mut segment.pieces);
        for piece in &pieces {
            if matches!(piece.kind, PieceKind::Data | PieceKind::Packed) {
                let Piece { guest, len, at, .. } = *piece;
                let left = self.source.size().saturating_sub(guest);
                let len = usize::try_from(len.min(left)).unwrap_or(usize::MAX);
                hash(leaves, segment, guest, at, len);
            }
        }
        segment.pieces = pieces;
        Ok(())
    }

    fn data(&self, segment: &mut Segment, guest: u64, len: u64, at: usize) -> Result<u64> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        // The last unit of a disk is padded.
        let room = segment.data.get_mut(at, len.next_multiple_of(self.unit));
        let (buf, padding) = room.split_at_mut(len.min(room.len()));
        let n = read_padded(self.source, buf, guest)?;
        padding.fill(0);
        Ok(n as u64)
    }

    /// As [`data`](Self::data), but units that are needed whole stay compressed.
    fn fetch(
        &self,
        segment: &mut Segment,
        packed: &dyn PackedSource,
        guest: u64,
        len: u64,
        at: usize,
    ) -> Result<u64> {
        let (unit, end) = (packed.unit(), guest + len);
        let used = usize::try_from(len).unwrap_or(usize::MAX);
        let room = segment.data.get_mut(at, used.next_multiple_of(self.unit));
        room.get_mut(used..).unwrap_or_default().fill(0);
        // Compressed units are hardly longer than decompressed ones.
        let room = used.saturating_add(used / 16);
        let reserved = segment.taken.try_reserve_exact(room);
        reserved.map_err(|e| Error::io("keep packed units", std::io::Error::other(e)))?;
        let mut position = guest;
        while position < end {
            let into = at + usize::try_from(position - guest).unwrap_or(usize::MAX);
            let left = end - position;
            let known = position < self.source.size();
            let run = match known {
                true => self.source.extent_at(position, left)?,
                false => return Ok(self.data(segment, position, left, into)? + position - guest),
            };
            // From the first whole unit of the run to its last one.
            let whole = match run.kind == ExtentKind::Compressed && run.depth == 0 {
                true if position % unit == 0 => run.len - run.len % unit,
                _ => 0,
            };
            let mut done = 0;
            while done < whole {
                let (buf, first) = (&mut segment.taken, segment.units.len());
                let count =
                    packed.read_packed(position + done, whole - done, buf, &mut segment.units)?;
                for taken in segment.units.drain(first..) {
                    let from = usize::try_from(taken.guest - guest).unwrap_or(usize::MAX);
                    segment.waiting.push((taken, at + from));
                }
                if count == 0 {
                    break;
                }
                done += count as u64 * unit;
            }
            if done == 0 {
                // Up to where a whole unit begins, if one does.
                done = match run.kind {
                    ExtentKind::Compressed if position % unit > 0 => {
                        run.len.min(unit - position % unit)
                    }
                    _ => run.len,
                };
                self.data(segment, position, done, into)?;
            }
            position += done;
        }
        Ok(len)
    }

    /// Reads units as they are packed. Those that cannot be had so are told by their absence from
    /// `units`.
    fn packed(&self, segment: &mut Segment, guest: u64, len: u64, at: usize) -> Result<u64> {
        let Some(source) = self.packed else {
            return self.data(segment, guest, len, at);
        };
        let (unit, mut done, mut whole) = (source.unit(), 0, true);
        while done < len {
            let (buf, units) = (&mut segment.taken, &mut segment.units);
            let count = source.read_packed(guest + done, len - done, buf, units)?;
            whole &= count > 0;
            done += (count as u64).max(1) * unit;
        }
        if self.unpack || !whole {
            self.data(segment, guest, len, at)?;
        }
        Ok(len)
    }
}

/// Hashes the whole leaves of a piece, and notes parts of others.
fn hash(leaves: &Leaves, segment: &mut Segment, guest: u64, at: usize, len: usize) {
    let mut done = 0;
    while done < len {
        let guest = guest + done as u64;
        let left = usize::try_from(LEAF - guest % LEAF).unwrap_or(usize::MAX);
        let n = left.min(len - done);
        let at = at + done;
        let leaf = match n as u64 == LEAF {
            true => Leaf::Whole {
                guest,
                hash: leaves.hash(segment.data.get(at, n)),
            },
            false => Leaf::Part { guest, at, len: n },
        };
        segment.leaves.push(leaf);
        done += n;
    }
}

/// Prepares segments for one target.
#[derive(Debug)]
pub(super) struct Preparer<'a> {
    pub(super) source: &'a dyn BlockSource,
    pub(super) ground: Ground,
    pub(super) encoder: Option<Arc<dyn Encoder>>,
    /// The target's virtual size in bytes.
    pub(super) size: u64,
    /// Bytes of the target's unit.
    pub(super) unit: usize,
    /// Bytes that are stored or left out as one: what is all zero, or the same as below, is left out.
    pub(super) granule: usize,
    pub(super) find_zeros: bool,
    /// Stores every piece of data as it is, and leaves nothing out.
    pub(super) whole: bool,
    /// The way in which it takes compressed units of the source, if it does.
    pub(super) take: Option<(Take, crate::packed::Codec)>,
    /// True if the source cannot be read again.
    pub(super) once: bool,
}

impl Preparer<'_> {
    /// Decides what of a segment has to be placed.
    pub(super) fn prepare(&self, segment: &Segment, work: &mut Work) -> Result<()> {
        work.clear();
        let mut units = segment.units.as_slice();
        for piece in &segment.pieces {
            // Another target may be larger: some round their sizes up.
            let piece = piece.up_to(self.size);
            let Piece { guest, len, at, .. } = piece;
            match piece.kind {
                _ if len == 0 => {}
                PieceKind::Zero if matches!(self.ground, Ground::Zero) => {}
                PieceKind::Zero | PieceKind::Shared => work.push_step(piece.whole()),
                PieceKind::Packed if self.take.is_some() => {
                    units = self.packed(segment, work, units, guest, len, at)?;
                }
                PieceKind::Data | PieceKind::Packed => self.data(segment, work, guest, len, at)?,
            }
        }
        Ok(())
    }

    fn data(
        &self,
        segment: &Segment,
        work: &mut Work,
        guest: u64,
        len: u64,
        at: usize,
    ) -> Result<()> {
        if self.whole {
            work.push_step(Step::Verbatim { guest, len, at });
            return Ok(());
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if let Ground::Image(image) = &self.ground {
            work.below.clear();
            work.below.resize(len, 0);
            read_padded(image, &mut work.below, guest)?;
        }
        self.cut(segment, work, guest, at, len)
    }

    /// Takes compressed units up to the end of a piece, and returns those behind it.
    fn packed<'s>(
        &self,
        segment: &'s Segment,
        work: &mut Work,
        units: &'s [PackedUnit],
        guest: u64,
        len: u64,
        at: usize,
    ) -> Result<&'s [PackedUnit]> {
        let first = segment.units.len() - units.len();
        let mut units = units.iter().enumerate().peekable();
        let (end, mut position, mut taken) = (guest + len, guest, 0);
        while position < end {
            let unit = units.next_if(|(_, unit)| unit.guest == position);
            let into = usize::try_from(position - guest).unwrap_or(usize::MAX);
            let n = (self.unit as u64).min(end - position);
            taken += usize::from(unit.is_some());
            let wrapped = match (unit, self.take) {
                (Some((i, unit)), Some((Take::AsTheyAre, _))) => {
                    work.push_copied(&segment.units, first + i, unit);
                    true
                }
                (Some((_, unit)), Some((Take::Wrapped, codec))) => {
                    let packed = segment.taken.get(unit.at..unit.at + unit.len);
                    let packed = packed.unwrap_or_default();
                    self.pack(work, position, |encoder, out| {
                        encoder.wrap(position, codec, packed, out)
                    })? == Form::Packed
                }
                _ => false,
            };
            match (wrapped, unit) {
                (true, _) => {}
                (false, Some(_)) => self.unpacked(segment, work, position, n, at + into)?,
                // Where units are missing, the piece was read.
                (false, None) => self.data(segment, work, position, n, at + into)?,
            }
            position += n;
        }
        let left = first + taken;
        Ok(segment.units.get(left..).unwrap_or_default())
    }

    /// Encodes a unit anew that could not be wrapped.
    fn unpacked(
        &self,
        segment: &Segment,
        work: &mut Work,
        guest: u64,
        len: u64,
        at: usize,
    ) -> Result<()> {
        let mut unit = vec![0; self.unit];
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let whole = unit.get_mut(..len).unwrap_or_default();
        if self.once {
            whole.copy_from_slice(segment.data.get(at, whole.len()));
        } else {
            read_padded(self.source, whole, guest)?;
        }
        let form = self.pack(work, guest, |encoder, out| {
            encoder.encode(guest, &unit, out)
        })?;
        match form {
            Form::Packed => Ok(()),
            Form::Verbatim => Err(Error::invalid(format!(
                "the unit at {guest} can neither be wrapped nor packed"
            ))),
        }
    }

    /// Cuts the `len` bytes at `at` into what is stored and what need not be.
    fn cut(
        &self,
        segment: &Segment,
        work: &mut Work,
        guest: u64,
        at: usize,
        len: usize,
    ) -> Result<()> {
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
                && work
                    .below
                    .get(done..end)
                    .is_some_and(|below| below == bytes);
            if same {
                // It shows through.
            } else if self.find_zeros && is_zero(bytes) {
                if !matches!(self.ground, Ground::Zero) {
                    let len = n as u64;
                    work.push_step(Step::Zero { guest, len });
                }
            } else {
                self.encode(segment, work, guest, from, n)?;
            }
            done = end;
        }
        Ok(())
    }

    /// Encodes one granule, or leaves it as it is.
    fn encode(
        &self,
        segment: &Segment,
        work: &mut Work,
        guest: u64,
        at: usize,
        len: usize,
    ) -> Result<()> {
        let whole = len as u64;
        let step = Step::Verbatim {
            guest,
            len: whole,
            at,
        };
        let unit = segment.data.get(at, self.unit);
        // The writer of an image with compressed units left out what looks like noise.
        let hopeless = matches!(self.take, Some((Take::AsTheyAre, _))) && looks_random(unit);
        if self.encoder.is_none() || hopeless {
            work.push_step(step);
            return Ok(());
        }
        let form = self.pack(work, guest, |encoder, out| encoder.encode(guest, unit, out))?;
        if form == Form::Verbatim {
            work.push_step(step);
        }
        Ok(())
    }

    /// Notes the bytes that `pack` appends as one compressed unit, if it compresses.
    fn pack(
        &self,
        work: &mut Work,
        guest: u64,
        pack: impl FnOnce(&dyn Encoder, &mut Vec<u8>) -> Result<Form>,
    ) -> Result<Form> {
        let Some(encoder) = &self.encoder else {
            return Ok(Form::Verbatim);
        };
        let start = work.packed.len();
        let form = pack(&**encoder, &mut work.packed)?;
        if form == Form::Packed {
            let len = u32::try_from(work.packed.len() - start)
                .map_err(|_| Error::invalid("a packed unit is longer than 4 GiB"))?;
            let first = work.parts.len();
            work.parts.push(Part { guest, len });
            work.push_step(Step::Packed {
                first,
                count: 1,
                at: start,
            });
        }
        Ok(form)
    }
}

/// Returns true if the bytes in the middle of a unit are spread as evenly as noise.
fn looks_random(unit: &[u8]) -> bool {
    const SAMPLE: usize = 4096;
    if unit.len() < SAMPLE {
        return false;
    }
    let start = (unit.len() - SAMPLE) / 2;
    let mut counts = [0_u32; 256];
    for byte in unit.get(start..start + SAMPLE).unwrap_or_default() {
        if let Some(count) = counts.get_mut(usize::from(*byte)) {
            *count += 1;
        }
    }
    // Of noise, the squares add up to N + N² / 256, and seldom to a twentieth more.
    let squares: u32 = counts.iter().map(|count| count * count).sum();
    let n: u32 = 4096;
    squares < (n + n * n / 256) / 20 * 21
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_told_from_text_and_from_code() {
        let mut state = 1_u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[0]
        })
        .take(65_536)
        .collect();
        assert!(looks_random(&noise));
        let text: Vec<u8> = noise.iter().map(|byte| b'a' + byte % 26).collect();
        assert!(!looks_random(&text));
        // Every eighth byte is zero, as in code and in tables of numbers.
        let mut sparse = noise.clone();
        sparse.iter_mut().step_by(8).for_each(|byte| *byte = 0);
        assert!(!looks_random(&sparse));
        assert!(!looks_random(&noise[..512]));
    }
}
