//! An open image of a format whose tables a [`BlockMap`] reads.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::format_id::FormatId;
use crate::image::{Image, ImageInfo, Request};
use crate::map::{Below, BlockMap, Mapped};
use crate::packed::PackedSource;
use crate::reference::Reference;
use crate::source::{BlockSource, BlockSourceExt, FileIdentity, Place, Salvageable, Stored};

/// An image in one file, with a backing file or without.
#[derive(Debug)]
pub(crate) struct MappedImage<M> {
    format: FormatId,
    file: Arc<dyn BlockSource>,
    mapped: Mapped<M>,
    backing: Option<Arc<dyn Image>>,
    references: Vec<Reference>,
    info: ImageInfo,
    /// Why the guest's data cannot be read, if it cannot.
    sealed: Option<&'static str>,
}

impl<M: BlockMap> MappedImage<M> {
    /// The image in `file`, with what it says of itself, over the backing file that it names.
    ///
    /// # Errors
    /// What opening the backing file fails with.
    pub(crate) fn open(
        format: FormatId,
        file: Arc<dyn BlockSource>,
        map: M,
        info: ImageInfo,
        backing: Option<Reference>,
        request: &Request<'_>,
    ) -> Result<Self> {
        let (below, open) = match &backing {
            None => (Below::Nothing, None),
            Some(reference) => match request.opener.open_image(reference)? {
                None => (Below::Detached(Box::new(reference.clone())), None),
                Some(image) => (Below::Image(Arc::new(Arc::clone(&image))), Some(image)),
            },
        };
        Ok(MappedImage {
            format,
            mapped: Mapped::new(map, Arc::clone(&file), below, info.virtual_size),
            file,
            backing: open,
            references: backing.into_iter().collect(),
            info,
            sealed: None,
        })
    }

    /// This image with data that cannot be read, for the reason that `feature` names.
    pub(crate) fn sealed(mut self, feature: Option<&'static str>) -> Self {
        self.sealed = feature;
        self
    }

    fn check_readable(&self) -> Result<()> {
        match self.sealed {
            None => Ok(()),
            Some(feature) => Err(Error::Unsupported {
                format: self.format,
                feature: format!("reading through {feature}"),
                hint: Some("decrypt it with a tool that has the key".into()),
            }),
        }
    }
}

impl<M: BlockMap> BlockSource for MappedImage<M> {
    fn size(&self) -> u64 {
        self.mapped.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.check_readable()?;
        self.mapped.read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.check_readable()?;
        self.mapped.extent_at(offset, limit)
    }

    fn block_size(&self) -> u64 {
        self.mapped.block_size()
    }

    fn packed(&self) -> Option<&dyn PackedSource> {
        self.mapped.packed().filter(|_| self.sealed.is_none())
    }

    fn stored(&self) -> Option<&dyn Stored> {
        Some(self)
    }

    fn salvage(&self) -> Option<&dyn Salvageable> {
        Some(self)
    }
}

impl<M: BlockMap> Stored for MappedImage<M> {
    fn identity(&self) -> Option<FileIdentity> {
        self.file.identity()
    }

    fn uses_file(&self, file: FileIdentity) -> bool {
        Stored::uses_file(&self.mapped, file)
    }

    fn depth_of(&self, file: FileIdentity, format: FormatId) -> Option<u16> {
        if format == self.format && Stored::identity(self) == Some(file) {
            Some(0)
        } else {
            Stored::depth_of(&self.mapped, file, format)
        }
    }

    fn place_of(&self, offset: u64, limit: u64) -> Option<Place<'_>> {
        self.check_readable().ok()?;
        Stored::place_of(&self.mapped, offset, limit)
    }
}

impl<M: BlockMap> Salvageable for MappedImage<M> {
    fn lost_with(&self, offset: u64) -> u64 {
        Salvageable::lost_with(&self.mapped, offset)
    }
}

impl<M: BlockMap> Image for MappedImage<M> {
    fn format(&self) -> FormatId {
        self.format
    }

    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn references(&self) -> &[Reference] {
        &self.references
    }

    fn tables(&self) -> Vec<(u64, u64)> {
        self.mapped.tables()
    }

    fn backing(&self) -> Option<&Arc<dyn Image>> {
        self.backing.as_ref()
    }
}
