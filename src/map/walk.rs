//! The walk through the tables of an image, written once for all formats.
//!
//! A format answers for one unit; the walk merges neighbours into long runs.

use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;

use super::{BlockMap, Run};

/// A table, or a part of one, and the guest bytes for which it answers.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) guest: Range<u64>,
    /// Host offset of the first entry.
    pub(crate) host: u64,
    pub(crate) entries: Arc<Vec<u8>>,
}

impl Table {
    /// The number of entries of `len` bytes, from the one number `index` on, that are zeros: most of a sparse
    /// image's are.
    pub(crate) fn zeros(&self, index: u64, len: u64) -> u64 {
        let at = usize::try_from(index.saturating_mul(len)).unwrap_or(usize::MAX);
        let entries = self.entries.get(at..).unwrap_or_default();
        let mut zeros = 0;
        for block in entries.chunks(64) {
            if block.iter().fold(0, |or, byte| or | byte) != 0 {
                zeros += block.iter().take_while(|byte| **byte == 0).count();
                break;
            }
            zeros += block.len();
        }
        zeros as u64 / len.max(1)
    }
}

/// The table that a walk is in, so that it asks for each once and not for each entry.
#[derive(Debug, Default)]
pub(crate) struct Held(Option<Table>);

impl Held {
    /// The table that answers for `guest`, loaded by `load` unless it is held; `None` if there is none.
    pub(crate) fn table(
        &mut self,
        guest: u64,
        load: impl FnOnce() -> Result<Option<Table>>,
    ) -> Result<Option<&Table>> {
        let held = self.0.as_ref();
        if !held.is_some_and(|table| table.guest.contains(&guest)) {
            self.0 = load()?;
        }
        Ok(self.0.as_ref())
    }

    fn end(&self) -> u64 {
        self.0.as_ref().map_or(u64::MAX, |table| table.guest.end)
    }
}

/// The run at `guest`, and for how many bytes, up to `limit`, it goes on: a stored one up to where the host
/// offset jumps, a compressed one over its units only if `over_packed`.
///
/// It crosses tables that are absent, and ends with the first one that is there: the next may not have
/// arrived yet.
pub(super) fn run<M: BlockMap + ?Sized>(
    map: &M,
    held: &mut Held,
    guest: u64,
    limit: u64,
    over_packed: bool,
) -> Result<(Run, u64)> {
    let (first, mut len) = map.step(guest, held)?;
    while len < limit.min(held.end().saturating_sub(guest)) {
        // An error of a later unit is told when it is asked for.
        let Ok((next, more)) = map.step(guest.saturating_add(len), held) else {
            break;
        };
        let goes_on = match (first, next) {
            (Run::Stored { host }, Run::Stored { host: next }) => next == host.saturating_add(len),
            (Run::Packed { .. }, Run::Packed { .. }) => over_packed,
            (first, next) => first == next,
        };
        if !goes_on {
            break;
        }
        len = len.saturating_add(more);
    }
    Ok((first, len.min(limit)))
}
