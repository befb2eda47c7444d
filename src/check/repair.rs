//! Repair of an image: in a new file that is whole or absent, or in place.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::{Fixed, Format, Scope};
use crate::open::OpenOptions;
use crate::resolver::{DenyReferences, Resolver};
use crate::source::{BlockSource, BlockSourceExt};
use crate::storage::{FileStorage, PendingFile, identity_of};
use crate::target::BlockTarget;

use super::Checked;

/// Bytes that are copied at once.
const PIECE: usize = 1 << 20;

/// A repair of images.
#[derive(Debug, Clone)]
pub struct Repair {
    options: OpenOptions,
    scope: Scope,
}

/// Result of a repair.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Repaired {
    /// Numbers of repaired findings.
    pub fixed: Fixed,
    /// A check of the repaired image.
    pub checked: Checked,
}

impl Repair {
    /// A repair of what is in `scope`, of images that are opened with `options`.
    pub fn new(options: OpenOptions, scope: Scope) -> Self {
        Repair { options, scope }
    }

    /// Writes a repaired copy of the image at `path` to a new file at `to`, which is whole in the end or absent.
    /// The image itself is only read.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a format without repairs, [`Error::InvalidInput`] if both are the same file, and
    /// errors of [`Format::repairs`], reading and writing.
    pub fn to_path(&self, path: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<Repaired> {
        let (path, to) = (path.as_ref(), to.as_ref());
        let source: Arc<dyn BlockSource> = Arc::new(FileStorage::open(path)?);
        let there = fs::metadata(to).ok();
        let there = there.and_then(|metadata| identity_of(&metadata));
        if there.is_some_and(|file| source.uses_file(file)) {
            return Err(Error::invalid(
                "the repaired copy would replace the image itself; repair it in place if that is meant",
            ));
        }
        let resolver = self.options.resolver_at(path)?;
        let format = self.options.format_among(&self.options.detect(&source)?)?;
        let pending = PendingFile::create(to)?;
        let file: Arc<dyn BlockTarget> = pending.storage();
        copy(&source, &file)?;
        let repaired = self.run(format, file, resolver)?;
        pending.commit(true)?;
        Ok(repaired)
    }

    /// Repairs the image at `path` in place. A crash at any time leaves an image that is not worse than before.
    ///
    /// # Errors
    /// As [`to_path`](Self::to_path).
    pub fn in_place(&self, path: impl AsRef<Path>) -> Result<Repaired> {
        let path = path.as_ref();
        let file: Arc<dyn BlockTarget> = Arc::new(FileStorage::open_writable(path)?);
        let resolver = self.options.resolver_at(path)?;
        let format = self.options.format_among(&self.options.detect(&file)?)?;
        self.run(format, file, resolver)
    }

    /// Repairs the image in storage of the caller in place. References are denied unless the options have a
    /// [`resolver`](OpenOptions::resolver).
    ///
    /// # Errors
    /// As [`to_path`](Self::to_path).
    pub fn target(&self, file: Arc<dyn BlockTarget>) -> Result<Repaired> {
        let resolver = self.options.resolver_or(|| Arc::new(DenyReferences));
        let format = self.options.format_among(&self.options.detect(&file)?)?;
        self.run(format, file, resolver)
    }

    fn run(
        &self,
        format: &dyn Format,
        file: Arc<dyn BlockTarget>,
        resolver: Arc<dyn Resolver>,
    ) -> Result<Repaired> {
        let chain = self
            .options
            .own_files(Arc::clone(&resolver), file.identity());
        chain.check_request(format)?;
        let repairs = format.repairs();
        if repairs.is_empty() {
            return Err(Error::unsupported(
                format.id(),
                "repair",
                "convert what can be read of it",
            ));
        }
        let within = repairs.iter().filter(|(scope, _)| *scope <= self.scope);
        let fixed = match within.max_by_key(|(scope, _)| *scope) {
            Some((_, repair)) => repair(&file, &chain.request())?,
            None => Fixed::default(),
        };
        let source: Arc<dyn BlockSource> = Arc::new(file);
        let checked = Checked::as_format(format, &source, &self.options, resolver)?;
        Ok(Repaired { fixed, checked })
    }
}

/// Copies a file with its holes.
fn copy(from: &dyn BlockSource, to: &dyn BlockTarget) -> Result<()> {
    to.set_size(from.size())?;
    let mut buf = vec![0; PIECE];
    for extent in from.extents() {
        let extent = extent?;
        if extent.kind.reads_as_zero() {
            continue;
        }
        let mut at = extent.start;
        while at < extent.end() {
            let len = usize::try_from(extent.end() - at).map_or(PIECE, |left| left.min(PIECE));
            let piece = buf.get_mut(..len).unwrap_or_default();
            from.read_exact_at(piece, at)?;
            to.write_all_at(piece, at)?;
            at += len as u64;
        }
    }
    Ok(())
}
