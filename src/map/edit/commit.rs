//! Ways to bring changes to stable storage.

use std::fmt::Debug;

use crate::error::Result;
use crate::target::{BlockTarget, Zeroes};

use super::changes::{Changes, Rank};

/// A way to bring changes to stable storage, such that a crash leaves the file no worse than before.
pub(crate) trait Commit: Debug + Send + Sync {
    /// Writes `changes` to `file`, and returns once they are on stable storage.
    ///
    /// # Errors
    /// Errors of writing. The same changes may be committed again.
    fn commit(&self, file: &dyn BlockTarget, changes: &Changes) -> Result<()>;
}

/// Writes by rank, with a sync after each rank that has changes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ordered;

impl Commit for Ordered {
    fn commit(&self, file: &dyn BlockTarget, changes: &Changes) -> Result<()> {
        let mut unsynced = file.size() < changes.size();
        if unsynced {
            file.set_size(changes.size())?;
        }
        for rank in Rank::ALL {
            for (start, patch) in changes.with(rank) {
                match &patch.bytes {
                    Some(bytes) => file.write_all_at(bytes, start)?,
                    None => file.write_zeroes_at(start, patch.end - start, Zeroes::Discard)?,
                }
                unsynced = true;
            }
            if std::mem::take(&mut unsynced) {
                file.sync()?;
            }
        }
        Ok(())
    }
}
