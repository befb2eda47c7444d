//! The tables of an image that is being changed.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::error::Result;
use crate::extent::Extent;
use crate::limits::Limits;
use crate::source::BlockSource;
use crate::target::BlockTarget;

use super::changes::Changes;
use super::commit::Commit;

/// A file whose changes are kept until they are committed. Reading returns changed bytes before those of the
/// file.
#[derive(Debug)]
pub(crate) struct TableStore<C> {
    file: Arc<dyn BlockTarget>,
    commit: C,
    /// Bytes of memory that changes may take up before they are committed.
    most: u64,
    changes: RwLock<Changes>,
}

impl<C: Commit> TableStore<C> {
    /// A store over `file` that keeps at most [`Limits::cache_bytes`] of changes.
    pub(crate) fn new(file: &Arc<dyn BlockTarget>, commit: C, limits: &Limits) -> Self {
        TableStore {
            file: Arc::clone(file),
            commit,
            most: limits.cache_bytes,
            changes: RwLock::default(),
        }
    }

    /// Adds changes. Where they are too many to be kept, all that were put so far are committed: each call,
    /// together with those before it, has to leave a file that is no worse than before.
    ///
    /// # Errors
    /// As [`Commit::commit`].
    pub(crate) fn put(&self, changes: Changes) -> Result<()> {
        let mut kept = self.changes_mut();
        kept.merge(changes);
        match kept.kept() > self.most {
            true => self.commit_all(&mut kept),
            false => Ok(()),
        }
    }

    /// Brings all changes to stable storage.
    ///
    /// # Errors
    /// As [`Commit::commit`]. The changes are kept then.
    pub(crate) fn commit(&self) -> Result<()> {
        self.commit_all(&mut self.changes_mut())
    }

    fn commit_all(&self, changes: &mut Changes) -> Result<()> {
        self.commit.commit(&self.file, changes)?;
        *changes = Changes::default();
        Ok(())
    }

    fn changes(&self) -> RwLockReadGuard<'_, Changes> {
        self.changes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn changes_mut(&self) -> RwLockWriteGuard<'_, Changes> {
        self.changes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Commit> BlockSource for TableStore<C> {
    fn size(&self) -> u64 {
        self.changes().size_over(self.file.size())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.changes().read_at(&self.file, buf, offset)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.changes().extent_at(&self.file, offset, limit)
    }
}
