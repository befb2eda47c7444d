//! Opening an image, and what it says of itself.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::{DiskImage, Image, Request};
use crate::map::{Below, Mapped};
use crate::source::BlockSource;

use super::PARALLELS;
use super::bundle;
use super::descriptor;
use super::expandable::Expandable;

/// Opens the image in `file`: of one file, or of those that a descriptor lists.
pub(super) fn open(file: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
    if descriptor::is_at_start(&file)? {
        return bundle::open(file, request);
    }
    if request.snapshot.is_some() {
        return Err(Error::invalid("a Parallels image has no snapshots"));
    }
    let Expandable { map, info } = Expandable::read(&file, request)?;
    let disk = Mapped::new(map, Arc::clone(&file), Below::Nothing, info.virtual_size);
    Ok(Box::new(DiskImage::new(PARALLELS, file, disk, info)))
}
