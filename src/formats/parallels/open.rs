//! Opening an image, and what it says of itself.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::{ImageInfo, Opener};
use crate::map::MappedImage;
use crate::source::{BlockSource, BlockSourceExt};

use super::PARALLELS;
use super::extension::Extension;
use super::header::{Header, RawHeader};
use super::map::ParallelsMap;

/// Opens the image in `file`.
pub(super) fn open(
    file: Arc<dyn BlockSource>,
    opener: &dyn Opener,
) -> Result<MappedImage<ParallelsMap>> {
    if opener.snapshot().is_some() {
        return Err(Error::invalid("a Parallels image has no snapshots"));
    }
    let header = Header::read(&file)?;
    let limits = opener.limits();
    limits.check_virtual_size(header.size)?;
    let len = header.entries.saturating_mul(4);
    limits.check_metadata("the BAT", len)?;
    let mut bat = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut bat, RawHeader::LEN as u64)?;
    let extension = Extension::read(&header, &file, limits)?;
    let warnings = header.warnings.iter().chain(&extension.warnings);
    let info = ImageInfo {
        virtual_size: header.size,
        cluster_size: Some(header.cluster_size()),
        dirty: header.in_use,
        bitmaps: extension.bitmaps,
        unknown_to_qemu: true,
        warnings: warnings.cloned().collect(),
        ..ImageInfo::default()
    };
    let map = ParallelsMap::new(header, Arc::clone(&file), bat, extension.clusters);
    MappedImage::open(PARALLELS, file, map, info, None, opener)
}
