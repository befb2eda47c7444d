//! Conversion: one source, read once, written as an image of any format, on every core.

mod options;

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::source::BlockSource;
use crate::target::BlockTarget;

pub use options::{Cancel, ConvertOptions, Progress, Summary};

impl ConvertOptions {
    /// Converts `source` into a new file at `path`, which is whole in the end or absent. What was
    /// there before is replaced only then. A block device at `path` is written in place.
    ///
    /// # Errors
    /// todo
    pub fn convert_to_path(
        &self,
        _source: &dyn BlockSource,
        _path: impl AsRef<Path>,
    ) -> Result<Summary> {
        Err(Error::invalid("not yet"))
    }

    /// Converts `source` into the file or block device at `path`, which exists and is large enough.
    /// It is written in place: a failure leaves it half written. (`qemu-img convert -n`.)
    ///
    /// # Errors
    /// todo
    pub fn convert_into_existing(
        &self,
        _source: &dyn BlockSource,
        _path: impl AsRef<Path>,
    ) -> Result<Summary> {
        Err(Error::invalid("not yet"))
    }

    /// Converts `source` into storage of the caller's: one target for each file that the format
    /// makes, the image first.
    ///
    /// # Errors
    /// todo
    pub fn convert_to_targets(
        &self,
        _source: &dyn BlockSource,
        _targets: &[Arc<dyn BlockTarget>],
    ) -> Result<Summary> {
        Err(Error::invalid("not yet"))
    }
}
