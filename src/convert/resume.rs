//! Conversions that continue where an earlier one was stopped.

use std::path::Path;

use crate::convert::destination::output_path;
use crate::convert::input::Input;
use crate::convert::journal::Journal;
use crate::convert::lane::Resumable;
use crate::convert::options::ConvertOptions;
use crate::digest::{Algorithm, Hasher};
use crate::error::{Error, Result};
use crate::image::WriteShape;
use crate::source::BlockSourceExt;
use crate::storage::{PendingFile, beside};

impl ConvertOptions {
    pub(super) fn check_verifiable(&self) -> Result<()> {
        match self.image.verify && self.image.overlay.is_some() {
            true => Err(Error::invalid(
                "an overlay cannot be read back before it has its name, beside its backing file; \
                 compare it afterwards",
            )),
            false => Ok(()),
        }
    }

    pub(super) fn check_read_once(&self, source: Input<'_>) -> Result<()> {
        match source.arriving {
            Some(_) if self.image.verify => Err(Error::invalid(
                "a stream cannot be compared with what was made of it; make digests instead",
            )),
            Some(_) if self.job.resumable.is_some() => Err(Error::invalid(
                "a conversion of a stream cannot be resumed: what was read is gone",
            )),
            _ => Ok(()),
        }
    }

    /// Opens the journal of the conversion into `path`.
    pub(super) fn journal(
        &self,
        source: Input<'_>,
        shape: &WriteShape,
        path: &Path,
        every: u64,
    ) -> Result<Resumable> {
        if self.job.content.is_some() {
            return Err(Error::invalid(
                "a conversion that can be resumed computes no digest: the whole disk would have to be read \
                 again",
            ));
        }
        if !self.image.is_repeatable(source.disk.size())? {
            return Err(Error::invalid(
                "a conversion that can be resumed needs identifiers that are the same each time, not fresh \
                 ones",
            ));
        }
        let mut ends = Hasher::new(Algorithm::Md5)?;
        let mut bytes = vec![0; 64 << 10];
        for at in [0, source.disk.size().saturating_sub(bytes.len() as u64)] {
            let n = source.disk.read_at(&mut bytes, at)?;
            ends.update(bytes.get(..n).unwrap_or_default());
        }
        let identity = format!(
            "{} {:?} {:?} {} {:?} {} {:?} {}",
            env!("CARGO_PKG_VERSION"),
            self.image.format,
            self.image.create,
            self.image.sparse_size,
            shape.files,
            source.disk.size(),
            source.disk.identity(),
            ends.finish(),
        );
        let journal_path = beside(path, ".journal")?;
        let there = shape.files.iter().all(|file| {
            let part = output_path(path, file).and_then(|path| PendingFile::part_of(&path));
            part.is_ok_and(|part| part.is_file())
        });
        let (journal, begun) = Journal::open(&journal_path, identity.as_bytes(), every)?;
        Ok(Resumable {
            journal,
            begun: begun && there,
            identity: identity.into_bytes(),
        })
    }
}
