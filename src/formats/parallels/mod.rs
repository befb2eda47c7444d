//! Parallels' expandable disk image, both magics of version 2 (QEMU, `docs/interop/prl-xml.rst` and
//! `parallels.rst`). One file is read; a bundle of files and its `DiskDescriptor.xml` are not, and
//! nothing is written.

mod extension;
mod header;
mod map;
mod open;

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format_id::FormatId;
use crate::image::{CreateOptions, Format, Image, ImageWriter, Opener, Probe, Verdict};
use crate::source::BlockSource;

/// `parallels`.
pub const PARALLELS: FormatId = FormatId::new("parallels");

/// The format of Parallels.
#[derive(Debug, Clone, Copy)]
pub struct Parallels;

impl Format for Parallels {
    fn id(&self) -> FormatId {
        PARALLELS
    }

    fn extensions(&self) -> &'static [&'static str] {
        &["hds", "hdd"]
    }

    fn probe(&self, window: &Probe<'_>) -> Verdict {
        if window.has(0, &header::MAGIC) {
            Verdict::found("WithoutFreeSpace", 0)
        } else if window.has(0, &header::MAGIC_EXT) {
            Verdict::found("WithouFreSpacExt", 0)
        } else {
            Verdict::Reject
        }
    }

    fn open(&self, source: Arc<dyn BlockSource>, opener: &dyn Opener) -> Result<Box<dyn Image>> {
        Ok(Box::new(open::open(source, opener)?))
    }

    fn create(&self, _: &CreateOptions) -> Result<Box<dyn ImageWriter>> {
        Err(Error::not_written(PARALLELS))
    }
}
