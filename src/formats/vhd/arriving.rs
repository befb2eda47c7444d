//! A fixed disk while it arrives: all of the file but the footer, which comes last.

use std::sync::Arc;

use crate::error::Result;
use crate::extent::Extent;
use crate::format_id::FormatId;
use crate::image::{Image, ImageInfo, Request};
use crate::reference::Reference;
use crate::source::{BlockSource, check_extent, readable};

use super::footer::COOKIE;
use super::open::VhdImage;
use super::{SECTOR, VHD};

/// What is taken for a fixed disk until its footer has come.
#[derive(Debug)]
struct Fixed {
    file: Arc<dyn BlockSource>,
    info: ImageInfo,
}

/// Opens the image that arrives in `file`. A dynamic one begins with a copy of its footer.
///
/// # Errors
/// As [`Format::open_arriving`](crate::Format::open_arriving).
pub(super) fn open(file: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
    let mut start = [0; COOKIE.len()];
    let n = file.read_at(&mut start, 0)?;
    if n == start.len() && start == COOKIE {
        return Ok(Box::new(VhdImage::open(file, request)?));
    }
    let info = ImageInfo {
        virtual_size: file.size().saturating_sub(SECTOR),
        ..ImageInfo::default()
    };
    Ok(Box::new(Fixed { file, info }))
}

impl BlockSource for Fixed {
    fn size(&self) -> u64 {
        self.file.size().saturating_sub(SECTOR)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let n = readable(buf.len(), offset, self.size());
        self.file
            .read_at(buf.get_mut(..n).unwrap_or_default(), offset)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let limit = check_extent(offset, limit, self.size())?;
        self.file.extent_at(offset, limit)
    }
}

impl Image for Fixed {
    fn format(&self) -> FormatId {
        VHD
    }

    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn references(&self) -> &[Reference] {
        &[]
    }
}
