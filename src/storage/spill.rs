//! A spill file: what of a stream comes before it is needed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::name::quoted_path;
use crate::source::BlockSource;
use crate::storage::FileStorage;
use crate::storage::window::{gap, part};
use crate::target::BlockTarget;

/// The most runs of bytes that lie apart.
const MOST_RUNS: usize = 1 << 18;

/// A file without a name that holds parts of a stream, no more than a limit allows.
#[derive(Debug)]
pub(crate) struct Spill {
    file: Arc<dyn BlockTarget>,
    /// Runs by their start in the stream: the end there, and the start in the file.
    runs: BTreeMap<u64, (u64, u64)>,
    used: u64,
    most: u64,
}

impl Spill {
    /// Creates a file in `folder` without a name, which the system removes when it is closed.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be created.
    pub(crate) fn create(folder: &Path, most: u64) -> Result<Self> {
        let file = tempfile::tempfile_in(folder).map_err(|e| {
            let folder = quoted_path(folder);
            Error::io(format!("create a spill file in {folder}"), e)
        })?;
        Ok(Spill {
            file: Arc::new(FileStorage::from_file(file)?),
            runs: BTreeMap::new(),
            used: 0,
            most,
        })
    }

    /// Takes bytes of the stream, as far as it has them not yet.
    pub(super) fn write(&mut self, start: u64, bytes: &[u8]) -> Result<()> {
        let end = start + bytes.len() as u64;
        while let Some((from, to)) = gap(&self.runs, |(end, _)| *end, start, end) {
            self.append(from, part(bytes, start, from, to))?;
        }
        Ok(())
    }

    fn append(&mut self, at: u64, piece: &[u8]) -> Result<()> {
        let host = self.used;
        let end = at + piece.len() as u64;
        self.used = host.saturating_add(piece.len() as u64);
        if self.used > self.most {
            return Err(Error::invalid(format!(
                "more than {} bytes of the stream would have to be spilled; allow a larger spill file",
                self.most
            )));
        }
        self.file.write_all_at(piece, host)?;
        let before = self.runs.range_mut(..at).next_back();
        match before {
            Some((start, (known, from))) if *known == at && *from + (at - *start) == host => {
                *known = end;
            }
            _ => {
                self.runs.insert(at, (end, host));
            }
        }
        if self.runs.len() > MOST_RUNS {
            return Err(Error::invalid(
                "the stream is in too many pieces to be spilled; write it to a file first",
            ));
        }
        Ok(())
    }

    /// Reads what it has from `at` on, in one piece.
    pub(super) fn read(&self, buf: &mut [u8], at: u64) -> Result<usize> {
        let Some((start, (end, host))) = self.runs.range(..=at).next_back() else {
            return Ok(0);
        };
        let left = end.saturating_sub(at);
        let n = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
        let to = buf.get_mut(..n).unwrap_or_default();
        self.file.read_at(to, host + (at - start))
    }
}
