//! The places at which a disk is cut into parts.

use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Result};
use crate::progress::Cancel;
use crate::source::{BlockSource, BlockSourceExt};

/// Parts begin at multiples of this many bytes: no page of a file system is written by two processes.
pub(super) const ALIGNMENT: u64 = 1 << 20;

/// The most parts that a plan has.
pub const MAX_PARTS: usize = 65_536;

/// A way to cut a conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cut {
    /// Into so many parts, at most.
    Parts(usize),
    /// Into parts with about so many bytes of data each.
    Data(u64),
}

/// A part of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Part {
    /// Start in bytes.
    pub start: u64,
    /// Length in bytes; 0 only for the one part of an empty disk.
    pub len: u64,
    /// Bytes that have to be copied, by the extents of the source when the plan was made.
    pub data: u64,
    /// A digest of bytes here and there.
    pub(super) sample: Digest,
}

impl Part {
    /// End of the part in bytes.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// Cuts a disk into parts with as much data each as the others. With `all`, zeros are data, too.
pub(super) fn parts(
    disk: &dyn BlockSource,
    cut: Cut,
    unit: u64,
    all: bool,
    cancel: &Cancel,
) -> Result<Vec<Part>> {
    let alignment = ALIGNMENT.max(unit);
    let runs = || {
        disk.extents().map(|run| {
            let run = run?;
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let is_data = all || !run.kind.reads_as_zero();
            Ok((run, if is_data { run.len } else { 0 }))
        })
    };
    let mut total = 0_u64;
    for run in runs() {
        total = total.saturating_add(run?.1);
    }
    let count = match cut {
        Cut::Parts(count) => count as u64,
        Cut::Data(0) => 0,
        Cut::Data(bytes) => total.div_ceil(bytes).max(1),
    };
    if count == 0 || count > MAX_PARTS as u64 {
        return Err(Error::invalid(format!(
            "a conversion can be cut into 1 to {MAX_PARTS} parts, and this would be {count}"
        )));
    }
    let size = disk.size();
    let goal = |number: u64| {
        let share = u128::from(total) * u128::from(number) / u128::from(count);
        u64::try_from(share).unwrap_or(u64::MAX)
    };
    let mut starts = vec![0];
    let (mut seen, mut number) = (0_u64, 1);
    for run in runs() {
        let (run, data) = run?;
        while data > 0 && number < count && goal(number) <= seen.saturating_add(data) {
            let at = run.start + goal(number).saturating_sub(seen);
            number += 1;
            let at = at.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
            if at < size && starts.last().is_none_or(|last| *last < at) {
                starts.push(at);
            }
        }
        seen = seen.saturating_add(data);
    }
    let ends = starts.iter().skip(1).copied().chain([size]);
    let mut parts = Vec::new();
    for (start, end) in starts.iter().copied().zip(ends) {
        parts.push(Part {
            start,
            len: end - start,
            data: 0,
            sample: Digest::new(Algorithm::Md5, vec![0; Algorithm::Md5.output_len()])?,
        });
    }
    let mut index = 0;
    for run in runs() {
        let (run, data) = run?;
        while let Some(part) = parts.get_mut(index) {
            if data > 0 {
                let start = run.start.max(part.start);
                part.data += run.end().min(part.end()).saturating_sub(start);
            }
            if part.end() > run.end() {
                break;
            }
            index += 1;
        }
    }
    Ok(parts)
}
