//! Raw: the bytes of the file are the bytes of the disk.

mod write;

use std::sync::Arc;

use crate::error::Result;
use crate::format_id::FormatId;
use crate::image::{CreateFn, DiskImage, Format, Image, ImageInfo, Probe, Request, Verdict};
use crate::source::BlockSource;

pub use write::{Preallocation, RawOptions};

/// `raw`.
pub const RAW: FormatId = FormatId::new("raw");

/// The format raw. It has no signature: it is never detected, only named.
#[derive(Debug, Clone, Copy)]
pub struct Raw;

impl Format for Raw {
    fn id(&self) -> FormatId {
        RAW
    }

    fn probe(&self, _: &Probe<'_>) -> Verdict {
        Verdict::Reject
    }

    fn open(&self, source: Arc<dyn BlockSource>, _: &Request<'_>) -> Result<Box<dyn Image>> {
        let info = ImageInfo {
            virtual_size: source.size(),
            ..ImageInfo::default()
        };
        let disk = Arc::clone(&source);
        let image = DiskImage::new(RAW, source, disk, info);
        Ok(Box::new(image.with_trailer(0)))
    }

    fn creator(&self) -> Option<CreateFn> {
        Some(|options| RawOptions::parse(options)?.writer(options.virtual_size))
    }
}
