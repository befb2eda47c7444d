//! Sources one behind the other.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::packed::PackedSource;
use crate::source::{
    BlockSource, BlockSourceExt, FileIdentity, Place, Salvageable, Stored, check_extent, readable,
};

/// Sources one behind the other, as one: a disk in numbered parts, a disk split into extent files.
#[derive(Debug, Clone)]
pub struct Concat {
    /// Each part with the offset at which it ends; no part is empty.
    parts: Vec<(u64, Arc<dyn BlockSource>)>,
}

impl Concat {
    /// The parts in order.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if they are together longer than an offset can say.
    pub fn new(parts: impl IntoIterator<Item = Arc<dyn BlockSource>>) -> Result<Self> {
        let mut end = 0_u64;
        let mut ends = Vec::new();
        for part in parts.into_iter().filter(|part| part.size() > 0) {
            end = end
                .checked_add(part.size())
                .ok_or_else(|| Error::invalid("the parts are together longer than 2^64 bytes"))?;
            ends.push((end, part));
        }
        Ok(Concat { parts: ends })
    }

    /// The part that holds `offset`: where in the part that is, and how much is left of it.
    fn part_at(&self, offset: u64) -> Option<(&Arc<dyn BlockSource>, u64, u64)> {
        let index = self.parts.partition_point(|(end, _)| *end <= offset);
        let (end, part) = self.parts.get(index)?;
        let left = end - offset;
        Some((part, part.size().checked_sub(left)?, left))
    }
}

impl BlockSource for Concat {
    fn packed(&self) -> Option<&dyn PackedSource> {
        match self.parts.as_slice() {
            [(_, only)] => only.packed(),
            _ => None,
        }
    }

    fn size(&self) -> u64 {
        self.parts.last().map_or(0, |(end, _)| *end)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let want = readable(buf.len(), offset, self.size());
        let mut done = 0;
        while done < want {
            let Some((part, inside, left)) = self.part_at(offset + done as u64) else {
                break;
            };
            let n = readable(want - done, 0, left);
            let Some(piece) = buf.get_mut(done..done + n) else {
                break;
            };
            let read = part.read_at(piece, inside)?;
            done += read;
            if read < n {
                break;
            }
        }
        Ok(done)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let limit = check_extent(offset, limit, self.size())?;
        let (part, inside, left) =
            self.part_at(offset)
                .ok_or(Error::out_of_range(offset, limit, self.size()))?;
        let run = part.extent_at(inside, limit.min(left))?;
        Ok(Extent {
            start: offset,
            ..run
        })
    }

    fn block_size(&self) -> u64 {
        self.parts
            .iter()
            .map(|(_, part)| part.block_size())
            .max()
            .unwrap_or(1)
    }

    fn stored(&self) -> Option<&dyn Stored> {
        Some(self)
    }

    fn salvage(&self) -> Option<&dyn Salvageable> {
        Some(self)
    }
}

impl Stored for Concat {
    fn uses_file(&self, file: FileIdentity) -> bool {
        self.parts.iter().any(|(_, part)| part.uses_file(file))
    }

    fn place_of(&self, offset: u64, limit: u64) -> Option<Place<'_>> {
        let (part, inside, left) = self.part_at(offset)?;
        part.place_of(inside, left.min(limit))
    }
}

impl Salvageable for Concat {
    fn lost_with(&self, offset: u64) -> u64 {
        self.part_at(offset)
            .map_or(1, |(part, inside, left)| part.lost_with(inside).min(left))
    }
}
