//! A file that is described and not read, in the shape of an image.

use std::sync::Arc;

use crate::error::Result;
use crate::extent::Extent;
use crate::format_id::FormatId;
use crate::formats::raw::RAW;
use crate::image::{Image, ImageInfo, Probe, Value};
use crate::reference::Reference;
use crate::source::{BlockSource, BlockSourceExt, FileIdentity, Stored};

use super::look::Look;
use super::{Kind, Nature};

/// Description of a file of a [`Kind`]. Reading it fails with the reason.
#[derive(Debug)]
pub(crate) struct Described {
    kind: &'static Kind,
    file: Arc<dyn BlockSource>,
    info: ImageInfo,
}

impl Described {
    /// Reads what the file says of itself.
    pub(crate) fn new(
        kind: &'static Kind,
        file: Arc<dyn BlockSource>,
        window: Probe<'_>,
    ) -> Result<Self> {
        let look = Look::new(&file, window);
        let mut info = (kind.describe)(&look)?;
        let mut details = Value::map();
        details.insert("kind", kind.name);
        if let Some(Value::Map(own)) = info.details.take() {
            for (name, value) in own {
                details.insert(name, value);
            }
        }
        info.details = Some(details);
        if kind.nature != Nature::Image {
            // QEMU sees a raw disk of this size in any file.
            info.virtual_size = file.size();
        }
        Ok(Described { kind, file, info })
    }
}

impl BlockSource for Described {
    fn size(&self) -> u64 {
        self.info.virtual_size
    }

    fn read_at(&self, _: &mut [u8], _: u64) -> Result<usize> {
        Err(self.kind.not_read())
    }

    fn extent_at(&self, _: u64, _: u64) -> Result<Extent> {
        Err(self.kind.not_read())
    }

    fn stored(&self) -> Option<&dyn Stored> {
        Some(self)
    }
}

impl Stored for Described {
    fn identity(&self) -> Option<FileIdentity> {
        self.file.identity()
    }

    fn uses_file(&self, file: FileIdentity) -> bool {
        self.file.uses_file(file)
    }
}

impl Image for Described {
    fn format(&self) -> FormatId {
        match self.kind.nature {
            Nature::Image => self.kind.id,
            Nature::Packed | Nature::Other => RAW,
        }
    }

    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn references(&self) -> &[Reference] {
        &[]
    }
}
