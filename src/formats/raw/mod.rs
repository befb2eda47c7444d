//! Raw: the bytes of the file are the bytes of the disk.

mod write;

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::format_id::FormatId;
use crate::image::{CreateOptions, Format, Image, ImageInfo, ImageWriter, Probe, Request, Verdict};
use crate::reference::Reference;
use crate::source::{BlockSource, BlockSourceExt, FileIdentity, Place, Salvageable, Stored};

pub use write::{Preallocation, RawOptions};

/// `raw`.
pub const RAW: FormatId = FormatId::new("raw");

/// The format raw. It has no signature: it is never detected, only asked for.
#[derive(Debug, Clone, Copy)]
pub struct Raw;

impl Format for Raw {
    fn id(&self) -> FormatId {
        RAW
    }

    fn probe(&self, _: &Probe<'_>) -> Verdict {
        Verdict::Reject
    }

    fn open(&self, source: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
        if request.snapshot.is_some() {
            return Err(Error::invalid("a raw disk has no snapshots"));
        }
        let info = ImageInfo {
            virtual_size: source.size(),
            ..ImageInfo::default()
        };
        Ok(Box::new(RawImage { source, info }))
    }

    fn create(&self, options: &CreateOptions) -> Result<Box<dyn ImageWriter>> {
        RawOptions::parse(options)?.writer(options.virtual_size)
    }
}

/// A raw disk. Its size is the file's, to the byte.
#[derive(Debug)]
struct RawImage {
    source: Arc<dyn BlockSource>,
    info: ImageInfo,
}

impl BlockSource for RawImage {
    fn size(&self) -> u64 {
        self.source.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.source.read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.source.extent_at(offset, limit)
    }

    fn block_size(&self) -> u64 {
        self.source.block_size()
    }

    fn stored(&self) -> Option<&dyn Stored> {
        Some(self)
    }

    fn salvage(&self) -> Option<&dyn Salvageable> {
        Some(self)
    }
}

impl Stored for RawImage {
    fn identity(&self) -> Option<FileIdentity> {
        self.source.identity()
    }

    fn uses_file(&self, file: FileIdentity) -> bool {
        self.source.uses_file(file)
    }

    fn depth_of(&self, file: FileIdentity, format: FormatId) -> Option<u16> {
        (format == RAW && Stored::identity(self) == Some(file)).then_some(0)
    }

    fn place_of(&self, offset: u64, limit: u64) -> Option<Place<'_>> {
        self.source.place_of(offset, limit)
    }
}

impl Salvageable for RawImage {
    fn lost_with(&self, offset: u64) -> u64 {
        self.source.lost_with(offset)
    }
}

impl Image for RawImage {
    fn format(&self) -> FormatId {
        RAW
    }

    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn references(&self) -> &[Reference] {
        &[]
    }
}
