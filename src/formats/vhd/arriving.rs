//! A fixed disk while it arrives: all of the file but the footer, which comes last.

use std::sync::Arc;

use crate::error::Result;
use crate::extent::Extent;
use crate::image::{Disk, DiskImage, Image, ImageInfo, Request};
use crate::source::{BlockSource, check_extent, readable};

use super::footer::COOKIE;
use super::{SECTOR, VHD};

/// A fixed disk until its footer has come.
#[derive(Debug)]
struct Fixed(Arc<dyn BlockSource>);

/// Opens the image that arrives in `file`. A dynamic one begins with a copy of its footer.
///
/// # Errors
/// As [`Format::open`](crate::Format::open).
pub(super) fn open(file: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
    let mut start = [0; COOKIE.len()];
    let n = file.read_at(&mut start, 0)?;
    if n == start.len() && start == COOKIE {
        return super::open::open(file, request);
    }
    let info = ImageInfo {
        virtual_size: file.size().saturating_sub(SECTOR),
        ..ImageInfo::default()
    };
    let disk = Fixed(Arc::clone(&file));
    let image = DiskImage::new(VHD, file, disk, info);
    Ok(Box::new(image.with_trailer(SECTOR)))
}

impl BlockSource for Fixed {
    fn size(&self) -> u64 {
        self.0.size().saturating_sub(SECTOR)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let n = readable(buf.len(), offset, self.size());
        self.0.read_at(buf.get_mut(..n).unwrap_or_default(), offset)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let limit = check_extent(offset, limit, self.size())?;
        self.0.extent_at(offset, limit)
    }
}

impl Disk for Fixed {}
